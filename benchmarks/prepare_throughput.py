"""How fast `fastffn prepare` is against the tokenizers library alone, with the same threads.

    python benchmarks/prepare_throughput.py [--text FILE] [--tokenizer SPEC] [--threads N]

Both sides start from the file on the disk. The library side reads it, encodes it by `encode_batch`
in portions of whole lines (its own threads, the same number of them) and throws the ids away; ours
is the whole command: reading, cutting, encoding, writing and publishing the token files. The two
alternate, so that a change of the machine's speed touches both; the ratio is taken a pair at a
time. Without --text a text of random words is generated from --seed.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit

PORTION_CHARS = 1 << 14


def main() -> None:
    args = read_arguments()
    # The library reads its number of threads once, before its first batch.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    from fastffn_cli.data.prepare import Request, prepare
    from fastffn_cli.data.tokenizer import build_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder)
        text_file = args.text or write_text(work_dir / "words.txt", args.megabytes, args.seed)
        # Trained once, so that neither side's time has the training in it.
        build_tokenizer(args.tokenizer, [text_file]).save(work_dir / "tokenizer")
        size = text_file.stat().st_size / 1e6
        ours, theirs = [], []
        for number in range(args.rounds + 1):
            library = time_library(text_file, work_dir / "tokenizer")
            out_dir = work_dir / "out"
            request = Request(
                (text_file,), out_dir, str(work_dir / "tokenizer"), workers=args.threads
            )
            started = time.perf_counter()
            prepare(request)
            whole = time.perf_counter() - started
            shutil.rmtree(out_dir)
            if number:  # the first round warms caches
                ours.append(size / whole)
                theirs.append(size / library)
    report(args, size, ours, theirs)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a .txt file (default: generated words)")
    parser.add_argument("--tokenizer", default="train:8000")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
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
                if len(batch) >= 256:
                    engine.encode_batch(batch, add_special_tokens=False)
                    batch = []
    batch.append("".join(portion))
    engine.encode_batch(batch, add_special_tokens=False)
    seconds = time.perf_counter() - started
    del os.environ["TOKENIZERS_PARALLELISM"]
    return seconds


def report(args: argparse.Namespace, size: float, ours: list[float], theirs: list[float]) -> None:
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    text = args.text or f"generated words, seed {args.seed}"
    lines = [
        f"text       {text} ({size:.1f} MB), tokenizer {args.tokenizer}",
        f"machine    {platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}, commit {commit()}",
        f"threads    {args.threads}, {args.rounds} pairs of runs",
        f"library    {statistics.median(theirs):.2f} MB/s (encode_batch alone)",
        f"prepare    {statistics.median(ours):.2f} MB/s (whole command)",
        f"ratio      {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
