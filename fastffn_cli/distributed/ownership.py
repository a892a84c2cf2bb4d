"""Which process keeps and updates which parameter: sharding stage 1.

Optimizer states of a parameter live with its owner alone (ZeRO's P_os, Rajbhandari et al. 2019,
arXiv:1910.02054; whole parameters are dealt out, as in fleet's DygraphShardingOptimizer). Each
process updates what it owns; then all give their new weights to the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import paddle
from paddle import Tensor

from fastffn_cli.distributed.gradients import BUCKET, flatten, unflatten

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis


def assign_owners(sizes: Mapping[str, int], owners: int) -> dict[str, int]:
    """Deal parameters out, largest first, each to the owner that has least so far."""
    loads = [0] * owners
    owner: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):  # stable: ties in model order
        lightest = loads.index(min(loads))
        owner[name] = lightest
        loads[lightest] += sizes[name]
    return owner


def share_weights(parameters: Mapping[str, Tensor], owner: Mapping[str, int], axis: Axis) -> None:
    """Overwrite every parameter with its owner's value, on all processes along `axis`."""
    if axis.size == 1:
        return
    with paddle.no_grad():
        for kind in dict.fromkeys(value.dtype for value in parameters.values()):
            owned: list[list[Tensor]] = [[] for _ in range(axis.size)]
            for name, value in parameters.items():
                if value.dtype == kind:
                    owned[owner[name]].append(value)
            _share(owned, kind, axis)


def _share(owned: list[list[Tensor]], kind: paddle.dtype, axis: Axis) -> None:
    """Send each owner's tensors, joined, in rounds of at most `BUCKET` values an owner."""
    longest = max(sum(value.size for value in values) for values in owned)
    mine = owned[axis.index]
    sent = flatten(mine) if mine else paddle.zeros([0], kind)
    sent = paddle.concat([sent, paddle.zeros([longest - sent.size], kind)])
    rounds = [
        axis.all_gather(sent[start : start + BUCKET]).reshape([axis.size, -1])
        for start in range(0, longest, BUCKET)
    ]
    received = paddle.concat(rounds, axis=1)
    for index, values in enumerate(owned):
        if index == axis.index or not values:
            continue
        pieces = unflatten(received[index, : sum(value.size for value in values)], values)
        for value, piece in zip(values, pieces, strict=True):
            paddle.assign(piece, value)
