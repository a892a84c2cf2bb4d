"""What a training step costs against the sizes of the model, beside the formula.

    python benchmarks/size_curves.py [--picture FILE] [--rounds N] [--steps N] [--seed N]

One size of a small GPT changes at a time: tokens of a step, layers, vocabulary, rank. Timed is the
engine's own step (forward, backward, clip, AdamW) of stage 1 and of the dense model on synthetic
tokens; all sizes of a panel alternate. The formula is the FLOPs of all matrix products
(`flops_per_token`) at the speed of the unchanged size, marked in each panel: a point above its
line is a step that costs more than its FLOPs say, a point below one that costs less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.rivals.contestant import ratio
from benchmarks.tables import markdown, median_and_middle_half, show

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "size_curves.svg"
LENGTH = 256
BASE = {"sequences": 8, "layers": 4, "vocabulary": 4096, "rank": 8}
WIDTH = 256
PANELS: dict[str, Sequence[int]] = {
    "sequences": (1, 2, 4, 8),
    "layers": (1, 2, 4, 8),
    "vocabulary": (1024, 4096, 16384, 32768),
    "rank": (8, 16, 32, 64, 128),
}
LABELS = {"sequences": f"sequences of {LENGTH} tokens"}
STAGES = ("dense", "stage 1")


@dataclass(frozen=True)
class Point:
    """Steps of one size, in seconds of each round, and the FLOPs of one, in units of the base's."""

    seconds: list[float]
    flops: float


Curve = dict[int, Point]


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device("cpu", threads=args.threads)
    kernels = start_kernels(device)
    import paddle

    panels = {
        size: {stage: measure(size, stage, device, args) for stage in stages_of(size)}
        for size in args.panels
    }
    draw(panels, args.picture)
    rows = [row for size, curves in panels.items() for row in table(size, curves)]
    show(
        markdown(("size", "dense", "formula", "stage 1", "formula"), rows),
        f"Step over that of the unchanged size: {BASE['layers']} layers x {args.width}, "
        f"{BASE['sequences']} x {LENGTH} tokens, vocabulary {BASE['vocabulary']}, rank "
        f"{BASE['rank']}. {machine()}; kernels {kernels}, paddle {paddle.__version__}; "
        f"{args.rounds} rounds of {args.steps} steps, seed {args.seed}, commit {commit()}.",
    )


def stages_of(size: str) -> tuple[str, ...]:
    """A dense model has no rank."""
    return ("stage 1",) if size == "rank" else STAGES


def measure(size: str, stage: str, device: Any, args: argparse.Namespace) -> Curve:
    """Time all values of one size, in turns."""
    from fastffn_cli import ui
    from fastffn_cli.engine.model import gpt_config
    from fastffn_cli.engine.timing import WARM_UP_STEPS, Arm, synthetic_batches, time_rounds
    from models.gpt import flops_per_token

    arms, batches, flops = {}, {}, {}
    for value in PANELS[size]:
        config = configure({**BASE, size: value}, stage, args)
        model = gpt_config(config)
        name = str(value)
        arms[name] = Arm(config, model, device)
        batches[name] = synthetic_batches(config, max(args.steps, WARM_UP_STEPS))
        flops[value] = flops_per_token(model, LENGTH) * config.Data.tokens_per_step
    times = time_rounds(
        arms, batches, steps=args.steps, rounds=args.rounds, say=ui.say,
        show=lambda seconds: f"{size}, {stage}: " + ", ".join(
            f"{name} {1e3 * each:.0f} ms" for name, each in seconds.items()),
    )  # fmt: skip
    unit = flops[BASE[size]]
    return {value: Point(times[str(value)], flops[value] / unit) for value in PANELS[size]}


def configure(sizes: Mapping[str, int], stage: str, args: argparse.Namespace) -> Any:
    """Return the configuration of a model of these sizes."""
    from fastffn_cli.config.load import default_config

    ffn = "{kind: dense}" if stage == "dense" else f"{{kind: low_rank, rank: {sizes['rank']}}}"
    return default_config(
        [
            f"Model.num_layers={sizes['layers']}",
            f"Model.hidden_size={args.width}",
            f"Model.num_attention_heads={max(1, args.width // 64)}",
            f"Model.vocab_size={sizes['vocabulary']}",
            f"Model.max_position_embeddings={LENGTH}",
            "Model.hidden_dropout_prob=0",
            "Model.attention_probs_dropout_prob=0",
            f"Model.ffn={ffn}",
            f"Data.dataset.max_seq_len={LENGTH}",
            f"Data.batch_size.local_batch_size={sizes['sequences']}",
            f"Data.batch_size.micro_batch_size={sizes['sequences']}",
            f"Global.seed={args.seed}",
        ]
    ).config


def table(size: str, curves: Mapping[str, Curve]) -> list[list[str]]:
    """Return the rows of one panel."""
    rows = []
    for value in PANELS[size]:
        cells = [f"{value} {LABELS.get(size, size)}"]
        for stage in STAGES:
            if stage not in curves:
                cells += ["", ""]
                continue
            curve = curves[stage]
            ratios = ratio(curve[value].seconds, curve[BASE[size]].seconds)
            measured = median_and_middle_half(ratios)
            cells += [measured, f"{curve[value].flops:.2f}"]
        rows.append(cells)
    return rows


def draw(panels: Mapping[str, Mapping[str, Curve]], file: Path) -> None:
    """Draw a panel for each size: points are measured, lines the formula."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasSVG(figure)
    places = figure.subplots(2, (len(panels) + 1) // 2, squeeze=False).flat
    for axes, (size, curves) in zip(places, panels.items(), strict=False):
        for index, stage in enumerate(STAGES):
            if stage in curves:
                draw_curve(axes, size, stage, curves[stage], f"C{index}")
        axes.axvline(BASE[size], color="0.7", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.set_xticks(PANELS[size], [f"{value:,}" for value in PANELS[size]])
        axes.set_xlabel(LABELS.get(size, size))
        axes.set_ylabel("milliseconds of a step")
        axes.grid(alpha=0.25, which="both")
        axes.legend()
    # Without dates and random ids the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "fastffn", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def draw_curve(axes: Any, size: str, stage: str, curve: Curve, color: str) -> None:
    values = list(curve)
    milliseconds = [[1e3 * each for each in point.seconds] for point in curve.values()]
    middle = [statistics.median(each) for each in milliseconds]
    spread = (
        [mid - min(each) for mid, each in zip(middle, milliseconds, strict=True)],
        [max(each) - mid for mid, each in zip(middle, milliseconds, strict=True)],
    )
    base = middle[values.index(BASE[size])]
    axes.errorbar(values, middle, spread, fmt="o", color=color, capsize=3, label=stage)
    formula = [base * point.flops for point in curve.values()]
    axes.plot(values, formula, color=color, linewidth=1.2, label=f"{stage}, by FLOPs")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--panels", nargs="+", choices=PANELS, default=list(PANELS))
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1024)
    return parser.parse_args()


if __name__ == "__main__":
    main()
