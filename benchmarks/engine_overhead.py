"""What the training engine costs over a bare loop around the same model.

    python benchmarks/engine_overhead.py [--steps N] [--seed N]

The bare loop has the loss, the gradient clip and AdamW as one would write them by hand with
Paddle's own classes, on batches that are in memory already: no data reading, no metrics, no log, no
checks. The engine is `fit`, whole: it reads the token files, checks for numbers that are not
finite, writes metrics.jsonl and log.txt at every step. The two alternate step by step, so that a
change of the machine's speed touches both; checkpoints and the first steps do not count. The target
is a ratio of at most 1.05.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.tables import markdown, median_and_middle_half, show

TARGET = 1.05
HEADER = ("model", "bare loop, ms a step", "engine, ms a step", "engine / bare", "target")
WARM_UP = 3
SIZES = {
    "demo, low rank": (),
    "demo, dense": ("Model.ffn={kind: dense}",),
    "demo, low rank, 4 x accumulated": ("Data.batch_size.micro_batch_size=4",),
}


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device(args.device)
    kernels = start_kernels(device)
    import paddle

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data_dir = write_data(Path(folder), args.seed)
        for number, (name, overrides) in enumerate(SIZES.items()):
            run_dir = Path(folder) / f"run-{number}"
            engine, bare = measure(data_dir, run_dir, overrides, args)
            rows.append([name, *describe(engine, bare)])
    show(
        markdown(HEADER, rows),
        f"{machine()}; paddle {paddle.__version__}, kernels {kernels}; {args.steps} pairs of steps "
        f"each, seed {args.seed}, commit {commit()}.",
    )


def describe(engine: list[float], bare: list[float]) -> list[str]:
    """Medians in milliseconds, the ratio of pairs with its middle half, and the verdict."""
    pairs = [one / other for one, other in zip(engine, bare, strict=True)]
    return [
        *(f"{1e3 * statistics.median(times):.1f}" for times in (bare, engine)),
        median_and_middle_half(pairs, digits=3),
        f"{'within' if statistics.median(pairs) <= TARGET else 'OVER'} {TARGET}",
    ]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps that count")
    parser.add_argument("--seed", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def write_data(folder: Path, seed: int) -> Path:
    """Prepare a text of random words."""
    from fastffn_cli.data.prepare import Request, prepare

    source = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(2000)]
    file = folder / "words.txt"
    file.write_text(" ".join(source.choices(words, k=200_000)), encoding="utf-8")
    prepare(Request((file,), folder / "data", "bytes"))
    return folder / "data"


def measure(
    data_dir: Path, run_dir: Path, overrides: tuple[str, ...], args: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Seconds of each step by `fit` and by the bare loop that runs between its steps."""
    from fastffn_cli.config.load import load_config
    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.fit import fit
    from fastffn_cli.engine.training import build_session
    from fastffn_cli.tasks.causal_lm import CausalLM

    resolved = load_config(
        "demo",
        [
            f"Data.dataset.input_dir={data_dir}",
            f"Engine.save_load.output_dir={run_dir}",
            f"Engine.max_steps={args.steps + WARM_UP + 1}",
            f"Global.seed={args.seed}",
            *("Engine.eval_freq=0", "Engine.save_load.save_steps=0", "Engine.logging_freq=1"),
            *("Data.dataset.split=1", "Optimizer.lr.name=constant", "Optimizer.lr.warmup_steps=0"),
            *overrides,
        ],
    )
    blueprint = draw_blueprint(resolved, use_device(args.device), stage="pretrain")
    session = build_session(blueprint, CausalLM)
    clock = Alternation(bare_step(blueprint))
    try:
        fit(session, clock)
    finally:
        session.run.close()
    return clock.engine_s[WARM_UP:-1], clock.bare_s[WARM_UP + 1 :]


class Alternation:
    """A view of `fit` that makes one bare step after each of the engine's and times both."""

    def __init__(self, make_bare_step: Callable[[int], None]) -> None:
        self._bare_step = make_bare_step
        self.engine_s: list[float] = []
        self.bare_s: list[float] = []
        self._since = 0.0

    def begin(self, step: int, max_steps: int) -> None:
        self._since = time.perf_counter()

    def step(self, line: str, step: int, loss: float, rate: float | None, eta: Any) -> None:
        reported = time.perf_counter()
        self.engine_s.append(reported - self._since)
        self._bare_step(step - 1)
        self._since = time.perf_counter()
        self.bare_s.append(self._since - reported)

    def note(self, line: str) -> None:
        pass

    def end(self) -> None:
        pass


def bare_step(blueprint: Any) -> Callable[[int], None]:
    """The loop's body as one would write it by hand, with the same model, batches and options."""
    import paddle

    from fastffn_cli.engine.model import build_model
    from fastffn_cli.tasks.causal_lm import CausalLM

    config, size = blueprint.config, blueprint.plan.batch_size
    model = build_model(blueprint.model, config.Global.seed)
    model.train()
    task = CausalLM(model)
    micro = config.Data.batch_size.micro_batch_size
    batches = [blueprint.train.batch(k * size, size) for k in range(blueprint.plan.max_steps)]
    options = config.Optimizer
    optimizer = paddle.optimizer.AdamW(
        learning_rate=options.lr.max_lr,
        beta1=options.adam_beta1,
        beta2=options.adam_beta2,
        epsilon=options.adam_epsilon,
        weight_decay=options.weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(options.grad_clip),
        apply_decay_param_fun=None,
        parameters=model.parameters(),
    )

    def step(number: int) -> None:
        batch = batches[number]
        valid = batch.num_valid
        for first in range(0, size, micro):
            (task.loss(batch.slice(first, first + micro)) / valid).backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


if __name__ == "__main__":
    main()
