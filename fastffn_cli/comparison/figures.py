"""Loss curves of the arms of a comparison: a mean line and a band over the seeds, as SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Curve = Sequence[tuple[float, float]]

# Okabe and Ito 2008, made to be told apart with any colour vision; the baseline is black.
BASELINE_COLOR = "#000000"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", (0, (1, 1.2)))
MARKERS = "osD^vP"
# The first part of a run falls from ln(vocabulary) and would flatten all that matters.
START = 0.25


@dataclass(frozen=True)
class Line:
    """The curves of one arm, one a seed, as (x, loss) with rising x."""

    name: str
    curves: tuple[Curve, ...]
    is_baseline: bool = False


def draw_losses(lines: Sequence[Line], *, x_label: str, title: str) -> str:
    """Return the SVG text of the arms' mean losses, with bands from the smallest to the largest.

    A dashed line marks the mean of the baseline's last losses. Arms without curves are left out;
    losses above those at a quarter of the longest curve are cut off.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "fastffn"}):
        # A name in letters that the font does not have is drawn as boxes, the figure is whole.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        # White in dark pages too: the colours were chosen for it.
        figure = Figure(figsize=(8, 4.8), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        handles, names, means = _draw_lines(axes, [line for line in lines if line.curves])
        if target := [line for line in lines if line.is_baseline and line.curves]:
            last = float(np.mean([curve[-1][1] for curve in target[0].curves]))
            handles.append(axes.axhline(last, color=BASELINE_COLOR, linestyle=":", linewidth=1.2))
            names.append("baseline's final loss")
        axes.set_xlabel(x_label)
        axes.set_ylabel("validation loss (nats per token)")
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.margins(x=0.02)
        _cut_start(axes, means)
        if handles:
            # A leading underscore would hide a name, a dollar make it a formula.
            legend = axes.legend(handles, [f" {name}" for name in names], frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def mean_and_band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x, mean, smallest and largest loss, where every curve has begun and none has ended.

    Curves are straight between their points, so that seeds evaluated at other x can be joined.
    """
    begin = max(curve[0][0] for curve in curves)
    end = min(curve[-1][0] for curve in curves)
    xs = np.array(sorted({x for curve in curves for x, _ in curve if begin <= x <= end}))
    losses = np.array([np.interp(xs, *np.array(curve).T) for curve in curves])
    return xs, losses.mean(axis=0), losses.min(axis=0), losses.max(axis=0)


def _draw_lines(
    axes: Any, lines: Sequence[Line]
) -> tuple[list[Any], list[str], list[tuple[np.ndarray, np.ndarray]]]:
    handles, names, means, index = [], [], [], 0
    for line in lines:
        xs, mean, low, high = mean_and_band(line.curves)
        if line.is_baseline:
            look = {"color": BASELINE_COLOR, "linestyle": "-", "linewidth": 2.2}
        else:
            look = {
                "color": COLORS[index % len(COLORS)],
                "linestyle": STYLES[(index // len(COLORS)) % len(STYLES)],
                "marker": MARKERS[index % len(MARKERS)],
                "markevery": max(1, len(xs) // 8),
                "markersize": 4,
                "linewidth": 1.6,
            }
            index += 1
        (handle,) = axes.plot(xs, mean, **look)
        if len(line.curves) > 1:
            axes.fill_between(xs, low, high, color=look["color"], alpha=0.15, linewidth=0)
        handles.append(handle)
        names.append(line.name)
        means.append((xs, mean))
    return handles, names, means


def _cut_start(axes: Any, means: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    finite = [(xs[np.isfinite(mean)], mean[np.isfinite(mean)]) for xs, mean in means]
    finite = [(xs, mean) for xs, mean in finite if len(xs)]
    if not finite:
        return
    begin = START * max(xs[-1] for xs, _ in finite)
    tops = [mean[xs >= begin].max() for xs, mean in finite if (xs >= begin).any()]
    low, top = min(mean.min() for _, mean in finite), max(tops)
    if top > low:
        axes.set_ylim(low - 0.08 * (top - low), top + 0.08 * (top - low))
