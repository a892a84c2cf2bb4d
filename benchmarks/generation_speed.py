"""How fast texts are generated, against Hugging Face's transformers on the same machine.

    python benchmarks/generation_speed.py [--sizes small gpt2] [--batches 1 16] [--rounds N] ...

Needs the extra `parity`. transformers makes a GPT-2 of random weights, `fastffn convert` reads it;
both continue the same random prompts, one or several at a time, greedily, with a cache, in float32,
and must choose the same first tokens. Ours is what `fastffn generate` runs, without the time to
start and to decode text.
The two are processes that write a text at their turn and sleep otherwise; the ratio is that of
turns of the same round, above 1 where ours is faster: the median over the rounds and the middle
half. Tokens per second count the new ones of all texts; the prompts are read in that time, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, describe, machine
from benchmarks.rivals.contestant import ROOT, Contestant, check_alike, ratio, take_turns
from benchmarks.rivals.generation import GenerationTask
from benchmarks.tables import markdown, median_and_middle_half, show, skip, verdict

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 64},
    "small": {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 4096},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
}
TARGET = 1.0
HEADER = (
    "model",
    "texts at a time",
    "ours, tokens/s",
    "transformers",
    "ours / transformers",
    "target",
)


def main() -> None:
    args = read_arguments()
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        skip("torch or transformers is missing: pip install 'fastffn[parity]', or make parity")
    versions: dict[str, str] = {}
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_models(Path(folder), SIZES[size], args.seed)
            rows += [measure(folder, size, batch, args, versions) for batch in args.batches]
    show(
        markdown(HEADER, rows),
        f"Prompts of {args.prompt} tokens, {args.tokens} new ones. {machine()}, {args.threads} "
        f"threads; {describe(versions)}; {args.rounds} rounds, seed {args.seed}, commit "
        f"{commit()}.",
    )


def measure(
    folder: str, size: str, batch_size: int, args: argparse.Namespace, versions: dict[str, str]
) -> list[str]:
    """Return a row of the table."""
    sizes = SIZES[size]
    task = GenerationTask(
        folder=folder,
        vocab_size=sizes["vocab_size"],
        batch_size=batch_size,
        prompt_length=args.prompt,
        new_tokens=args.tokens,
        threads=args.threads,
        seed=args.seed,
    )
    contestants = [Contestant(form, "generation", task, form) for form in ("ours", "torch")]
    try:
        check_alike(contestants)
        for each in contestants:
            versions.update(each.versions)
        times = take_turns(contestants, rounds=args.rounds, steps=1)
    finally:
        for each in contestants:
            each.close()
    new = batch_size * args.tokens
    speeds = [f"{new / statistics.median(times[form]):,.0f}" for form in ("ours", "torch")]
    ratios = ratio(times["torch"], times["ours"])
    name = f"{sizes['n_layer']} layers x {sizes['n_embd']}, vocabulary {sizes['vocab_size']}"
    reached = verdict(statistics.median(ratios), TARGET)
    return [name, str(batch_size), *speeds, median_and_middle_half(ratios), reached]


def write_models(folder: Path, sizes: dict[str, int], seed: int) -> None:
    """Write a GPT-2 of random weights to `folder`/hf, and as our checkpoint to `folder`/fastffn."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config: Any = transformers.GPT2Config(**sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "hf")
    command = ["convert", str(folder / "hf"), "--from", "hf", "--out", str(folder / "fastffn")]
    subprocess.run([sys.executable, "-m", "fastffn_cli", *command], cwd=ROOT, check=True)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "gpt2"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a text")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
