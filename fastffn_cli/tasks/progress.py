"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastffn_cli import ui

LINE_SECONDS = 15.0


class ScoreProgress:
    """Shows how many tokens (or another `unit`) are scored; a context manager, all on stderr.

    `read` gives (tokens read so far, share of the source that they are): a text's number of tokens
    is not known before its end, so the total is an estimate.
    """

    def __init__(self, read: Callable[[], tuple[int, float]], unit: str = "tokens") -> None:
        self._read, self._unit = read, unit
        self._started = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ScoreProgress:
        if ui.err.is_terminal:
            self._bar = Progress(
                TextColumn("evaluating"),
                BarColumn(),
                TextColumn(f"{{task.completed:,.0f}} {self._unit}"),
                TimeRemainingColumn(),
                console=ui.err,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def update(self, done: int) -> None:
        """Show the state."""
        read, fraction = self._read()
        total = max(done, round(read / fraction)) if fraction > 0 else None
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self._last < LINE_SECONDS or not total:
            return
        self._last = now
        rate = done / (now - self._started)
        left = ui.duration((total - done) / rate) if rate else "?"
        ui.say(
            f"evaluating: {100 * done / total:.0f} % of about {total:,} {self._unit}, "
            f"{rate:,.0f} {self._unit}/s, {left} left"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
