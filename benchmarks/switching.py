"""What the criteria for the end of stage 1 cost, in updates of stage 1.

    python benchmarks/switching.py [--rounds N] [--fork-steps N] [-c CONFIG] [-o KEY=VALUE]

Every round makes some updates of stage 1 and one of each measurement in turn, so that a change of
the machine's speed touches all. What is printed are medians of the rounds' ratios, and what share
they add to stage 1 at several values of `Schedule.check_freq`. `slope` costs as much as `fork`
where it forks at every question, and its fit alone where stage 1 is ahead.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_overhead import write_data
from benchmarks.provenance import commit

UPDATES = 10
FREQUENCIES = (100, 300, 1000, 3000)


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device(args.device)
    import paddle

    with tempfile.TemporaryDirectory() as folder:
        data_dir = write_data(Path(folder), args.seed)
        ratios, ratio = measure(open_session(data_dir, Path(folder) / "run", args), args)
    lines = [f"{'':28}{'updates':>9}  added at check_freq " + "".join(
        f"{freq:>8}" for freq in FREQUENCIES
    )]  # fmt: skip
    for name, updates in ratios.items():
        shares = "".join(f"{updates / freq:>8.1%}" for freq in FREQUENCIES)
        lines.append(f"{name:28}{updates:9.2f}  {'':21}{shares}")
    lines.append(f"a dense update takes {ratio:.2f} updates of stage 1")
    lines.append(
        f"{args.config}, {device.describe()}, paddle {paddle.__version__}, python "
        f"{platform.python_version()}, {args.rounds} rounds, seed {args.seed}, commit {commit()}"
    )
    sys.stdout.write("\n".join(lines) + "\n")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-c", "--config", default="demo")
    parser.add_argument("-o", "--override", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fork-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def open_session(data_dir: Path, run_dir: Path, args: argparse.Namespace) -> Any:
    """A run of the configuration at its first step."""
    from fastffn_cli.config.load import load_config
    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.training import build_session
    from fastffn_cli.tasks.causal_lm import CausalLM

    resolved = load_config(
        args.config,
        [
            f"Data.dataset.input_dir={data_dir}",
            f"Engine.save_load.output_dir={run_dir}",
            *(f"Global.seed={args.seed}", "Engine.max_steps=100000", "Data.dataset.split=1"),
            *("Engine.eval_freq=0", "Schedule.switch=fork"),
            *args.override,
        ],
    )
    blueprint = draw_blueprint(resolved, use_device(args.device), stage="pretrain")
    return build_session(blueprint, CausalLM)


def measure(session: Any, args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Durations of the measurements, and of a dense update, over that of a stage-1 update."""
    from fastffn_cli.engine.loss_curve import MOST_POINTS, LossCurve
    from fastffn_cli.engine.switch_probes import fork_dense, held_out_loss, probe_gradients

    curve = LossCurve()
    for step in range(1, MOST_POINTS):
        curve.add(step, 4.0 + step**-0.5)
    work: dict[str, Callable[[], Any]] = {
        f"fork, {args.fork_steps} dense steps": lambda: (
            fork_dense(session, args.fork_steps),
            held_out_loss(session),
        ),
        "slope, ahead of dense": curve.fall_per_step,
        "blocked": lambda: probe_gradients(session),
    }
    update(session, 3)
    ratios: dict[str, list[float]] = {name: [] for name in work}
    dense: list[float] = []
    try:
        for _ in range(args.rounds):
            step_s = statistics.median(update(session, UPDATES))
            for name, task in work.items():
                begun = time.perf_counter()
                done = task()
                ratios[name].append((time.perf_counter() - begun) / step_s)
                if name.startswith("fork"):
                    dense.append(done[0].step_s / step_s)
    finally:
        session.run.close()
    return {name: statistics.median(each) for name, each in ratios.items()}, statistics.median(
        dense
    )


def update(session: Any, steps: int) -> list[float]:
    """Make updates of stage 1; seconds of each."""
    from fastffn_cli.engine.step import TrainStep

    train_step = TrainStep(
        session.task,
        session.optimizer,
        session.precision,
        micro_batch_size=session.config.Data.batch_size.micro_batch_size,
        grad_clip=session.config.Optimizer.grad_clip,
    )
    seconds, progress, size = [], session.progress, session.plan.batch_size
    session.task.model.train()
    for _ in range(steps):
        batch = session.train.batch(progress.cursor, size)
        begun = time.perf_counter()
        train_step(batch, session.learning_rate(progress.step + 1))
        seconds.append(time.perf_counter() - begun)
        progress.step, progress.cursor = progress.step + 1, progress.cursor + size
    return seconds


if __name__ == "__main__":
    main()
