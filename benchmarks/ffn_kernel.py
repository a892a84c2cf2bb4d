"""Feed-forwards in one operator (`models.kernels`) against Paddle's operators, on this CPU.

    python benchmarks/ffn_kernel.py [--tokens N] [--hidden D] [--rounds N] [--threads N] [--seed N]

Timed are the forward and the backward pass of one layer, F = 4D. Each round runs both forms, one
after the other; the ratio is Paddle's seconds over ours in the same round, above 1 where ours is
faster: the median over the rounds, with their middle half. The milliseconds are the fastest ones.
Memory is the most that live tensors hold beyond weights, input and their gradients, by Paddle's own
count. `erf` is the other form of GELU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.tables import markdown, median_and_middle_half, show, skip, verdict

MIB = 2**20
# Name -> spec, activation, the ratio that it is to reach.
CASES: dict[str, tuple[dict[str, Any], str, float | None]] = {
    "low_rank 8": ({"kind": "low_rank", "rank": 8}, "gelu", 6.0),
    "low_rank 8, erf": ({"kind": "low_rank", "rank": 8}, "erf_gelu", None),
    "low_rank 16": ({"kind": "low_rank", "rank": 16}, "gelu", None),
    "low_rank 32": ({"kind": "low_rank", "rank": 32}, "gelu", 4.0),
    "low_rank 64": ({"kind": "low_rank", "rank": 64}, "gelu", None),
    "low_rank 128": ({"kind": "low_rank", "rank": 128}, "gelu", None),
    "thin D/8, D/4": ({"kind": "thin", "rank": "D/8", "width": "D/4"}, "gelu", None),
    "dense": ({"kind": "dense"}, "gelu", None),
    "dense, erf": ({"kind": "dense"}, "erf_gelu", None),
}


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device("cpu", threads=args.threads)
    path = start_kernels(device)
    if path == "none":
        skip("there are no CPU kernels here")
    import paddle

    rows = [measure(name, args) for name in CASES]
    header = ("feed-forward", "ratio", "target", "Paddle", "ours", "Paddle's memory", "ours")
    show(
        markdown(header, rows),
        f"{args.tokens} tokens, D = {args.hidden}, float32, {args.rounds} rounds; {path}, "
        f"paddle {paddle.__version__}, {device.describe()}; {machine()}; commit {commit()}, "
        f"seed {args.seed}",
    )


def measure(name: str, args: argparse.Namespace) -> list[str]:
    """Return a row of the table."""
    import paddle

    from models.ffn import build
    from models.ffn.base import Shape
    from models.kernels import library

    spec, activation, target = CASES[name]
    paddle.seed(args.seed)
    shares = {"D/8": args.hidden // 8, "D/4": args.hidden // 4}
    layer = build(
        {key: shares.get(value, value) for key, value in spec.items()},
        Shape(args.hidden, 4 * args.hidden, activation=activation),
    )
    x = paddle.randn([args.tokens, args.hidden])
    x.stop_gradient = False
    weights = paddle.randn([args.tokens, args.hidden])

    def run() -> None:
        layer(x).backward(weights)
        layer.clear_gradients()
        x.clear_grad()

    def run_paddle() -> None:
        with library.suspended():
            run()

    memory = [f"{peak_bytes(form) / MIB:.0f} MiB" for form in (run_paddle, run)]
    seconds = [(time_call(run_paddle), time_call(run)) for _ in range(args.rounds)]
    fastest = [f"{1e3 * min(each):.0f} ms" for each in zip(*seconds, strict=True)]
    ratios = [paddle_s / own_s for paddle_s, own_s in seconds]
    reached = "" if target is None else verdict(sorted(ratios)[len(ratios) // 2], target)
    return [name, median_and_middle_half(ratios), reached, *fastest, *memory]


def time_call(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def peak_bytes(call: Callable[[], None]) -> int:
    """Return how much more than before live tensors hold at most during a call; warms up, too."""
    from paddle.base import core

    call()
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    before = core.host_memory_stat_current_value("Allocated", 0)
    call()
    return int(core.host_memory_stat_peak_value("Allocated", 0) - before)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
