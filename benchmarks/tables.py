"""Markdown tables of figures, all in one form."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

SKIPPED = 77  # the exit code of a script that cannot run here, as in automake


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def median_and_middle_half(values: Sequence[float], digits: int = 2) -> str:
    """Return the median with the two quartiles around it: `1.30 (1.28 to 1.33)`."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def verdict(value: float, target: float) -> str:
    """Say whether a ratio reaches its target."""
    return f"{'reaches' if value >= target else 'MISSES'} {target:g}"


def verdict_below(value: float, limit: float) -> str:
    """Say whether a figure stays below its limit."""
    return f"{'below' if value < limit else 'ABOVE'} {limit:g}"


def show(*blocks: str) -> None:
    """Print paragraphs."""
    sys.stdout.write("\n\n".join(blocks) + "\n")


def skip(reason: str) -> NoReturn:
    """End a script that cannot run on this machine, saying why; `all.py` keeps its old table."""
    sys.stderr.write(f"skipped: {reason}\n")
    sys.exit(SKIPPED)
