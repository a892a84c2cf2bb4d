"""A run that is under way: its plan, its progress and everything that its loop works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.distributed.parallelism import ALONE, Parallelism
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.memory import MemoryEstimate
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.run import Bystander, Run
from fastffn_cli.engine.schedule import Schedule
from fastffn_cli.engine.stages import Stages
from fastffn_cli.tasks.task import Task, TaskFactory


@dataclass(frozen=True)
class Plan:
    """What the loop does when."""

    max_steps: int
    batch_size: int
    eval_batch_size: int
    logging_freq: int
    eval_freq: int
    eval_iters: int
    save_steps: int
    keep_last: int
    seed: int


@dataclass
class Progress:
    """How far a run is: updates made, samples read, tokens read."""

    step: int = 0
    cursor: int = 0
    tokens: int = 0


@dataclass
class Session:
    """Everything that `fit` needs, built by `fastffn_cli.engine.training`.

    `planned` is the run's configuration, `config` that of the stage it is in: what a checkpoint
    holds. `make_task` puts a model of another stage to the same task.
    """

    planned: Config
    config: Config
    stages: Stages
    make_task: TaskFactory
    task: Task
    optimizer: AdamW
    precision: Precision
    schedule: Schedule
    train: TokenDataset
    valid: TokenDataset | None
    plan: Plan
    run: Run | Bystander
    device: Device
    memory: MemoryEstimate
    trainer: dict[str, Any]
    tokenizer_dir: Path | None
    continue_command: str
    progress: Progress = field(default_factory=Progress)
    free_memory: int | None = None
    parallelism: Parallelism = ALONE

    def seed_of(self, step: int) -> int:
        """Seed of what is random in one update and the same in all processes."""
        return step_seed(self.plan.seed, step)

    def dropout_seed_of(self, step: int) -> int:
        """Seed of what is random in one update for each sequence: dropout."""
        return step_seed(self.plan.seed, step, self.parallelism.data_index)

    def learning_rate(self, step: int) -> float:
        """Learning rate of one update, for all weights that have no rate of their own."""
        factor = self.stages.learning_rate_factor(step, self.planned.Schedule)
        return self.schedule(step) * factor


def step_seed(seed: int, step: int, data_index: int = 0) -> int:
    """Seed of the random numbers of one update, well mixed over all arguments.

    The first of several processes has the numbers of one alone.
    """
    others = [data_index] if data_index else []
    return int(np.random.SeedSequence([seed, step, *others]).generate_state(1)[0])
