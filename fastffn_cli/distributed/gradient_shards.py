"""Gradients that only the owner of a parameter keeps: sharding stage 2.

ZeRO's P_os+g (Rajbhandari et al. 2019, arXiv:1910.02054) on top of `ownership`: as soon as the
backward pass of a micro batch has a parameter's gradient, all processes add theirs up, the owner
keeps the sum and the others free it. Paddle's own `group_sharded_parallel` refuses to run on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import paddle
from paddle import Tensor

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis


def reduce_to_owners(
    parameters: Mapping[str, Tensor], owner: Mapping[str, int], axis: Axis
) -> None:
    """Have every backward pass leave the sum of the gradients along `axis` with the owners alone.

    A step may have any number of micro batches: an owner's sum grows with each. All processes must
    run the same layers forward and backward in the same order, and every one must have a gradient
    where another has: experts that a process sent no token to have none. A parameter's gradient is
    one all-reduce, twice what a reduce would move.
    """
    if axis.size == 1:
        return
    for name, parameter in parameters.items():
        parameter._register_backward_hook(_reduce(parameter, owner[name] == axis.index, axis))


def _reduce(parameter: Tensor, owned: bool, axis: Axis) -> Callable[..., Any]:
    def hook(*_: Any) -> None:
        # An owner's gradient holds the sums of the micro batches before; nobody else's does.
        summed = axis.all_sum(parameter.grad)
        if not owned:
            parameter.clear_gradient(False)
            return
        with paddle.no_grad():
            paddle.assign(summed, parameter.grad)

    return hook
