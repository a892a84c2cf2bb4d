"""How fast a checkpoint is saved and read, against the disk's own rate.

    python benchmarks/checkpoint_speed.py [--rounds N] [--layers L] [--hidden D] [--vocab V]
                                          [--folder DIR] [--seed N]

Ours is what training does at a save, from the model and optimizer in memory: a check that all
weights are finite, copies, both safetensors files, the sha256 of every file, fsync, rename. The
disk's rate is that of writing as many bytes from one buffer into two files of the same sizes and
syncing them. Read back are the weights, as `eval` and `generate` do (with their checksum), and
weights and optimizer, as `pretrain --resume` does, against reading the same files into one buffer;
before each reading the system is told to forget what it has of them. Ours and the plain way
alternate on the same disk, twice in a round, and each comes first once; the ratio is that of a
round's means, the median over the rounds with its middle half.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine
from benchmarks.rivals.contestant import ratio
from benchmarks.tables import markdown, median_and_middle_half, show, verdict

TARGET = 0.7
BUFFER_BYTES = 16 << 20


def main() -> None:
    args = read_arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpoint, plain = Path(folder) / "checkpoint", Path(folder) / "plain"
        save, load, resume = prepare(checkpoint, args)
        save()
        files = sorted(checkpoint.glob("*.safetensors"))
        sizes = [file.stat().st_size for file in files]
        weights = [file for file in files if file.stem == "model"]
        # What is timed, the plain way, and whether it needs the files to be off the memory.
        pairs: dict[str, tuple[Callable[[], None], Callable[[], None], list[Path]]] = {
            "saving": (save, lambda: write_plainly(plain, sizes), []),
            "reading the weights": (load, lambda: read_plainly(weights), weights),
            "reading all to go on": (resume, lambda: read_plainly(files), files),
        }
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
        for number in range(args.rounds + 1):
            for name, (ours, plainly, cold) in pairs.items():
                # Each comes first once in a round: who comes second finds the disk tired.
                seconds = [0.0, 0.0]
                for which in (0, 1, 1, 0):
                    if name == "saving":
                        shutil.rmtree((plain, checkpoint)[which], ignore_errors=True)
                    os.sync()
                    forget(cold)
                    seconds[which] += seconds_of((plainly, ours)[which]) / 2
                if number:  # the first round has the disk's and the memory's first use in it
                    for values, mean in zip(times[name], seconds, strict=True):
                        values.append(mean)
        bytes_of = {name: sum(each.stat().st_size for each in cold or files)
                    for name, (_, _, cold) in pairs.items()}  # fmt: skip
    report(args, bytes_of, times)


def prepare(folder: Path, args: argparse.Namespace) -> tuple[Callable[[], None], ...]:
    """Train a model for one update; return what saves it, loads it and goes on with it."""
    from fastffn_cli.config.load import default_config
    from fastffn_cli.engine.device import use_device

    device = use_device("cpu")
    import numpy as np

    from fastffn_cli.engine.checkpoint import (
        load_model,
        model_tensors,
        read_checkpoint,
        set_weights,
        write_checkpoint,
    )
    from fastffn_cli.engine.model import gpt_config
    from fastffn_cli.engine.timing import Arm, synthetic_batches

    config = default_config(
        [
            f"Model.num_layers={args.layers}",
            f"Model.hidden_size={args.hidden}",
            f"Model.num_attention_heads={max(1, args.hidden // 64)}",
            f"Model.vocab_size={args.vocab}",
            "Model.ffn.kind=dense",
            "Data.dataset.max_seq_len=16",
            "Data.batch_size.local_batch_size=1",
            "Data.batch_size.micro_batch_size=1",
            f"Global.seed={args.seed}",
        ]
    ).config
    arm = Arm(config, gpt_config(config), device)
    arm.seconds(synthetic_batches(config, 1))

    def save() -> None:
        tensors = model_tensors(arm.model)
        assert all(np.isfinite(array).all() for array in tensors.values())
        write_checkpoint(
            folder,
            config=config,
            trainer={"step": 1},
            tensors=tensors,
            optimizer_state=arm.optimizer.state(),
        )

    def resume() -> None:
        checkpoint = read_checkpoint(folder, checksums=False)
        set_weights(arm.model, checkpoint.weights(), folder)
        arm.optimizer.load_state(checkpoint.optimizer_state())

    return save, lambda: load_model(folder), resume


def write_plainly(folder: Path, sizes: list[int]) -> None:
    """Write files of these sizes and wait until they are on the disk."""
    folder.mkdir()
    buffer = memoryview(os.urandom(BUFFER_BYTES))
    for number, size in enumerate(sizes):
        with (folder / str(number)).open("wb") as file:
            for start in range(0, size, BUFFER_BYTES):
                file.write(buffer[: min(BUFFER_BYTES, size - start)])
            file.flush()
            os.fsync(file.fileno())


def read_plainly(files: list[Path]) -> None:
    """Read files from their beginning to their end, into one buffer."""
    buffer = bytearray(BUFFER_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def forget(files: list[Path]) -> None:
    """Tell the system to drop what it keeps of these files in memory."""
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of(action: Callable[[], None]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def report(
    args: argparse.Namespace,
    sizes: dict[str, int],
    times: dict[str, tuple[list[float], list[float]]],
) -> None:
    rows = []
    for name, (plain, ours) in times.items():
        ratios = ratio(plain, ours)
        speeds = (f"{sizes[name] / 1e6 / statistics.median(each):,.0f} MB/s"
                  for each in (plain, ours))  # fmt: skip
        rows.append(
            [
                f"{name}, {sizes[name] / 1e6:.0f} MB",
                *speeds,
                median_and_middle_half(ratios),
                verdict(statistics.median(ratios), TARGET),
            ]
        )
    header = ("checkpoint", "the plain way", "ours", "ratio", "target")
    show(
        markdown(header, rows),
        f"{machine()}; {args.rounds} rounds, seed {args.seed}, commit {commit()}.",
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (
        ("rounds", 8), ("layers", 6), ("hidden", 768), ("vocab", 8192), ("seed", 1024)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write (default: TMPDIR)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
