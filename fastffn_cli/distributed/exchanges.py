"""What processes exchange inside of a model, forward, and of its gradients, backward.

Each pair is the one that makes gradients right for what stands around it (Megatron-LM's f and g,
Shoeybi et al. 2019, arXiv:1909.08053, and those of Korthikanti et al. 2022, arXiv:2205.05198).
"Alike" is what all processes have the same of, "apart" what differs: parts of a tensor, or
summands of it. They are plain tensors and collective operations of an `Axis`: Paddle's distributed
tensors and its plan API (`paddle.distributed.parallelize`) cannot be resharded on the devices of a
plugin, such as Ascend's, in Paddle 3.3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis

Exchange = Callable[[Tensor], Tensor]


def hand_out(x: Tensor, axis: Axis) -> Tensor:
    """Return `x`, alike, for computing that goes apart: gradients of it are summands."""
    return _Exchange.apply(x, _keep, axis.all_sum)


def add_up(x: Tensor, axis: Axis) -> Tensor:
    """Return the sum of everyone's `x`, for computing that goes alike."""
    return _Exchange.apply(x, axis.all_sum, _keep)


def divide(x: Tensor, axis: Axis, dimension: int) -> Tensor:
    """Return this process's part of `x`, alike; its gradient is joined from everyone's."""
    return _Exchange.apply(
        x, partial(own_part, axis, dimension), partial(join_parts, axis, dimension)
    )


def join(x: Tensor, axis: Axis, dimension: int) -> Tensor:
    """Join everyone's parts, for computing that goes alike."""
    return _Exchange.apply(
        x, partial(join_parts, axis, dimension), partial(own_part, axis, dimension)
    )


def join_to_hand_out(x: Tensor, axis: Axis, dimension: int) -> Tensor:
    """Join everyone's parts, for computing that goes apart: gradients are summands."""
    return _Exchange.apply(
        x, partial(join_parts, axis, dimension), partial(add_up_part, axis, dimension)
    )


def add_up_to_divide(x: Tensor, axis: Axis, dimension: int) -> Tensor:
    """Return this process's part of the sum of everyone's `x`."""
    return _Exchange.apply(
        x, partial(add_up_part, axis, dimension), partial(join_parts, axis, dimension)
    )


def own_part(axis: Axis, dimension: int, x: Tensor) -> Tensor:
    """Cut `x` along a dimension into as many equal parts as there are processes; return ours."""
    return paddle.split(x, axis.size, axis=dimension)[axis.index].contiguous()


def join_parts(axis: Axis, dimension: int, x: Tensor) -> Tensor:
    """Join everyone's part along a dimension."""
    parts = paddle.split(axis.all_gather(x), axis.size, axis=0)
    return paddle.concat(parts, axis=dimension)


def add_up_part(axis: Axis, dimension: int, x: Tensor) -> Tensor:
    """Return our part, along a dimension, of the sum of everyone's `x`."""
    parts = paddle.split(x, axis.size, axis=dimension)
    return axis.sum_scatter(paddle.concat(parts, axis=0))


def _keep(x: Tensor) -> Tensor:
    return paddle.assign(x)  # a PyLayer may not hand a leaf through


class _Exchange(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Exchange, backward: Exchange) -> Tensor:
        ctx.backward = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ctx.backward(gradient)
