"""A progress bar with MB/s and ETA on a terminal; a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fastffn_cli import ui

LINE_SECONDS = 15.0
BAR_SECONDS = 0.1


class ByteProgress:
    """Shows how much of `total` bytes is done; a context manager. All output goes to stderr."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = max(total, 1)
        self._started = time.monotonic()
        self._last = self._started
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> ByteProgress:
        if ui.err.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=ui.err,
                transient=True,
            )
            self._task = self._bar.add_task(self._label, total=self._total)
            self._bar.start()
        return self

    def update(self, done: int) -> None:
        """Show that `done` bytes are done."""
        now = time.monotonic()
        if now - self._last < (LINE_SECONDS if self._bar is None else BAR_SECONDS):
            return
        self._last = now
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        rate = done / (now - self._started)
        left = (self._total - done) / rate if rate > 0 else 0.0
        ui.say(
            f"{self._label}: {100 * done / self._total:.0f} % of {ui.size(self._total)}, "
            f"{rate / 1e6:.1f} MB/s, {ui.duration(left)} left"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
