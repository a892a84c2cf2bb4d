"""Loss curves as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_losses(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    file: Path,
    *,
    x_label: str = "step",
    title: str | None = None,
    dashed: Sequence[str] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> None:
    """Draw named curves of (x, loss) into a PNG; names in `dashed` are drawn so.

    Long curves get a smoothed line over their faint raw points. `marks` are vertical lines, each
    with its text.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        color = f"C{index % 10}"
        style = "--" if name in dashed else "-"
        if len(points) > 60:
            axes.plot(xs, ys, color=color, alpha=0.2, linewidth=0.8)
            ys = tuple(smooth(ys))
        marker = "o" if len(points) <= 12 else None
        axes.plot(
            xs, ys, style, color=color, label=name, linewidth=1.6, marker=marker, markersize=3
        )
    for x, text in marks:
        axes.axvline(x, color="0.5", linewidth=1.0, linestyle=":")
        axes.annotate(
            text, (x, 1.0), (3, -3), xycoords=("data", "axes fraction"), fontsize=8, color="0.35",
            textcoords="offset points", rotation=90, va="top",
        )  # fmt: skip
    axes.set_xlabel(x_label)
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    if title:
        axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the bias of a zero start."""
    averages, total, mass = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        averages.append(total / mass)
    return averages
