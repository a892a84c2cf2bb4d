"""Dividing along time what lies between the split layers of a model: sequence parallelism.

Korthikanti et al. 2022 (arXiv:2205.05198): of the residual stream, with its norms, its dropout and
its sums, each tensor parallel process has the steps of its own part of time, which takes as many
times less room. The sequence is divided behind the embeddings and joined before the head;
attentions and feed-forwards, which see all of it, gather and divide it themselves
(`split_linear.SlicedLinear`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from paddle import Tensor, nn

from fastffn_cli.distributed import exchanges
from fastffn_cli.distributed.random_streams import RandomStream
from fastffn_cli.distributed.split_linear import TIME
from models.gpt import GPT, DecoderLayer

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis


def divide_time(model: GPT, axis: Axis) -> list[Callable[[], None]]:
    """Leave to this process its part of time between the layers; return what undoes it.

    Hidden dropout draws numbers of the process's own: elsewhere they are for other steps. The
    gradients of embeddings and head are those of all of time; everyone has the same.
    """

    def divide(layer: nn.Layer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x_BTD,) = inputs
        return (exchanges.divide(x_BTD, axis, TIME),)

    def gather(layer: nn.Layer, inputs: Any, x_BTD: Tensor) -> Tensor:
        return exchanges.join(x_BTD, axis, TIME)

    hooks = [
        model.dropout.register_forward_pre_hook(divide),
        model.norm.register_forward_post_hook(gather),
    ]
    for dropout in (model.dropout, *_dropouts(model)):
        hooks += _draw_apart(dropout, axis)
    return [hook.remove for hook in hooks]


def summed_names(model: GPT, dimensions: Collection[str]) -> frozenset[str]:
    """Name the parameters that are whole in every process, and of which it sees a part of time.

    `dimensions` has those that are split. What a process has of the gradients are summands.
    """
    return frozenset(
        name
        for name, _ in model.named_parameters()
        if name not in dimensions and name.startswith(("layers.", "norm."))
    )


def _dropouts(model: GPT) -> Iterator[nn.Layer]:
    for layer in model.layers:
        if isinstance(layer, DecoderLayer):  # else another stage has it
            yield from (layer.dropout1, layer.dropout2)


def _draw_apart(dropout: nn.Layer, axis: Axis) -> list[Any]:
    stream = RandomStream(axis.index)

    def drops() -> bool:
        return dropout.training and dropout.p > 0

    def begin(layer: nn.Layer, inputs: Any) -> None:
        if drops():
            stream.begin()

    def end(layer: nn.Layer, inputs: Any, output: Any) -> None:
        if drops():
            stream.end()

    return [dropout.register_forward_pre_hook(begin), dropout.register_forward_post_hook(end)]
