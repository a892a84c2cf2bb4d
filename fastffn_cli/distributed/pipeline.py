"""Pipeline parallel passes: each process runs the layers of its stage and hands tensors on.

Every process reads the same micro batches; the loss is computed where the head is, on the last
stage. Activations and their gradients go from stage to stage by an all-gather among two neighbours,
which runs on gloo as well as on NCCL and XCCL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import paddle
from paddle import Tensor

from fastffn_cli.distributed.gradients import sum_gradients
from fastffn_cli.distributed.mesh import Axis
from fastffn_cli.distributed.pipeline_schedule import (
    Backward,
    Exchange,
    Forward,
    Neighbour,
    plan_evaluation,
    plan_training,
)
from fastffn_cli.distributed.pipeline_stage import Stage

if TYPE_CHECKING:
    from fastffn_cli.data.dataset import Batch
    from fastffn_cli.engine.precision import Precision
    from fastffn_cli.tasks.task import Task


class Pipeline:
    """Runs micro batches through the stages along `axis`; the task's model is this process's.

    Between stages a process has one of `slices` parts of time (sequence parallelism), or all of it.
    """

    def __init__(self, axis: Axis, task: Task, precision: Precision, *, slices: int = 1) -> None:
        self.axis, self.task, self.precision, self.slices = axis, task, precision, slices
        self._links = _link_neighbours(axis)
        ends = tuple(dict.fromkeys((axis.ranks[0], axis.ranks[-1])))
        self._ends = Axis("ends", ends, int(axis.index > 0))

    @property
    def stage(self) -> Stage:
        """The model of this process."""
        return cast("Stage", self.task.model)

    def accumulate_gradients(self, micro_batches: Iterable[Batch], valid: float) -> float:
        """Add this stage's gradients of a step, times the loss scale; return the step's loss.

        The losses of all micro batches are divided by `valid`; their sum is the same on all stages.
        The table of the tokens has, at both ends, the gradient of the two together.
        """
        micro_batches = list(micro_batches)
        flow = _Flow(self, micro_batches, valid)
        for action in plan_training(self.axis.size, self.axis.index, len(micro_batches)):
            flow.run(action)
        if table := self.stage.table:
            sum_gradients(list(table.values()), self._ends)
        return sum(self._share_losses(flow))

    def evaluate(self, batches: Iterable[Batch]) -> list[float]:
        """Return the sum of the losses of each batch's tokens, the same on all stages."""
        batches = list(batches)
        flow = _Flow(self, batches, 1.0)
        with paddle.no_grad():
            for action in plan_evaluation(self.axis.size, self.axis.index, len(batches)):
                flow.run(action)
        return self._share_losses(flow)

    def swap(self, neighbour: Neighbour, sent: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Give a neighbour a tensor (None: nothing) and return its own.

        Both sides name the same `shape`, to which rows of zeros are added. All is float32, which is
        what the residual stream is under AMP, too: Paddle's O2 looks embeddings up in float32.
        """
        if sent is None:
            sent = paddle.zeros(shape, "float32")
        elif missing := shape[0] - sent.shape[0]:
            sent = paddle.concat([sent, paddle.zeros([missing, *shape[1:]], "float32")])
        both = self._links[neighbour].all_gather(sent)
        return both[shape[0] :] if neighbour == "next" else both[: shape[0]]

    def _share_losses(self, flow: _Flow) -> list[float]:
        if flow.count == 0:  # on all stages alike
            return []
        losses = paddle.stack(flow.losses) if flow.losses else paddle.zeros([flow.count], "float32")
        return [float(loss) for loss in self.axis.all_sum(losses).numpy()]


@dataclass
class _UnderWay:
    """What a backward pass starts from, and the stage's input whose gradient it leads to."""

    outputs: list[Tensor]
    received: Tensor | None


class _Flow:
    """The micro batches of a step on their way through one stage."""

    def __init__(self, pipeline: Pipeline, micro_batches: Sequence[Batch], valid: float) -> None:
        self.losses: list[Tensor] = []
        self._pipeline, self._micro_batches, self._valid = pipeline, micro_batches, valid
        self._arrived: Mapping[Neighbour, dict[int, Tensor]] = {"previous": {}, "next": {}}
        self._leaving: Mapping[Neighbour, dict[int, Tensor]] = {"previous": {}, "next": {}}
        self._under_way: dict[int, _UnderWay] = {}

    @property
    def count(self) -> int:
        """How many micro batches there are."""
        return len(self._micro_batches)

    def run(self, action: Forward | Backward | Exchange) -> None:
        """Do what the schedule says."""
        match action:
            case Forward(number):
                self._forward(number)
            case Backward(number):
                self._backward(number)
            case Exchange():
                self._exchange(action)

    def _forward(self, number: int) -> None:
        task, precision = self._pipeline.task, self._pipeline.precision
        stage, micro = self._pipeline.stage, self._micro_batches[number]
        received = self._arrived["previous"].pop(number, None)
        stage.received = received
        with precision.autocast():
            outputs = task.run_model(micro)
            loss = task.score(outputs, micro, self._valid) if stage.is_last else None
            penalty = task.penalty(micro) if paddle.is_grad_enabled() else None
        stage.received = None
        roots = []
        if loss is None:
            roots.append(outputs.astype("float32"))
            self._leaving["next"][number] = roots[0].detach()
        else:
            self.losses.append(loss.detach())
            roots.append(precision.scale(loss))
        if penalty is not None:
            roots.append(precision.scale(penalty / self._valid))
        if paddle.is_grad_enabled():
            self._under_way[number] = _UnderWay(roots, received)

    def _backward(self, number: int) -> None:
        under_way = self._under_way.pop(number)
        # The gradient of what went on to the next stage; losses begin with 1.
        gradients = [None] * len(under_way.outputs)
        gradients[0] = self._arrived["next"].pop(number, None)
        paddle.autograd.backward(under_way.outputs, gradients)
        if under_way.received is not None:
            self._leaving["previous"][number] = under_way.received.grad

    def _exchange(self, exchange: Exchange) -> None:
        neighbour, receives = exchange.neighbour, exchange.receives
        leaving = None
        if exchange.sends is not None:
            leaving = self._leaving[neighbour].pop(exchange.sends)
        rows = max(self._rows(number) for number in (exchange.sends, receives))
        length = self._micro_batches[0].tokens_BS.shape[1] // self._pipeline.slices
        shape = [rows, length, self._pipeline.stage.config.hidden_size]
        arrived = self._pipeline.swap(neighbour, leaving, shape)
        if receives is not None:
            arrived = arrived[: self._rows(receives)]
            arrived.stop_gradient = neighbour == "next"
            self._arrived[neighbour][receives] = arrived

    def _rows(self, number: int | None) -> int:
        return 0 if number is None else self._micro_batches[number].size


def _link_neighbours(axis: Axis) -> dict[Neighbour, Axis]:
    """Return this stage and each neighbour it has, earlier one first, as axes of two."""
    links: dict[Neighbour, Axis] = {}
    if axis.index > 0:
        links["previous"] = Axis("neighbours", axis.ranks[axis.index - 1 : axis.index + 1], 1)
    if axis.index < axis.size - 1:
        links["next"] = Axis("neighbours", axis.ranks[axis.index : axis.index + 2], 0)
    return links
