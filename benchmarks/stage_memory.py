"""What a training step of stage 1 takes of memory beside the dense model's, measured.

    python benchmarks/stage_memory.py [--sizes tiny] [--micro-batch-size N ...]

GPT-2's small size (12 layers, width 768, 12 heads, 50304 tokens, sequences of 1024, no dropout)
with feed-forwards of rank 8 and dense, each trained for two steps in processes of their own. Live
tensors are Paddle's own count of what weights, gradients, AdamW's state and activations hold at
most: what a device would need. The process is how much a fresh one grows on this CPU. "Below dense"
is stage 1's share that is missing; the estimate is that of `--dry-run`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ffn_kernel import MIB
from benchmarks.memory import Case, measure_process, measure_tensors
from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.tables import markdown, show, verdict

TARGET = 35.0  # percent that stage 1 is to be below dense
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZES = {
    "gpt2": (
        {"vocab_size": 50304, "hidden_size": 768, "num_layers": 12, "num_attention_heads": 12},
        1024,
    ),
    "tiny": (
        {"vocab_size": 96, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2},
        16,
    ),
}


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    path = start_kernels(use_device("cpu"))
    rows = [measure(args.sizes, size) for size in args.micro_batch_size]
    header = (
        *("sequences", "dense: tensors", "process", "estimate"),
        *("stage 1: tensors", "process", "estimate", "tensors below dense", "process below dense"),
    )
    show(
        markdown(header, rows),
        f"size {args.sizes}, low_rank 8 against dense, float32, CPU kernels: {path}; "
        f"{machine()}; commit {commit()}",
    )


def measure(sizes: str, micro_batch_size: int) -> list[str]:
    """Return a row of the table."""
    model, seq_len = SIZES[sizes]
    shape = {**model, "ffn_hidden_size": 4 * model["hidden_size"], **NO_DROPOUT}
    cells, tensors, processes = [], [], []
    for spec in ({"kind": "dense"}, {"kind": "low_rank", "rank": 8}):
        case = Case(
            spec["kind"], {"micro_batch_size": micro_batch_size}, {**shape, "ffn": spec}, seq_len
        )
        (counted,) = measure_tensors([case])
        grown = measure_process(case)
        tensors.append(counted.peak)
        processes.append(grown.peak)
        cells += [f"{each / MIB:.0f} MiB" for each in (counted.peak, grown.peak, counted.estimate)]
    shares = [100 * (1 - stage1 / dense) for dense, stage1 in (tensors, processes)]
    tensors_below, process_below = (f"{share:.0f} %" for share in shares)
    return [
        str(micro_batch_size),
        *cells,
        f"{tensors_below}, {verdict(shares[0], TARGET)}",
        process_below,
    ]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="gpt2")
    parser.add_argument("--micro-batch-size", type=int, nargs="+", default=[1])
    return parser.parse_args()


if __name__ == "__main__":
    main()
