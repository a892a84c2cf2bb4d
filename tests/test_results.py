"""docs/results.md states what the reports beside it say, rounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT_DIR

DOCS_DIR = ROOT_DIR / "docs"
NUMBER = re.compile(r"\d+\.\d+")
# Each column of the page, as a section of the report and the columns that it has there.
COLUMNS = {
    "step": ("Step times", ("stage 1: measured", "by FLOPs")),
    "equal tokens": ("Equal tokens", ("final loss",)),
    "equal tokens, to dense": ("Equal tokens", ("difference to baseline (error)",)),
    "equal seconds": ("Equal seconds", ("final loss",)),
    "equal seconds, to dense": ("Equal seconds", ("difference to baseline (error)",)),
    "on WikiText-2": ("On other text", ("difference to baseline (error)",)),
    "whole run": ("Step times", ("whole run: measured",)),
}


def sections(path: Path) -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str) -> dict[str, dict[str, str]]:
    """Return the first table of a text: row by its first cell, then cell by its column.

    A column that stands twice keeps the first of its cells; "to dense" belongs to what stands left
    of it.
    """
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    for number, name in enumerate(header):
        if name == "to dense":
            header[number] = f"{header[number - 1]}, to dense"
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        cells: dict[str, str] = {}
        for name, cell in zip(header, row, strict=False):
            cells.setdefault(name, cell)
        found.setdefault(row[0].replace(" (baseline)", "").replace("_", " "), cells)
    return found


@pytest.mark.parametrize(
    ("section", "report"),
    [
        ("Loss at equal tokens and at equal seconds", "half-a-million"),
        ("A million parameters, twenty tokens a parameter", "a-million"),
        ("When to switch, and what becomes of the optimizer", "switch"),
    ],
)
def test_the_page_states_the_report(section: str, report: str) -> None:
    stated = table(sections(DOCS_DIR / "results.md")[section])
    measured = sections(DOCS_DIR / "results" / report / "report.md")
    compared = 0
    for arm, cells in stated.items():
        for column, cell in cells.items():
            if column not in COLUMNS or cell in ("", "1"):  # dense beside itself
                continue
            name, sources = COLUMNS[column]
            row = table(measured[name])[arm]
            exact = [float(number) for source in sources for number in NUMBER.findall(row[source])]
            rounded = NUMBER.findall(cell)
            assert rounded, f"{arm}: {column} has no number"
            for text, value in zip(rounded, exact, strict=False):
                digits = len(text.partition(".")[2])
                assert abs(float(text) - value) <= 0.51 * 10**-digits, f"{arm}: {column}"
                compared += 1
    assert compared >= 2 * len(stated)
