"""The token table of a tied model, looked up and read out, against Paddle's operators, on this CPU.

    python benchmarks/loss_kernel.py [--shapes NxVxD ...] [--rounds N] [--threads N] [--seed N]

Timed are the forward and the backward pass of a model that is nothing but its table of V tokens and
width D: N tokens are looked up, and their summed cross entropy is that of the table as the head.
Paddle's form makes all logits; ours is `models.kernels.look_up` and `linear_cross_entropy`. Each
round runs both, one after the other; the ratio is Paddle's seconds over ours in the same round,
above 1 where ours is faster: the median over the rounds, with their middle half. The milliseconds
are the fastest ones. Memory is the most that live tensors hold beyond the table, by Paddle's own
count; the table's gradient is part of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ffn_kernel import MIB, peak_bytes, time_call
from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.tables import markdown, median_and_middle_half, show, skip

SHAPES = ("2048x4096x256", "1024x8192x768", "1024x50304x768")


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device("cpu", threads=args.threads)
    path = start_kernels(device)
    if path == "none":
        skip("there are no CPU kernels here")
    import paddle

    rows = [measure(shape, args) for shape in args.shapes]
    header = ("tokens x vocabulary x width", "ratio", "Paddle", "ours", "Paddle's memory", "ours")
    show(
        markdown(header, rows),
        f"float32, {args.rounds} rounds; {path}, paddle {paddle.__version__}, "
        f"{device.describe()}; {machine()}; commit {commit()}, seed {args.seed}",
    )


def measure(shape: str, args: argparse.Namespace) -> list[str]:
    """Return a row of the table."""
    import paddle
    from paddle.nn import functional

    from models.kernels.linear_cross_entropy import linear_cross_entropy
    from models.kernels.lookup import look_up

    tokens, vocabulary, width = (int(size) for size in shape.split("x"))
    paddle.seed(args.seed)
    table = paddle.create_parameter([vocabulary, width], "float32")
    ids, labels = (paddle.randint(0, vocabulary, [tokens]) for _ in range(2))
    weights = paddle.full([tokens], 1 / tokens)

    def run() -> None:
        linear_cross_entropy(look_up(ids, table), table, labels, weights).backward()
        table.clear_gradient(False)

    def run_paddle() -> None:
        x = functional.embedding(ids, table)
        logits = paddle.matmul(x, table, transpose_y=True)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        del logits
        paddle.sum(losses * weights).backward()
        table.clear_gradient(False)

    memory = [f"{peak_bytes(form) / MIB:.0f} MiB" for form in (run_paddle, run)]
    seconds = [(time_call(run_paddle), time_call(run)) for _ in range(args.rounds)]
    fastest = [f"{1e3 * min(each):.0f} ms" for each in zip(*seconds, strict=True)]
    ratios = [paddle_s / own_s for paddle_s, own_s in seconds]
    return [shape.replace("x", " x "), median_and_middle_half(ratios), *fastest, *memory]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="NxVxD")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
