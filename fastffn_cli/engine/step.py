"""One optimizer update: the innermost and most often run lines of the program."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from fastffn_cli.data.dataset import Batch
from fastffn_cli.distributed.parallelism import ALONE, Parallelism
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.errors import Diverged
from fastffn_cli.tasks.task import Task

# A float16 run may overflow now and then: the scaler skips the update and halves its scale. This
# many skips in a row mean that no scale helps.
MAX_SKIPPED = 25


@dataclass(frozen=True)
class StepResult:
    """What one update was: mean loss over the step's valid tokens, gradient norm before clipping.

    `skipped` says that float16 gradients overflowed and the scaler left the weights alone.
    """

    loss: float
    grad_norm: float
    skipped: bool = False


class TrainStep:
    """`step(batch, learning_rate)`: forward and backward by micro batches, clip, update.

    The loss of every micro batch is divided by the valid tokens of the *whole* step, so that any
    division into micro batches gives the same gradient, masks or not. With several processes
    `batch` is what this one reads of the step, and all numbers are those of the whole step.
    """

    def __init__(
        self,
        task: Task,
        optimizer: AdamW,
        precision: Precision,
        *,
        micro_batch_size: int,
        grad_clip: float,
        parallelism: Parallelism = ALONE,
    ) -> None:
        self.task = task
        self.optimizer = optimizer
        self.precision = precision
        self.micro_batch_size = micro_batch_size
        self.grad_clip = grad_clip
        self.parallelism = parallelism
        self.passes = parallelism.passes(task, precision)
        self._skipped_in_a_row = 0

    def __call__(self, batch: Batch, learning_rate: float) -> StepResult:
        """Run one update; raises `Diverged`, before the update, when a number is not finite."""
        loss = self.accumulate_gradients(batch)
        self.precision.unscale(self.optimizer)
        grad_norm = self.parallelism.gradient_norm(self.optimizer)
        finite = math.isfinite(grad_norm) and math.isfinite(loss)
        self.precision.agree(overflowed=not finite)
        if not finite and (self.precision.scaler is None or not math.isfinite(loss)):
            self._raise_diverged(loss)
        clipped = finite and self.grad_clip and grad_norm > self.grad_clip
        factor = self.grad_clip / grad_norm if clipped else 1.0
        self.precision.update(self.optimizer, learning_rate, gradient_factor=factor)
        self.parallelism.share_updates(self.optimizer)
        self.optimizer.clear_gradients()
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise Diverged(
                f"{MAX_SKIPPED} updates in a row overflowed float16",
                hint="Try -o Optimizer.lr.max_lr=... or -o Engine.mix_precision.enable=False",
            )
        return StepResult(loss, grad_norm, skipped=not finite)

    def probe(self, batch: Batch, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return gradients of one step's batch, clipped as an update would see them; no update.

        They are float32, by name; not finite where the step would not have been.
        """
        self.accumulate_gradients(batch)
        self.optimizer.scale_gradients(1.0 / self.precision.loss_scale)
        norm = self.parallelism.gradient_norm(self.optimizer)
        factor = self.grad_clip / norm if self.grad_clip and norm > self.grad_clip else 1.0
        gradients = {
            name: self.optimizer.parameters[name].grad.astype("float32").numpy() * factor
            for name in names
        }
        self.optimizer.clear_gradients()
        return gradients

    def accumulate_gradients(self, batch: Batch) -> float:
        """Add one step's gradients, times the loss scale; return the mean loss of its tokens."""
        (weight,) = self.parallelism.total(self.task.weight(batch))
        loss = self.passes.accumulate_gradients(
            micro_batches(batch, self.micro_batch_size), max(weight, 1.0)
        )
        self.parallelism.sum_gradients(self.optimizer)
        (mean,) = self.parallelism.total(loss)
        return mean

    def _raise_diverged(self, loss: float) -> None:
        culprit = first_not_finite(self.optimizer.parameters)
        self.optimizer.clear_gradients()
        where = f" (first: {culprit})" if culprit else ""
        raise Diverged(f"loss is {loss}, weights were not updated{where}")


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into consecutive micro batches of `size` sequences."""
    rows = batch.tokens_BS.shape[0]
    for start in range(0, rows, size):
        yield batch.slice(start, min(start + size, rows))


def first_not_finite(parameters: Mapping[str, Tensor]) -> str | None:
    """Name the first parameter, in model order, that is not finite itself or by its gradient."""
    for name, parameter in parameters.items():
        if not bool(paddle.isfinite(parameter).all().item()):
            return name
    for name, parameter in parameters.items():
        if parameter.grad is not None and not bool(paddle.isfinite(parameter.grad).all().item()):
            return f"{name}.grad"
    return None
