"""How fast training is against the same GPT written with Paddle's own layers.

    python benchmarks/against_stock.py [--sizes small large] [--stages dense 'stage 1'] [--rounds N]

The rival (`benchmarks/rivals/stock_gpt.py`) is what one writes by hand: nn.TransformerEncoder,
nn.CrossEntropyLoss, AdamW with ClipGradByGlobalNorm. It runs twice: in the environment as Paddle
leaves it (one thread, the matrix path that its library picks), and with the two variables that
`fastffn` sets before it imports Paddle. Ours is the step of `fastffn pretrain` in its environment.
Weights, tokens, turns and ratios are as in `benchmarks/against_torch.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rivals.contestant import Contestant, check_alike, ratio, take_turns
from benchmarks.rivals.training import describe_runs, read_arguments
from benchmarks.rivals.workload import make_workload
from benchmarks.tables import markdown, median_and_middle_half, show, verdict
from fastffn_cli.engine.cpu import MKL_VARIABLE, THREADS_VARIABLE, prepare_environment

TARGET = 3.0
HEADER = (
    "model", "ours, tokens/s", "stock", "stock, both switches", "ours / stock", "target",
    "ours / stock with both switches",
)  # fmt: skip


def main() -> None:
    args = read_arguments(__doc__, rounds=2, steps=1)
    rows, worst = [], 0.0
    versions: dict[str, str] = {}
    for size in args.sizes:
        for stage in args.stages:
            with tempfile.TemporaryDirectory() as folder:
                row, difference, versions = compare(size, stage, Path(folder), args)
            rows.append(row)
            worst = max(worst, difference)
    show(markdown(HEADER, rows), describe_runs(args, versions, worst))


def compare(
    size: str, stage: str, folder: Path, args: argparse.Namespace
) -> tuple[list[str], float, dict[str, str]]:
    """Return the row of a model, by how much first losses differ, and the versions."""
    workload = make_workload(size, stage, folder / "weights.npz", args.threads, args.seed)
    contestants: list[Contestant] = []
    try:
        contestants.append(Contestant("ours", "ours", workload))
        contestants.append(Contestant("stock", "stock_gpt", workload))
        contestants.append(
            Contestant("switched", "stock_gpt", workload, env=both_switches(args.threads))
        )
        worst = check_alike(contestants)
        times = take_turns(contestants, rounds=args.rounds, steps=args.steps)
    finally:
        for each in contestants:
            each.close()
    ratios = {name: ratio(times[name], times["ours"]) for name in ("stock", "switched")}
    row = [
        f"{workload.describe()}, {stage}",
        *(f"{workload.tokens / statistics.median(values):,.0f}" for values in times.values()),
        median_and_middle_half(ratios["stock"]),
        verdict(statistics.median(ratios["stock"]), TARGET),
        median_and_middle_half(ratios["switched"]),
    ]
    return row, worst, contestants[0].versions


def both_switches(threads: int) -> dict[str, str]:
    """The variables that our program sets on this machine."""
    chosen = prepare_environment(threads).mkl_cpu_type
    mkl = {} if chosen is None else {MKL_VARIABLE: str(chosen)}
    return {THREADS_VARIABLE: str(threads), **mkl}


if __name__ == "__main__":
    main()
