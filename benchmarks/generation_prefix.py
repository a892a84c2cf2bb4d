"""What a token costs to generate, against how many stand before it.

    python benchmarks/generation_prefix.py [--size gpt2] [--prefixes N ...] [--rounds N] [--seed N]

One text of random tokens and a model of random weights, greedy, with a cache: the median seconds
between two new tokens of `generate`, once the prompt has been read. All prefixes alternate; the
ratio to the shortest one is that of the same round, the median with its middle half. With a cache
only attention sees the tokens before; the formula is that of `flops_per_token`, in which they add
4 x width FLOPs in each layer, and as much is read of the cache as there are FLOPs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.generation_speed import SIZES
from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.rivals.contestant import ratio
from benchmarks.tables import markdown, median_and_middle_half, show

POSITIONS = 1024


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    kernels = start_kernels(use_device("cpu", threads=args.threads))
    import numpy as np
    import paddle

    from fastffn_cli.engine.model import build_model
    from models.gpt import GPTConfig, flops_per_token

    sizes = SIZES[args.size]
    config = GPTConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["n_embd"],
        num_layers=sizes["n_layer"],
        num_attention_heads=sizes["n_head"],
        ffn_hidden_size=4 * sizes["n_embd"],
        max_position_embeddings=POSITIONS,
    )
    model = build_model(config, args.seed)
    ids = np.random.default_rng(args.seed).integers(0, config.vocab_size, POSITIONS).tolist()
    prefixes = sorted(args.prefixes)
    times: dict[int, list[float]] = {prefix: [] for prefix in prefixes}
    for number in range(args.rounds + 1):
        seconds = {prefix: token_seconds(model, ids[:prefix], args.tokens) for prefix in prefixes}
        if number:  # the first round warms up
            for prefix, values in times.items():
                values.append(seconds[prefix])
    shortest = prefixes[0]
    rows = []
    for prefix in prefixes:
        ratios = ratio(times[prefix], times[shortest])
        formula = flops_per_token(config, prefix) / flops_per_token(config, shortest)
        milliseconds = 1e3 * statistics.median(times[prefix])
        rows.append(
            [
                str(prefix),
                f"{milliseconds:.2f} ms",
                median_and_middle_half(ratios),
                f"{formula:.2f}",
            ]
        )
    show(
        markdown(("tokens before", "a new token", f"over that after {shortest}", "formula"), rows),
        f"{config.num_layers} layers x {config.hidden_size}, vocabulary {config.vocab_size}. "
        f"{machine()}, {args.threads} threads; kernels {kernels}, paddle {paddle.__version__}; "
        f"{args.rounds} rounds of {args.tokens} tokens, seed {args.seed}, commit {commit()}.",
    )


def token_seconds(model: Any, prompt: list[int], tokens: int) -> float:
    """Return the median seconds between two new tokens behind `prompt`."""
    from fastffn_cli.generation.generate import generate
    from fastffn_cli.generation.sampling import SamplingOptions

    options = SamplingOptions(decode_strategy="greedy_search", max_dec_len=tokens + 1)
    seen: list[float] = []
    generate(model, [prompt], options, on_token=lambda *_: seen.append(time.perf_counter()))
    return statistics.median(after - before for before, after in pairwise(seen))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--prefixes", nargs="+", type=int, default=[32, 256, 512, 1000])
    parser.add_argument("--tokens", type=int, default=16, help="new tokens of a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
