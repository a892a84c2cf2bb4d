"""What the comparisons of training have in common: their arguments, and the line below a table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from benchmarks.provenance import commit, describe, machine
from benchmarks.rivals.workload import SIZES, STAGES


def read_arguments(doc: str | None, *, rounds: int, steps: int) -> argparse.Namespace:
    """Read the command line of the script that is described by `doc`."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "large"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps, help="updates of a turn")
    parser.add_argument("--seed", type=int, default=1024)
    return parser.parse_args()


def describe_runs(args: argparse.Namespace, versions: Mapping[str, str], worst: float) -> str:
    """Return where and how it was measured; `worst` is how far first losses are apart."""
    return (
        f"{machine()}, {args.threads} threads; {describe(versions)}; {args.rounds} rounds of "
        f"{args.steps} updates, seed {args.seed}, commit {commit()}. First losses agree within "
        f"{worst:.1e}."
    )
