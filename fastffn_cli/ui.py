"""The only place that prints: stdout carries data, stderr carries talk.

Both consoles respect `NO_COLOR` and non-terminals (rich's own rules); nothing here imports paddle
or numpy, so that `fastffn --help` stays fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from fastffn_cli.errors import FastFFNError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, highlight=False)

UNKNOWN: dict[str, Any] = {"loss": "-", "rate": "-", "eta": "-"}


def say(message: str) -> None:
    """Print one line of talk on stderr."""
    err.print(escape(message), soft_wrap=True)


def notice(message: str) -> None:
    """Print something the user should know and need not act on."""
    err.print(f"[cyan]note[/cyan] {escape(message)}", soft_wrap=True)


def warn(message: str) -> None:
    """Print something the user probably wants to change."""
    err.print(f"[yellow]warning[/yellow] {escape(message)}", soft_wrap=True)


def data(text: str, *, end: str = "\n") -> None:
    """Write text to stdout exactly as it is (no markup, no wrapping), flushed at once."""
    encoding = sys.stdout.encoding or "utf-8"  # a locale without UTF-8 loses letters, not the run
    sys.stdout.write((text + end).encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def relay(chunk: bytes, *, to_stdout: bool) -> None:
    """Write what another process has written, byte for byte, to the stream it is for."""
    stream = sys.stdout if to_stdout else sys.stderr
    stream.flush()
    stream.buffer.write(chunk)
    stream.buffer.flush()


def data_json(value: Any) -> None:
    """Write one JSON value to stdout; a non-finite number is an error, never a bare NaN."""
    data(json.dumps(value, ensure_ascii=False, allow_nan=False))


def card(title: str, rows: Iterable[tuple[str, str]], *, to_stdout: bool = False) -> None:
    """Show aligned `label  value` rows in a panel titled `title`."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(Text(label), Text(value))
    console = out if to_stdout else err
    console.print(Panel(grid, title=escape(title), title_align="left", expand=False))


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    to_stdout: bool = True,
) -> None:
    """Show a table; columns after the first are right-aligned."""
    (out if to_stdout else err).print(_grid(title, columns, rows))


def _grid(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    grid = Table(title=Text(title) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    return grid


def show_error(error: FastFFNError) -> None:
    """Show an error the user can act on: what, where, and what to type instead."""
    if err.is_terminal:
        body = Text(error.message)
        if error.hint:
            body.append(f"\n{error.hint}", style="bold")
        err.print(Panel(body, title=escape(error.title), title_align="left", border_style="red"))
        return
    # Logs and pipes: plain lines that grep and other programs can read unwrapped.
    if error.title:
        err.print(f"{error.title}:", markup=False, soft_wrap=True)
    err.print(error.message, markup=False, soft_wrap=True)
    if error.hint:
        err.print(error.hint, markup=False, soft_wrap=True)


def number(value: float) -> str:
    """Shorten a count for people: 950, 12.3 K, 4.56 M, 1.23 B."""
    for limit, divisor, unit in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "K")):
        if abs(value) >= limit:
            return f"{value / divisor:.2f} {unit}"
    return f"{value:,.0f}"


def size(count: float) -> str:
    """Shorten a number of bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
    """Shorten a time for people: 8.2 s, 3 min 05 s, 2 h 04 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def as_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Turn a mapping into card rows."""
    return [(key, str(value)) for key, value in values.items()]


class LiveTable:
    """A table that is drawn anew in its place on a terminal, with lines of talk above it.

    Elsewhere only the lines are there.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._live: Live | None = None

    def begin(self) -> None:
        """Take the bottom of the terminal."""
        if err.is_terminal:
            self._live = Live(console=err, auto_refresh=False, transient=True)
            self._live.start()

    def show(self, title: str, rows: Iterable[Sequence[str]]) -> None:
        """Draw the table."""
        if self._live is not None:
            self._live.update(_grid(title, self._columns, rows), refresh=True)

    def note(self, line: str) -> None:
        """Print a line, above the table."""
        err.print(line, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Take the table away from further output."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class TrainingView:
    """Shows a run: a live bar on a terminal, FleetX-style log lines everywhere else."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, step: int, max_steps: int) -> None:
        """Start behind `step`."""
        if not err.is_terminal:
            return
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} tokens/s"),
            TextColumn("ETA {task.fields[eta]}"),
            console=err,
        )
        self._task = self._bar.add_task("", total=max_steps, completed=step, **UNKNOWN)
        self._bar.start()

    def step(
        self, line: str, step: int, loss: float, rate: float | None, eta: float | None
    ) -> None:
        """Show a log point."""
        if self._bar is None or self._task is None:
            err.print(line, markup=False, soft_wrap=True)
            return
        self._bar.update(
            self._task,
            completed=step,
            loss=f"{loss:.4f}",
            rate=f"{rate:,.0f}" if rate is not None else "-",
            eta=duration(eta) if eta is not None else "-",
        )

    def note(self, line: str) -> None:
        """Show an evaluation, a checkpoint or a message, above the bar."""
        console = self._bar.console if self._bar is not None else err
        console.print(line, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Take the bar away from further output."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
