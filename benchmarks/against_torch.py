"""How fast training is against PyTorch on the same machine: the same GPT, as many threads.

    python benchmarks/against_torch.py [--sizes small large] [--stages dense 'stage 1'] [--rounds N]

Needs the extra `parity` and a C++ compiler (for `torch.compile`). Ours is the step of `fastffn
pretrain` in its environment; PyTorch's is GPT-2 as one writes it there
(`benchmarks/rivals/torch_gpt.py`), eager and compiled, of which the faster one counts. All start
from the same weights and read the same tokens, in float32 without dropout; the losses of the first
updates must agree within 1e-3, or nothing is printed. Every contestant is a process that trains
some updates at its turn and sleeps otherwise (`benchmarks/rivals/contestant.py`); a ratio is that
of turns of the same round, above 1 where ours is faster: the median over the rounds and their
middle half. Stage 1 has factors of rank 8 in all feed-forwards.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rivals.contestant import Contestant, check_alike, ratio, take_turns
from benchmarks.rivals.training import describe_runs, read_arguments
from benchmarks.rivals.workload import STAGES, Workload, make_workload
from benchmarks.tables import markdown, median_and_middle_half, show, skip, verdict

FORMS = ("eager", "compile")
TARGETS = {"dense": 1.0, "stage 1": 1.3}
HEADER = (
    "model", "ours, tokens/s", "torch eager", "torch compiled", "ours / faster torch", "target",
    "ours / torch's faster dense",
)  # fmt: skip


def main() -> None:
    args = read_arguments(__doc__, rounds=3, steps=2)
    if importlib.util.find_spec("torch") is None:
        skip("torch is missing: pip install 'fastffn[parity]', or make parity")
    rows: list[list[str]] = []
    versions: dict[str, str] = {}
    worst = 0.0
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            found, difference = compare(size, Path(folder), args, versions)
        rows += found
        worst = max(worst, difference)
    show(markdown(HEADER, rows), describe_runs(args, versions, worst))


def compare(
    size: str, folder: Path, args: argparse.Namespace, versions: dict[str, str]
) -> tuple[list[list[str]], float]:
    """Return the rows of both stages at one size, and by how much first losses differ at most."""
    contestants: list[Contestant] = []
    worst = 0.0
    try:
        for stage in args.stages:
            workload = make_workload(
                size, stage, folder / f"{STAGES[stage]}.npz", args.threads, args.seed
            )
            group = list(start(workload, stage))
            contestants += group
            worst = max(worst, check_alike(group))
        for each in contestants:
            versions.update(each.versions)
        times = take_turns(contestants, rounds=args.rounds, steps=args.steps)
    finally:
        for each in contestants:
            each.close()
    rows = []
    for stage in args.stages:
        ours, rival = times[f"{stage} ours"], faster(times, stage)
        speeds = [
            f"{contestants[0].workload.tokens / statistics.median(times[f'{stage} {who}']):,.0f}"
            for who in ("ours", *FORMS)
        ]
        ratios = ratio(rival, ours)
        over_dense = ratio(faster(times, "dense"), ours) if "dense" in args.stages else None
        rows.append([
            f"{contestants[0].workload.describe()}, {stage}",
            *speeds,
            median_and_middle_half(ratios),
            verdict(statistics.median(ratios), TARGETS[stage]),
            median_and_middle_half(over_dense) if over_dense else "not run",
        ])  # fmt: skip
    return rows, worst


def start(workload: Workload, stage: str) -> Iterator[Contestant]:
    """Start ours, which writes the weights, then the others."""
    yield Contestant(f"{stage} ours", "ours", workload)
    for form in FORMS:
        yield Contestant(f"{stage} {form}", "torch_gpt", workload, form)


def faster(times: dict[str, list[float]], stage: str) -> list[float]:
    """Return the times of the faster form of torch."""
    return min((times[f"{stage} {form}"] for form in FORMS), key=statistics.median)


if __name__ == "__main__":
    main()
