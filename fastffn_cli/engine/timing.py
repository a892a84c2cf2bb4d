"""Seconds of a training step of several models on this machine, interleaved.

Timed is the engine's own `TrainStep` (forward, backward, clip, AdamW) on synthetic tokens, so no
data is needed. A round runs some steps of one model, then as many of the next: whatever slows the
machine down for a while slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.model import build_model
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import settle_precision
from fastffn_cli.engine.step import StepResult, TrainStep
from fastffn_cli.tasks.causal_lm import CausalLM
from models.gpt import GPTConfig

WARM_UP_STEPS = 2
# Multiples of it are spread evenly over [0, 1), however many there are (Weyl's sequence).
GOLDEN_RATIO = 0.6180339887498949


class Timed(Protocol):
    """What can be timed: mean seconds of an update, over one update for each batch."""

    def seconds(self, batches: Sequence[Batch]) -> float:
        """Train on `batches`."""


class Arm:
    """One model with its optimizer, ready to be timed.

    `until` is the share of a run that the model is trained for: what changes with the progress of
    a run (`guided`) is timed evenly over that part.
    """

    def __init__(
        self, config: Config, model_config: GPTConfig, device: Device, *, until: float = 1.0
    ) -> None:
        self.device, self.until = device, until
        self.model = build_model(model_config, config.Global.seed)
        self.model.train()
        self.precision, *_ = settle_precision(config, device)
        self.precision.decorate(self.model)
        self.optimizer = AdamW(
            self.model, config.Optimizer, multi_precision=self.precision.multi_precision
        )
        self._task = CausalLM(self.model)
        self._step = TrainStep(
            self._task,
            self.optimizer,
            self.precision,
            micro_batch_size=config.Data.batch_size.micro_batch_size,
            grad_clip=config.Optimizer.grad_clip,
        )
        self._learning_rate = config.Optimizer.lr.max_lr
        self._made = 0

    def seconds(self, batches: Sequence[Batch]) -> float:
        """Train on `batches`, one update each, and return the mean seconds of an update."""
        self.device.synchronize()
        begun = time.perf_counter()
        for batch in batches:
            self.update(batch)
        self.device.synchronize()
        return (time.perf_counter() - begun) / len(batches)

    def update(self, batch: Batch) -> StepResult:
        """Make one update."""
        self._task.begin_step(self.until * (self._made * GOLDEN_RATIO % 1), self._made)
        self._made += 1
        return self._step(batch, self._learning_rate)


def time_rounds(
    arms: Mapping[str, Timed],
    batches: Mapping[str, Sequence[Batch]],
    *,
    steps: int,
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Mapping[str, float]], str],
) -> dict[str, list[float]]:
    """Return each arm's mean seconds of an update in every round, after a warm-up of all.

    `batches` has at least `max(steps, WARM_UP_STEPS)` for each arm; `say` is told what `show`
    makes of a round.
    """
    for name, arm in arms.items():
        arm.seconds(batches[name][:WARM_UP_STEPS])
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(1, rounds + 1):
        for name, arm in arms.items():
            times[name].append(arm.seconds(batches[name][:steps]))
        latest = {name: values[-1] for name, values in times.items()}
        say(f"round {number}/{rounds}: {show(latest)}")
    return times


def synthetic_batches(config: Config, count: int) -> list[Batch]:
    """Return `count` batches of the configured size with random ids, every position counted."""
    vocabulary = config.Model.vocab_size
    assert vocabulary is not None, "the command resolves Model.vocab_size"
    shape = (batch_size(config), config.Data.dataset.max_seq_len + 1)
    random = np.random.RandomState(config.Global.seed % 2**32)
    batches = []
    for _ in range(count):
        ids = random.randint(0, vocabulary, shape).astype(np.int64)
        mask = np.ones((shape[0], shape[1] - 1), np.float32)
        batches.append(Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), mask))
    return batches


def batch_size(config: Config) -> int:
    """Sequences of one step."""
    size = config.Data.batch_size.local_batch_size
    assert size is not None, "load_config derives it"
    return int(size)
