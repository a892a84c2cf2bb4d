"""How long commands take before they do their work, on this machine.

    python benchmarks/startup.py [--rounds N] [--layers L] [--hidden D] [--vocab V] [--seed N]

`fastffn --help`, against a limit in seconds. `fastffn generate` of one token, against what it
cannot do without: a process that imports Paddle and reads the file of the weights (from the
system's cache, both). The processes alternate; the ratio is that of a pair, the median over the
rounds with its middle half.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine
from benchmarks.tables import markdown, median_and_middle_half, show, verdict_below

ROOT = Path(__file__).resolve().parents[1]
HELP_LIMIT_S = 0.5
GENERATE_LIMIT = 1.5
BARE = "import sys, paddle; open(sys.argv[1], 'rb').read()"
PROGRAM = (sys.executable, "-m", "fastffn_cli")


def main() -> None:
    args = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        parameters = write_model(checkpoint, args)
        weights = checkpoint / "model.safetensors"
        os.sync()  # what was written is not still being written while commands are timed
        commands = {
            "help": (*PROGRAM, "--help"),
            "bare": (sys.executable, "-W", "ignore", "-c", BARE, str(weights)),
            "generate": (
                *PROGRAM, "generate", "--model", str(checkpoint), "--prompt-ids", "1 2 3",
                "--max-tokens", "1",
            ),
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(args.rounds + 1):
            for name, command in commands.items():
                seconds = time_process(command)
                if number:  # the first round fills the system's cache
                    times[name].append(seconds)
        size = weights.stat().st_size
    report(args, times, parameters, size)


def write_model(folder: Path, args: argparse.Namespace) -> int:
    """Write a checkpoint of random weights; return how many parameters it has."""
    from fastffn_cli.config.load import default_config
    from fastffn_cli.engine.device import use_device

    use_device("cpu")
    from fastffn_cli.engine.checkpoint import model_tensors, write_checkpoint
    from fastffn_cli.engine.model import build_model, gpt_config

    config = default_config(
        [
            f"Model.num_layers={args.layers}",
            f"Model.hidden_size={args.hidden}",
            f"Model.num_attention_heads={max(1, args.hidden // 64)}",
            f"Model.vocab_size={args.vocab}",
            "Model.ffn.kind=dense",
            f"Global.seed={args.seed}",
        ]
    ).config
    tensors = model_tensors(build_model(gpt_config(config), args.seed))
    write_checkpoint(folder, config=config, trainer={"step": 0}, tensors=tensors)
    return sum(array.size for array in tensors.values())


def time_process(command: tuple[str, ...]) -> float:
    """Return the seconds of a process from its start to its end."""
    begun = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return time.perf_counter() - begun


def report(
    args: argparse.Namespace, times: dict[str, list[float]], parameters: int, size: int
) -> None:
    helped = statistics.median(times["help"])
    pairs = [ours / bare for ours, bare in zip(times["generate"], times["bare"], strict=True)]
    rows = [
        ["`fastffn --help`", median_and_middle_half(times["help"]), "", "",
         f"{verdict_below(helped, HELP_LIMIT_S)} s"],
        [f"`fastffn generate` of one token, {parameters / 1e6:.0f} M parameters",
         median_and_middle_half(times["generate"]), median_and_middle_half(times["bare"]),
         median_and_middle_half(pairs), verdict_below(statistics.median(pairs), GENERATE_LIMIT)],
    ]  # fmt: skip
    header = ("command", "seconds", f"import and read of {size / 1e6:.0f} MB, seconds", "ratio",
              "target")  # fmt: skip
    show(
        markdown(header, rows),
        f"{machine()}; {args.rounds} rounds, seed {args.seed}, commit {commit()}.",
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (
        ("rounds", 7), ("layers", 12), ("hidden", 768), ("vocab", 50257), ("seed", 1024)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
