"""The processes of a job as a mesh with an axis for each kind of parallelism.

A process meets those that differ from it in one coordinate along that axis. What they exchange goes
through Paddle, in one of two ways, as neither works everywhere in Paddle 3.3.1. On a CPU it is a
distributed tensor (`paddle.distributed.reshard`): process groups of fewer than all processes meet
under the same keys on gloo, and hang. On cards it is process groups: `reshard` is not there for
devices of a plugin, such as Ascend's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.distributed.auto_parallel.api import dtensor_from_local
from paddle.distributed.communication.group import Group

from fastffn_cli.distributed.layout import Layout

# Slowest first, as in Paddle's fleet: neighbouring ranks, which share a machine, split matrices.
AXES = ("dp", "pp", "sharding", "mp")
HALF = (paddle.float16, paddle.bfloat16)
# By their ranks; what is not there goes through distributed tensors.
_GROUPS: dict[tuple[int, ...], Group] = {}


@dataclass(frozen=True)
class Axis:
    """The processes that this one meets along an axis; `ranks` are global, in the axis' order."""

    name: str
    ranks: tuple[int, ...]
    index: int

    @property
    def size(self) -> int:
        """How many they are, this one included."""
        return len(self.ranks)

    @cached_property
    def mesh(self) -> dist.ProcessMesh:
        """The axis as Paddle's distributed tensors want it."""
        return dist.ProcessMesh(list(self.ranks), dim_names=[self.name])

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of everyone's `tensor`, of the same shape everywhere; no gradient.

        Half precision is summed in float32: gloo has infinities for float16, and HCCL no bfloat16.
        """
        if self.size == 1:
            return tensor
        with paddle.no_grad():
            wide = tensor.astype("float32") if tensor.dtype in HALF else tensor.detach()
            group = _GROUPS.get(self.ranks)
            if group is None:
                summed = self._reshard(wide, dist.Partial())
            else:
                summed = wide.clone()
                dist.all_reduce(summed, group=group)
            return summed.astype(tensor.dtype)

    def sum_scatter(self, tensor: Tensor) -> Tensor:
        """Return our part, along the first axis, of the sum of everyone's `tensor`."""
        group = _GROUPS.get(self.ranks)
        if group is None:  # Paddle has no reduce-scatter for CPUs
            return paddle.split(self.all_sum(tensor), self.size, axis=0)[self.index]
        with paddle.no_grad():
            parts = paddle.split(tensor.detach(), self.size, axis=0)
            wide = [part.astype("float32") if part.dtype in HALF else part for part in parts]
            summed = paddle.empty_like(wide[0])
            dist.reduce_scatter(summed, wide, group=group)
            return summed.astype(tensor.dtype)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Join everyone's `tensor` of the same shape along the first axis, in the axis' order."""
        if self.size == 1:
            return tensor
        with paddle.no_grad():
            group = _GROUPS.get(self.ranks)
            if group is None:
                return self._reshard(tensor.detach(), dist.Shard(0))
            parts: list[Tensor] = []
            dist.all_gather(parts, tensor.detach().contiguous(), group=group)
            return paddle.concat(parts)

    def totals(self, *values: float) -> list[float]:
        """Add up numbers, each with its like, in float64 where the device has that."""
        if self.size == 1:
            return list(values)
        kind = "float32" if self.ranks in _GROUPS else "float64"  # which not every card has
        return [float(value) for value in self.all_sum(paddle.to_tensor(values, kind)).numpy()]

    def highest(self, value: int) -> int:
        """Return the largest of everyone's numbers."""
        if self.size == 1:
            return value
        return int(self.all_gather(paddle.to_tensor([value], "int32")).numpy().max())

    def all_texts(self, text: str) -> list[str]:
        """Return everyone's text, in the axis' order."""
        if self.size == 1:
            return [text]
        mine = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
        longest = self.highest(len(mine))
        padded = np.full([1, longest], -1, dtype=np.int32)
        padded[0, : len(mine)] = mine
        rows = self.all_gather(paddle.to_tensor(padded)).numpy()
        return [row[row >= 0].astype(np.uint8).tobytes().decode() for row in rows]

    def _reshard(self, tensor: Tensor, placement: dist.Placement) -> Tensor:
        scattered = dtensor_from_local(tensor, self.mesh, [placement])
        return dist.reshard(scattered, self.mesh, [dist.Replicate()])._local_value()


class Mesh:
    """Where a process stands among all of its job's; the axes are those of `AXES`."""

    def __init__(self, layout: Layout, rank: int = 0) -> None:
        self.layout, self.rank = layout, rank
        sizes = (layout.dp, layout.pp, layout.sharding_degree, layout.mp)
        self._grid = np.arange(layout.cards).reshape(sizes)
        self._place = tuple(int(index) for index in np.unravel_index(rank, sizes))
        self.dp, self.pp, self.sharding, self.mp = (self._axis(name) for name in AXES)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @cached_property
    def world(self) -> Axis:
        """All processes of the job."""
        return Axis("world", tuple(range(self._grid.size)), self.rank)

    @cached_property
    def data(self) -> Axis:
        """Processes that read other sequences and train the same weights: `dp` and `sharding`."""
        _, stage, _, column = self._place
        ranks = self._grid[:, stage, :, column].reshape(-1)
        index = self.dp.index * self.sharding.size + self.sharding.index
        return Axis("data", tuple(int(rank) for rank in ranks), index)

    @property
    def meetings(self) -> list[tuple[int, ...]]:
        """The ranks of every axis of every process, of neighbouring stages, and of both ends.

        The same list in all processes, without repetitions.
        """
        found: dict[tuple[int, ...], None] = {}
        for rank in range(self._grid.size):
            other = Mesh(self.layout, rank)
            stages = other.pp.ranks
            links = [stages[index : index + 2] for index in range(len(stages) - 1)]
            axes = (other.world, other.data, other.dp, other.pp, other.sharding, other.mp)
            for ranks in (*(axis.ranks for axis in axes), *links, (stages[0], stages[-1])):
                if len(set(ranks)) > 1:
                    found[ranks] = None
        return list(found)

    def open_groups(self) -> None:
        """Make the process groups of a job on cards; on a CPU there are none."""
        if paddle.get_device() != "cpu":
            for ranks in self.meetings:  # everyone makes all of them, in one order
                _GROUPS[ranks] = dist.new_group(list(ranks))

    def _axis(self, name: str) -> Axis:
        number = AXES.index(name)
        around = [slice(None) if axis == number else at for axis, at in enumerate(self._place)]
        ranks = self._grid[tuple(around)]
        return Axis(name, tuple(int(rank) for rank in ranks), self._place[number])
