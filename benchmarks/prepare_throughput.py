"""How fast `fastffn prepare` is against the tokenizers library alone, with the same threads.

    python benchmarks/prepare_throughput.py [--text FILE] [--tokenizer SPEC] [--threads N]

Both sides start from the file on the disk. The library side reads it, encodes it by
`encode_batch_fast` in portions of whole lines (its own threads, the same number of them; portions
of the size that was fastest) and does not even ask for the ids; ours is the whole command: reading,
cutting, encoding, writing and publishing the token files. The two alternate, so that a change of
the machine's speed touches both; the ratio is taken a pair at a time. Scaling is the whole command
with one worker over the one with as many as there are threads, in the same round. Without --text a
text of random words is generated from --seed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine
from benchmarks.rivals.contestant import ratio
from benchmarks.tables import markdown, median_and_middle_half, show, verdict

PORTION_CHARS = 1 << 12
PORTIONS = 256  # of a call
TARGET = 0.8


def main() -> None:
    args = read_arguments()
    # The library reads its number of threads once, before its first batch.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    from fastffn_cli.data.tokenizer import build_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder)
        text_file = args.text or write_text(work_dir / "words.txt", args.megabytes, args.seed)
        # Trained once, so that neither side's time has the training in it.
        build_tokenizer(args.tokenizer, [text_file]).save(work_dir / "tokenizer")
        size = text_file.stat().st_size / 1e6
        times: dict[str, list[float]] = {"library": [], "ours": [], "one worker": []}
        for number in range(args.rounds + 1):
            tokenizer = work_dir / "tokenizer"
            seconds = {
                "library": time_library(text_file, tokenizer),
                "ours": time_prepare(text_file, tokenizer, args.threads),
                "one worker": time_prepare(text_file, tokenizer, 1),
            }
            if number:  # the first round warms caches
                for name, values in times.items():
                    values.append(seconds[name])
    report(args, size, times)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a .txt file (default: generated words)")
    parser.add_argument("--tokenizer", default="train:8000")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def write_text(file: Path, megabytes: int, seed: int) -> Path:
    """Write random words with the skewed frequencies of natural text."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 11))) for _ in range(30_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    with file.open("w", encoding="utf-8") as stream:
        while stream.tell() < megabytes * 1_000_000:
            line = rng.choices(words, weights, k=rng.randint(5, 120))
            stream.write(" ".join(line).capitalize() + ".\n")
    return file


def time_library(text_file: Path, tokenizer_dir: Path) -> float:
    import tokenizers

    engine = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    started = time.perf_counter()
    batch: list[str] = []
    portion: list[str] = []
    chars = 0
    with text_file.open(encoding="utf-8") as stream:
        for line in stream:
            portion.append(line)
            chars += len(line)
            if chars >= PORTION_CHARS:
                batch.append("".join(portion))
                portion, chars = [], 0
                if len(batch) >= PORTIONS:
                    engine.encode_batch_fast(batch, add_special_tokens=False)
                    batch = []
    batch.append("".join(portion))
    engine.encode_batch_fast(batch, add_special_tokens=False)
    seconds = time.perf_counter() - started
    del os.environ["TOKENIZERS_PARALLELISM"]
    return seconds


def time_prepare(text_file: Path, tokenizer_dir: Path, workers: int) -> float:
    """Return the seconds of the whole command."""
    from fastffn_cli.data.prepare import Request, prepare

    out_dir = tokenizer_dir.with_name("out")
    started = time.perf_counter()
    prepare(Request((text_file,), out_dir, str(tokenizer_dir), workers=workers))
    seconds = time.perf_counter() - started
    shutil.rmtree(out_dir)
    return seconds


def report(args: argparse.Namespace, size: float, times: dict[str, list[float]]) -> None:
    speeds = {name: size / statistics.median(values) for name, values in times.items()}
    ratios = ratio(times["library"], times["ours"])
    text = args.text.name if args.text else f"generated words, seed {args.seed}"
    row = [
        f"{text}, {size:.1f} MB, {args.tokenizer}",
        f"{speeds['library']:.2f} MB/s",
        f"{speeds['ours']:.2f} MB/s",
        median_and_middle_half(ratios),
        verdict(statistics.median(ratios), TARGET),
        median_and_middle_half(ratio(times["one worker"], times["ours"])),
    ]
    header = (
        *("text and tokenizer", "library alone", "whole command", "ratio", "target"),
        f"{args.threads} workers / 1",
    )
    show(
        markdown(header, [row]),
        f"{machine()}, {args.threads} threads; {args.rounds} rounds, commit {commit()}.",
    )


if __name__ == "__main__":
    main()
