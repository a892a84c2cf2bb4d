"""Attention in one operator against Paddle's operators and PyTorch's fused attention, on this CPU.

    python benchmarks/attention_kernel.py [--cases N ...] [--rounds N] [--threads N] [--seed N]

Timed is attention from the output of the qkv projection to the input of the next one, whatever
transposes a system needs for it. Sizes are [sequences, heads, tokens, size of a head], causal,
float32; training is the forward and the backward pass, decoding one token behind cached ones. Each
contestant is a process that works at its turn and sleeps otherwise. A ratio is that of turns of the
same round, above 1 where ours is faster: the median over the rounds with the middle half. Without
dropout, the first value of each output must agree within 1e-3. Without torch, its columns say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, describe, machine
from benchmarks.rivals.attention import AttentionCase
from benchmarks.rivals.contestant import Contestant, check_alike, ratio, take_turns
from benchmarks.tables import markdown, median_and_middle_half, show, verdict

CASES = {
    "small": AttentionCase(8, 4, 256, 64),
    "large": AttentionCase(2, 12, 512, 64),
    "long": AttentionCase(1, 12, 1024, 64),
    "dropout": AttentionCase(2, 12, 512, 64, dropout=0.1),
    "decoding": AttentionCase(1, 12, 1, 64, cached=512),
}
OVER_PLAIN, OVER_TORCH = 4.0, 1.0
HEADER = (
    "attention", "ours", "Paddle's operators", "PyTorch", "Paddle / ours", "target",
    "PyTorch / ours", "target",
)  # fmt: skip


def main() -> None:
    args = read_arguments()
    versions: dict[str, str] = {}
    rows = [measure(name, args, versions) for name in args.cases]
    show(
        markdown(HEADER, rows),
        f"{machine()}, {args.threads} threads; {describe(versions)}; {args.rounds} rounds of "
        f"{args.calls} calls, seed {args.seed}, commit {commit()}.",
    )


def measure(name: str, args: argparse.Namespace, versions: dict[str, str]) -> list[str]:
    """Return a row of the table."""
    case = AttentionCase(**{**vars(CASES[name]), "threads": args.threads, "seed": args.seed})
    forms = ["ours", "plain"]
    if importlib.util.find_spec("torch") is not None:
        forms.append("torch")
    contestants = [Contestant(form, "attention", case, form) for form in forms]
    try:
        if not case.dropout:
            check_alike(contestants)
        for each in contestants:
            versions.update(each.versions)
        times = take_turns(contestants, rounds=args.rounds, steps=args.calls)
    finally:
        for each in contestants:
            each.close()
    middle = {form: f"{1e3 * statistics.median(found):.2f} ms" for form, found in times.items()}
    row = [case.describe(), middle["ours"], middle["plain"], middle.get("torch", "not run")]
    for form, target in (("plain", None if case.cached else OVER_PLAIN), ("torch", OVER_TORCH)):
        if form not in times:
            row += ["not run", ""]
            continue
        ratios = ratio(times[form], times["ours"])
        reached = "" if target is None else verdict(statistics.median(ratios), target)
        row += [median_and_middle_half(ratios), reached]
    return row


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10, help="calls of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
