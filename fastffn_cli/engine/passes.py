"""Forward and backward passes of one process that holds the whole depth of the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import paddle
from paddle import Tensor

from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.precision import Precision
from fastffn_cli.tasks.task import Task


class Passes(Protocol):
    """How micro batches go through the model: here, or from stage to stage of a pipeline."""

    def accumulate_gradients(self, micro_batches: Iterable[Batch], valid: float) -> float:
        """Add the gradients of losses over `valid`, times the loss scale; return their sum."""

    def evaluate(self, batches: Iterable[Batch]) -> list[float]:
        """Return the sum of the losses of each batch's tokens; no gradients."""


class WholePasses:
    """`Passes` through a model that is all here."""

    def __init__(self, task: Task, precision: Precision) -> None:
        self.task, self.precision = task, precision

    def accumulate_gradients(self, micro_batches: Iterable[Batch], valid: float) -> float:
        """Add the gradients of losses over `valid`, times the loss scale; return their sum."""
        total: Tensor | None = None
        for micro in micro_batches:
            with self.precision.autocast():
                loss = self.task.loss(micro, valid)
                penalty = self.task.penalty(micro)
            objective = loss if penalty is None else loss + penalty / valid
            self.precision.scale(objective).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None, "a step has at least one micro batch"
        return float(total.item())

    def evaluate(self, batches: Iterable[Batch]) -> list[float]:
        """Return the sum of the losses of each batch's tokens; no gradients."""
        losses = []
        with paddle.no_grad():
            for batch in batches:
                with self.precision.autocast():
                    losses.append(float(self.task.loss(batch).item()))
        return losses
