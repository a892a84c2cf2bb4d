"""Learning rate as a pure function of the step: nothing to save, nothing to drift on resume.

The cosine is FleetX's (`fleetx/optim/lr_scheduler.py`, August 2022), to the digit of its log;
`mindspore_cosine` is the original FastFFN's (`LearningRate` of its trainer, `use_cosine`);
`polynomial` and `cosine_restarts` are MindFormers' (r0.3, `mindformers/core/lr/lr_schedule.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastffn_cli.config.schema_training import LearningRate

MINDSPORE_COSINE = "mindspore_cosine"


@dataclass(frozen=True)
class Schedule:
    """Learning rates of a run: `schedule(step)` with the first update at step 1.

    With w warm-up and n decay steps, t = step - 1 + count_from and p = (t - w) / (n - w):
        t <= w       max_lr * t / w
        t > n        min_lr (all but constant)
        else cosine  min_lr + (max_lr - min_lr) * (cos(pi p) + 1) / 2
             linear  max_lr + (min_lr - max_lr) * p
             constant  max_lr, for ever
             polynomial  min_lr + (max_lr - min_lr) * (1 - p) ** power
             cosine_restarts  as cosine, with the fraction of num_cycles * p for p

    `mindspore_cosine` counts from 0, t = step - 1, and its cosine from there too, not from the end
    of the warm-up, where it jumps:
        t < w        max_lr * t / w
        else         min_lr + (max_lr - min_lr) * (1 + cos(pi min(t, n) / n)) / 2
    """

    name: str
    max_lr: float
    min_lr: float
    warmup_steps: float
    decay_steps: int
    power: float = 1.0
    num_cycles: float = 0.5
    count_from: int = 1

    def __call__(self, step: int) -> float:
        """Learning rate of update `step` (1-based)."""
        if self.name == MINDSPORE_COSINE:
            return self._mindspore_cosine(step - 1)
        count = step - 1 + self.count_from
        if self.warmup_steps and count <= self.warmup_steps:
            return self.max_lr * count / self.warmup_steps
        if self.name == "constant":
            return self.max_lr
        if count > self.decay_steps:
            return self.min_lr
        progress = (count - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        return SHAPES[self.name](progress, self)

    def _mindspore_cosine(self, count: int) -> float:
        if count < self.warmup_steps:
            return self.max_lr * count / self.warmup_steps
        return _cosine(min(count, self.decay_steps) / self.decay_steps, self)


def _cosine(progress: float, at: Schedule) -> float:
    return at.min_lr + 0.5 * (math.cos(math.pi * progress) + 1.0) * (at.max_lr - at.min_lr)


def _linear(progress: float, at: Schedule) -> float:
    return at.max_lr + (at.min_lr - at.max_lr) * progress


def _polynomial(progress: float, at: Schedule) -> float:
    return at.min_lr + (at.max_lr - at.min_lr) * (1.0 - progress) ** at.power


def _cosine_restarts(progress: float, at: Schedule) -> float:
    if progress == 1.0:
        return at.min_lr
    return _cosine(at.num_cycles * progress % 1.0, at)


SHAPES: dict[str, Callable[[float, Schedule], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "polynomial": _polynomial,
    "cosine_restarts": _cosine_restarts,
}


def build_schedule(lr: LearningRate, max_steps: int) -> Schedule:
    """Make the schedule of the `Optimizer.lr` section for a run of `max_steps` updates."""
    decay_steps = lr.decay_steps if lr.decay_steps is not None else max_steps
    if lr.warmup_steps is not None:
        warmup_steps: float = lr.warmup_steps
    else:
        # FleetX keeps the product unrounded: 0.01 of 360000 steps is 3600 exactly, other rates
        # give a warm-up that ends between two steps.
        warmup_steps = lr.warmup_rate * decay_steps
        if lr.name == MINDSPORE_COSINE or lr.count_from == 0:
            warmup_steps = int(warmup_steps)
    return Schedule(
        lr.name,
        lr.max_lr,
        lr.min_lr,
        warmup_steps,
        decay_steps,
        power=lr.power,
        num_cycles=lr.num_cycles,
        count_from=lr.count_from,
    )
