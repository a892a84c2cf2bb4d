"""A training step of every kind of feed-forward layer against dense, on this machine.

    python benchmarks/kinds.py [--hidden D] [--layers L] [--rounds N] [--steps N] [--seed N]

Timed is the engine's own `TrainStep` (forward, backward, clip, AdamW) on synthetic tokens. A round
runs some steps of every kind and of dense, one after the other; the ratio is dense seconds over the
kind's seconds in the same round, above 1 where the kind is faster: the median over the rounds, with
their middle half. The ceiling is what the ratio would be if only the FLOPs of matrix
products took time. `guided` runs its cheap layer alone here: its dense guide costs extra while it
lasts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.tables import markdown, median_and_middle_half, show

KINDS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "low_rank 8": {"kind": "low_rank", "rank": 8},
    "low_rank D/4": {"kind": "low_rank", "rank": "D/4"},
    "narrow D/4": {"kind": "narrow", "width": "D/4"},
    "thin D/8, D/4": {"kind": "thin", "rank": "D/8", "width": "D/4"},
    "monarch 4": {"kind": "monarch", "blocks": 4},
    "block_dense 4, D/4": {"kind": "block_dense", "blocks": 4, "rank": "D/4"},
    "block_diagonal 4": {"kind": "block_diagonal", "blocks": 4},
    "low_rank_activation D/4": {"kind": "low_rank_activation", "rank": "D/4"},
    "moe 4, top 1": {"kind": "moe", "experts": 4, "top_k": 1},
    "guided low_rank 8": {"kind": "guided", "inner": "low_rank", "rank": 8},
}
WARM_UP = 2


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device(args.device)
    kernels = start_kernels(device)
    import paddle

    ratios, ceilings = measure(args, device)
    rows = [
        [name, median_and_middle_half(values), f"{ceilings[name]:.2f}"]
        for name, values in ratios.items()
    ]
    show(
        markdown(("kind", "ratio", "ceiling by FLOPs"), rows),
        f"{args.layers} layers x {args.hidden}, {args.seq_len} tokens x {args.batch_size}, "
        f"vocabulary {args.vocab}. {machine()}; paddle {paddle.__version__}, kernels {kernels}; "
        f"{args.rounds} rounds of {args.steps} steps, seed {args.seed}, commit {commit()}.",
    )


def measure(
    args: argparse.Namespace, device: Any
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Ratios of every kind, round by round, and their ceilings."""
    import numpy as np

    from fastffn_cli.data.dataset import Batch
    from fastffn_cli.engine.bench import Arm
    from fastffn_cli.engine.model import gpt_config
    from models.gpt import flops_per_token

    draw = np.random.default_rng(args.seed)
    shape = (args.batch_size, args.seq_len + 1)
    ids = [draw.integers(0, args.vocab, shape) for _ in range(args.steps)]
    ones = np.ones((args.batch_size, args.seq_len), np.float32)
    batches = [Batch(rows[:, :-1], rows[:, 1:], ones) for rows in ids]
    arms, flops = {}, {}
    for name, spec in KINDS.items():
        config = configure(args, spec)
        model = gpt_config(config)
        arms[name] = Arm(config, model, device)
        arms[name].seconds(batches[:WARM_UP])
        flops[name] = flops_per_token(model, args.seq_len)
    ratios: dict[str, list[float]] = {name: [] for name in KINDS if name != "dense"}
    for _ in range(args.rounds):
        seconds = {name: arm.seconds(batches) for name, arm in arms.items()}
        for name, values in ratios.items():
            values.append(seconds["dense"] / seconds[name])
    return ratios, {name: flops["dense"] / flops[name] for name in ratios}


def configure(args: argparse.Namespace, spec: dict[str, Any]) -> Any:
    """The configuration of one kind; `D/4` and `D/8` stand for parts of the width."""
    from fastffn_cli.config.dump import format_value
    from fastffn_cli.config.load import default_config

    parts = {"D/4": args.hidden // 4, "D/8": args.hidden // 8}
    options = {name: parts.get(value, value) for name, value in spec.items()}
    model = {
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "num_layers": args.layers,
        "num_attention_heads": max(1, args.hidden // 64),
        "max_position_embeddings": args.seq_len,
        "ffn": options,
    }
    sizes = {"local_batch_size": args.batch_size, "micro_batch_size": args.batch_size}
    return default_config(
        [
            f"Model={format_value(model)}",
            f"Data.batch_size={format_value(sizes)}",
            f"Data.dataset.max_seq_len={args.seq_len}",
            f"Global.seed={args.seed}",
        ]
    ).config


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("hidden", 256), ("layers", 4), ("seq-len", 256), ("batch-size", 8), ("vocab", 2048),
        ("rounds", 4), ("steps", 2), ("seed", 1024),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
