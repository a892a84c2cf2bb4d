"""How the processes of a job train one model together: what the engine asks, and nothing else.

The engine is written for one process. At the few places where others have a say (which rows of a
batch are mine, what do all gradients add up to, who keeps the optimizer's states) it asks here;
alone, every answer is the trivial one.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.distributed import collective

from fastffn_cli.distributed import job
from fastffn_cli.distributed.collecting import collect
from fastffn_cli.distributed.gradient_shards import reduce_to_owners
from fastffn_cli.distributed.gradients import sum_gradients
from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.mesh import Mesh
from fastffn_cli.distributed.ownership import assign_owners, share_weights
from fastffn_cli.distributed.pipeline import Pipeline
from fastffn_cli.distributed.pipeline_stage import AbsentLayer, Stage
from fastffn_cli.distributed.tensor_parallel import Partition, split
from fastffn_cli.engine.passes import Passes, WholePasses
from fastffn_cli.engine.tensor_file import StoredTensor, stored
from fastffn_cli.errors import UserError
from models.gpt import GPT, GPTConfig, make_decoder_layer

if TYPE_CHECKING:
    from fastffn_cli.engine.optimizer import AdamW
    from fastffn_cli.engine.precision import Precision
    from fastffn_cli.tasks.task import Task

_WAITS = itertools.count(1)  # of all runs of a process: a key in the store is set once


class Parallelism:
    """A process' part in the training of a model."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._partition = Partition(mesh.mp)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.mesh.is_main

    @property
    def divides_model(self) -> bool:
        """Whether a process has a part of the model alone."""
        return self.mesh.mp.size * self.mesh.pp.size > 1

    @property
    def data_degree(self) -> int:
        """How many processes read sequences of their own."""
        return self.mesh.data.size

    @property
    def data_index(self) -> int:
        """Which of them this one is, from 0."""
        return self.mesh.data.index

    def build(self, config: GPTConfig, seed: int) -> GPT:
        """Return this process's part of a new model, whose weights depend on `seed` alone.

        Every process makes all layers, one after the other, and keeps those of its stage: the
        random numbers are those of a single process. Raises `ConfigError` as `place` does.
        """
        stages = self.mesh.pp
        own = Layout(pp=stages.size).share(config, stages.index).layers(config)

        def make_layer(config: GPTConfig, index: int) -> nn.Layer:
            layer = make_decoder_layer(config, index)
            return layer if index in own else AbsentLayer()

        paddle.seed(seed)
        return self.place(GPT(config, make_layer))

    def place(self, model: GPT) -> GPT:
        """Return this process's part of a whole model, built alike in all processes.

        The whole one is not to be used any more. Raises `ConfigError` where the model cannot be
        divided so.
        """
        sequence = self.mesh.layout.sequence_parallel
        partition = split(model, self.mesh.mp, sequence=sequence)
        # One of both stages of a run, until its change is complete: no name is split in two ways.
        self._partition = self._partition.together_with(partition)
        return model if self.mesh.pp.size == 1 else Stage(model, self.mesh.pp)

    def passes(self, task: Task, precision: Precision) -> Passes:
        """Return how micro batches go through the model that `place` returned."""
        if self.mesh.pp.size == 1:
            return WholePasses(task, precision)
        slices = self.mesh.mp.size if self.mesh.layout.sequence_parallel else 1
        return Pipeline(self.mesh.pp, task, precision, slices=slices)

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Return first row and number of rows that this process reads of a global batch.

        Rows are dealt out as evenly as they divide; there may be none for the last ones.
        """
        share = -(-batch_size // self.data_degree)
        first = min(self.data_index * share, batch_size)
        return first, min(share, batch_size - first)

    def total(self, *values: float) -> list[float]:
        """Add up numbers over all processes that read sequences of their own."""
        return self.mesh.data.totals(*values)

    def sum_gradients(self, optimizer: AdamW) -> None:
        """Make every gradient that of the whole step's batch: at least of what is owned."""
        held, axis = optimizer.parameters, self.mesh.data
        if self._shares_gradients:
            held, axis = optimizer.owned, self.mesh.dp
        sum_gradients(list(held.values()), axis)
        summed = [each for name, each in held.items() if name in self._partition.summed]
        sum_gradients(summed, self.mesh.mp)

    def gradient_norm(self, optimizer: AdamW) -> float:
        """L2 norm over all gradients of the model together, summed in float32."""
        square = self._partition.squared_norm(
            {name: each for name, each in optimizer.owned.items() if name not in optimizer.copied}
        )
        for axis in (self.mesh.sharding, self.mesh.pp):
            (square,) = axis.totals(square)
        return math.sqrt(square) if square >= 0 else math.nan

    def share_out(self, model: nn.Layer) -> set[str] | None:
        """Name the parameters that this process is to update; None: all that it holds.

        From sharding stage 2 on, the model's backward passes leave gradients with their owners.
        """
        parameters = dict(model.named_parameters())
        owner = self._owners(parameters)
        if owner is None:
            return None
        if self._shares_gradients:
            trained = {name: parameters[name] for name in owner}
            reduce_to_owners(trained, owner, self.mesh.sharding)
        return {name for name, index in owner.items() if index == self.mesh.sharding.index}

    def share_updates(self, optimizer: AdamW) -> None:
        """Give the weights that this process has updated to those that have not."""
        owner = self._owners(optimizer.parameters)
        if owner is not None:
            share_weights(optimizer.parameters, owner, self.mesh.sharding)

    def gather(
        self, arrays: Mapping[str, np.ndarray], *, everywhere: bool = False
    ) -> dict[str, np.ndarray]:
        """Bring weights or optimizer states together in the main process, or in every one.

        Both are whole again: those of a single process, whatever the layout.
        """
        whole = {name: self._partition.whole(name, array) for name, array in arrays.items()}
        if not everywhere and self.mesh.mp.index > 0:
            whole = {}  # the first process of the axis has the same
        for axis in (self.mesh.data, self.mesh.pp):
            whole = collect(whole, axis, everywhere=everywhere)
        return whole

    def part(self, arrays: Mapping[str, np.ndarray | StoredTensor]) -> dict[str, np.ndarray]:
        """Cut what this process has of them out of whole weights or optimizer states."""
        return {
            name: self._partition.part(name, stored(array).read()) for name, array in arrays.items()
        }

    def agree(self, code: int) -> int:
        """Return the highest of all processes' codes: what one wants, all do."""
        return self.mesh.world.highest(code)

    def check_alike(self, said: str, hint: str) -> None:
        """Raise `UserError` in all processes unless all of them say the same."""
        texts = self.mesh.world.all_texts(said)
        if len(set(texts)) > 1:
            other = next(rank for rank, text in enumerate(texts) if text != texts[0])
            raise UserError(
                f"process 0 continues {texts[0]}, process {other} {texts[other]}", hint=hint
            )

    def wait_for_main(self) -> None:
        """Go on when the main process has come here as well, which may be writing for minutes.

        Waiting in a collective operation would not do: gloo gives up after half a minute.
        """
        if self.mesh.world.size == 1:
            return
        key, store = f"fastffn/main/{next(_WAITS)}", collective._default_store
        if self.is_main:
            store.set(key, "here")
        else:
            store.wait(key)

    @property
    def _shares_gradients(self) -> bool:
        return self.mesh.sharding.size > 1 and self.mesh.layout.sharding_stage > 1

    def _owners(self, parameters: Mapping[str, Tensor]) -> dict[str, int] | None:
        if self.mesh.sharding.size == 1:
            return None
        sizes = {
            name: parameter.size
            for name, parameter in parameters.items()
            if not parameter.stop_gradient
        }
        return assign_owners(sizes, self.mesh.sharding.size)


ALONE = Parallelism(Mesh(Layout()))


def join(layout: Layout) -> Parallelism:
    """Meet the other processes of the job, `layout.cards` in all; the device must be set.

    Raises `UserError` when they cannot be reached.
    """
    if layout.cards == 1:
        return ALONE
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a list of flags that nobody asked for
            dist.init_parallel_env()
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"process {job.rank()} of {layout.cards} could not meet the others: "
            f"{str(error).strip().splitlines()[-1]}",
            hint="Are all of them started, with the same --master, and are its ports open?",
        ) from error
    mesh = Mesh(layout, job.rank())
    mesh.open_groups()
    return Parallelism(mesh)
