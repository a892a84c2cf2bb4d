"""Loss curves drawn with characters, for a terminal without pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# Bit of each dot of a Braille character (U+2800): [column][row], two by four dots.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
MARKS = "ox+#"


def draw_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    width: int = 64,
    height: int = 12,
    ascii_only: bool = False,
) -> list[str]:
    """Draw named curves of (x, y) into lines of `width` characters behind a y axis.

    The first curve is a trace of dots, the others are marks on top of it. `ascii_only` is for
    terminals without UTF-8. Points that are not finite are left out; no point, no lines.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in curves.items()
    }
    everything = [point for points in finite.values() for point in points]
    if not everything:
        return []
    xs, ys = zip(*everything, strict=True)
    box = (min(xs), max(xs), min(ys), max(ys))
    across, down = (1, 1) if ascii_only else (2, 4)
    bits = [[0] * width for _ in range(height)]
    names = list(finite)
    for x, y in finite[names[0]]:
        column, row = _place(x, y, box, width * across, height * down)
        dot = 1 if ascii_only else DOTS[column % across][row % down]
        bits[row // down][column // across] |= dot
    cells = [[_cell(bit, ascii_only) for bit in row] for row in bits]
    for mark, name in zip(MARKS, names[1:], strict=False):
        for x, y in finite[name]:
            column, row = _place(x, y, box, width, height)
            cells[row][column] = mark
    return _with_axes(cells, box, names, ascii_only)


def _place(
    x: float, y: float, box: tuple[float, float, float, float], columns: int, rows: int
) -> tuple[int, int]:
    left, right, bottom, top = box
    column = round((x - left) / ((right - left) or 1.0) * (columns - 1))
    row = round((top - y) / ((top - bottom) or 1.0) * (rows - 1))
    return column, row


def _cell(bits: int, ascii_only: bool) -> str:
    if not bits:
        return " "
    return "." if ascii_only else chr(0x2800 + bits)


def _with_axes(
    cells: list[list[str]],
    box: tuple[float, float, float, float],
    names: list[str],
    ascii_only: bool,
) -> list[str]:
    left, right, bottom, top = box
    labels = {0: f"{top:.3f}", len(cells) - 1: f"{bottom:.3f}"}
    margin = max(len(label) for label in labels.values())
    bar, corner, dash = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    lines = [
        f"{labels.get(index, ''):>{margin}} {bar}{''.join(row)}".rstrip()
        for index, row in enumerate(cells)
    ]
    width = len(cells[0])
    lines.append(f"{'':>{margin}} {corner}{dash * width}")
    first, last = f"{left:g}", f"{right:g}"
    lines.append(f"{'':>{margin}}  {first}{last:>{width - len(first)}}")
    legend = [f"{names[0]} (dots)"]
    legend += [f"{name} ({mark})" for mark, name in zip(MARKS, names[1:], strict=False)]
    lines.append(f"{'':>{margin}}  {', '.join(legend)}")
    return lines
