"""The protocol by which the engine knows a task: a model, a loss, a weight and metrics.

It stands apart from the tasks so that the engine can be typed against it without knowing any task
by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from paddle import Tensor, nn

    from fastffn_cli.data.dataset import Batch


class Task(Protocol):
    """What `fit` trains and evaluates.

    Losses are sums, not means: a step that is cut into micro batches adds their losses and divides
    once by the sum of their weights, so masks make no difference to accumulation.
    """

    name: str
    model: nn.Layer

    def loss(self, batch: Batch, valid: float = 1.0) -> Tensor:
        """Return the SUM of the losses of the batch's valid tokens, over `valid`: float32, 0-d.

        It is `score(run_model(batch), batch, valid)`: two halves, for models that are spread over
        processes of which only some see the end. A divisor that is known here costs nothing; one
        that comes later is a pass over the head's gradient.
        """

    def run_model(self, batch: Batch) -> Tensor:
        """Return the model's last hidden states for the batch, as its head takes them."""

    def score(self, outputs: Tensor, batch: Batch, valid: float = 1.0) -> Tensor:
        """Return the loss, over `valid`, of what `run_model` returned for the batch."""

    def penalty(self, batch: Batch) -> Tensor | None:
        """Return what the model itself adds to the objective of the batch just given to `loss`.

        A sum, as the loss, to be divided by the same weight; None where it adds nothing. It is
        trained and not reported.
        """

    def begin_step(self, share: float, seed: int) -> None:
        """Prepare the model for a training step: `share` of the run is done, 0 to 1.

        `seed` is the step's own, the same when a run is resumed.
        """

    def weight(self, batch: Batch) -> float:
        """Return the number of valid tokens: what `loss` is to be divided by."""

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Name what a mean loss stands for, e.g. {"ppl": 12.3}; the loss itself is not repeated."""


# What a command hands to the engine: from a model to the task that trains or measures it.
TaskFactory: TypeAlias = "Callable[[nn.Layer], Task]"
