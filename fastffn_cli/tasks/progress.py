"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastffn_cli import ui
from fastffn_cli.tasks.scoring import Score

LINE_SECONDS = 15.0


class ScoreProgress:
    """Shows predicted tokens; a context manager. All output goes to stderr.

    `read` gives (tokens read so far, share of the source that they are): a text's number of tokens
    is not known before its end, so the total is an estimate.
    """

    def __init__(self, read: Callable[[], tuple[int, float]]) -> None:
        self._read = read
        self._started = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ScoreProgress:
        if ui.err.is_terminal:
            self._bar = Progress(
                TextColumn("evaluating"),
                BarColumn(),
                TextColumn("{task.completed:,.0f} tokens"),
                TimeRemainingColumn(),
                console=ui.err,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def update(self, score: Score) -> None:
        """Show the state."""
        tokens, fraction = self._read()
        total = max(score.targets, round(tokens / fraction)) if fraction > 0 else None
        if self._bar is not None:
            self._bar.update(self._task, completed=score.targets, total=total)
            return
        now = time.monotonic()
        if now - self._last < LINE_SECONDS or not total:
            return
        self._last = now
        rate = score.targets / (now - self._started)
        left = ui.duration((total - score.targets) / rate) if rate else "?"
        ui.say(
            f"evaluating: {100 * score.targets / total:.0f} % of about {total:,} tokens, "
            f"{rate:,.0f} tokens/s, {left} left"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
