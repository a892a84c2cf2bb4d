"""A long run of `fastffn pretrain`: does it grow, leave files open, or become slower?

    python benchmarks/soak.py [--steps N] [--seed N]

A tiny model is trained for many steps with a checkpoint, an evaluation and a log line every so
often, in a process of its own that is watched from outside: resident memory, open files, threads.
The table compares the first and the last tenth of the steps (the very first steps, in which
everything is made, are left out); a step's seconds are those of the run's own log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from benchmarks.provenance import commit, machine
from benchmarks.tables import markdown, show

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_S = 0.02
CHECKPOINTS = 20
LOG_LINES = 1000


@dataclass(frozen=True)
class Sample:
    """The process as it was when its newest log line told of `step`."""

    step: int
    resident: int
    files: int
    threads: int


def main() -> None:
    args = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        samples, records = train(Path(folder), args)
    report(samples, records, args)


def train(folder: Path, args: argparse.Namespace) -> tuple[list[Sample], list[dict[str, Any]]]:
    """Run the program to its end; return what was seen of it and its metrics."""
    data_dir = write_data(folder, args.seed)
    every = max(1, args.steps // CHECKPOINTS)
    overrides = {
        "Data.dataset.input_dir": data_dir,
        "Engine.save_load.output_dir": folder / "run",
        "Engine.max_steps": args.steps,
        "Engine.logging_freq": max(1, args.steps // LOG_LINES),
        "Engine.eval_freq": every,
        "Engine.eval_iters": 2,
        "Engine.save_load.save_steps": every,
        "Engine.save_load.keep_last": 2,
        "Model.hidden_size": 64,
        "Model.num_layers": 2,
        "Data.dataset.max_seq_len": 64,
        "Data.batch_size.global_batch_size": 4,
        "Data.batch_size.micro_batch_size": 2,
        "Global.seed": args.seed,
    }
    words = [word for key, value in overrides.items() for word in ("-o", f"{key}={value}")]
    metrics, talk = folder / "run" / "metrics.jsonl", folder / "talk.txt"
    with talk.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastffn_cli", "pretrain", "-c", "demo", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
        )
    samples = list(watch(process, metrics))
    if process.wait():
        told = talk.read_text(encoding="utf-8")
        raise RuntimeError(f"training ended with exit code {process.returncode}:\n{told}")
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return samples, [json.loads(line) for line in lines]


def watch(process: subprocess.Popen[bytes], metrics: Path) -> Any:
    """Yield samples until the process ends."""
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        step = newest_step(metrics)
        try:
            with seen.oneshot():
                sample = Sample(step, seen.memory_info().rss, seen.num_fds(), seen.num_threads())
        except psutil.NoSuchProcess:
            return
        if step:
            yield sample
        time.sleep(SAMPLE_S)


def newest_step(metrics: Path) -> int:
    """Return the step of the newest whole log line, 0 before the first."""
    if not metrics.is_file():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("event") == "train":
            return int(record["step"])
    return 0


def report(samples: list[Sample], records: list[dict[str, Any]], args: argparse.Namespace) -> None:
    tenth = args.steps / 10
    # The first hundredth makes everything that a run needs.
    first = [each for each in samples if args.steps / 100 < each.step <= tenth]
    # Behind the last step the curve is drawn: another work than training.
    last = [each for each in samples if args.steps - tenth < each.step < args.steps]
    if not (first and last):
        raise SystemExit(f"{args.steps} steps are over before they can be watched: more --steps")
    early = step_seconds(records, args.steps / 100, tenth)
    late = step_seconds(records, args.steps - tenth, args.steps)
    mib = 1 << 20
    peak = max(each.resident for each in samples) / mib
    resident = [statistics.median(each.resident for each in part) / mib for part in (first, last)]
    files = [statistics.median_low([each.files for each in part]) for part in (first, last)]
    threads = [statistics.median_low([each.threads for each in part]) for part in (first, last)]
    rows = [
        ["resident memory", *(f"{value:.1f} MiB" for value in resident),
         f"{resident[1] - resident[0]:+.1f} MiB"],
        ["open files", *map(str, files), f"{files[1] - files[0]:+d}"],
        ["threads", *map(str, threads), f"{threads[1] - threads[0]:+d}"],
        ["a step", f"{1e3 * early:.2f} ms", f"{1e3 * late:.2f} ms", f"{late / early:.3f} times"],
    ]  # fmt: skip
    show(
        markdown(("", "first tenth", "last tenth", "change"), rows),
        f"{args.steps} steps with {CHECKPOINTS} checkpoints and evaluations, a log line every "
        f"{max(1, args.steps // LOG_LINES)}; peak {peak:.0f} MiB. {machine()}, seed {args.seed}, "
        f"commit {commit()}.",
    )


def step_seconds(records: list[dict[str, Any]], after: float, until: float) -> float:
    """Return the median seconds of a step in a part of the run, by its own log."""
    return statistics.median(
        record["step_s"]
        for record in records
        if record["event"] == "train" and after < record["step"] <= until
    )


def write_data(folder: Path, seed: int) -> Path:
    """Prepare a text of random words."""
    from fastffn_cli.data.prepare import Request, prepare

    source = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(2000)]
    lines = [" ".join(source.choices(words, k=40)) for _ in range(3000)]
    (folder / "words.jsonl").write_text(
        "\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8"
    )
    prepare(Request((folder / "words.jsonl",), folder / "data", "bytes"))
    return folder / "data"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1024)
    return parser.parse_args()


if __name__ == "__main__":
    main()
