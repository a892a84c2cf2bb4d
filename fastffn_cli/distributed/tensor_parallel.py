"""Splitting a model that is written for one card among processes: tensor parallelism.

Megatron-LM's division (Shoeybi et al. 2019, arXiv:1909.08053): each process has some of the heads
of an attention and some of the hidden units of a feed-forward. Either is two linear layers with
something between them that acts on each head or unit alone: the first layer's outputs are split,
the second one's inputs, and what the second one puts out is added up. Of the two factors of a
low-rank layer only the one that faces the heads or hidden units is split. The other one is whole in
every process, and what is added up is rank-sized: forward before the second layer's `right`,
backward before the first one's `left`.

The linear layers exchange what is due (`split_linear`); all tensors are plain ones of this process.
The model's own code, the optimizer and everything else see a smaller model. Embeddings, norms and
the head are whole in every process. With sequence parallelism (`sequence_parallel`), each has a
slice along time of what lies between the split layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle import Tensor, nn

from fastffn_cli.distributed.gradients import squared_norm
from fastffn_cli.distributed.layout import Layout, check_layout
from fastffn_cli.distributed.random_streams import RandomStream
from fastffn_cli.distributed.sequence_parallel import divide_time, summed_names
from fastffn_cli.distributed.split_linear import SlicedLinear, SplitLinear, resize
from models.gpt import GPT, DecoderLayer, SelfAttention

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis

# The entries of an optimizer's state that are of their parameter's shape.
SHAPED_STATES = ("moment1", "moment2", "master")


@dataclass(frozen=True)
class Partition:
    """Which part of each parameter is this process's.

    `dimensions` has the dimension along which a parameter is cut into `axis.size` equal parts; what
    it does not name is whole in every process. Of the `summed` parameters, which are whole, each
    process has summands of the gradient. `undo` takes back what `split` has done to a model beside
    its parameters.
    """

    axis: Axis
    dimensions: Mapping[str, int] = field(default_factory=dict)
    undo: Sequence[Callable[[], None]] = ()
    summed: frozenset[str] = frozenset()

    def together_with(self, other: Partition) -> Partition:
        """Return the partition of the parameters of two models, without what undoes it."""
        dimensions = {**self.dimensions, **other.dimensions}
        return Partition(self.axis, dimensions, summed=self.summed | other.summed)

    def dimension(self, name: str) -> int | None:
        """Where a parameter, or an entry of its optimizer state, is cut; None: it is whole."""
        parameter, _, entry = name.rpartition(".")
        return self.dimensions.get(parameter if entry in SHAPED_STATES else name)

    def part(self, name: str, whole: np.ndarray) -> np.ndarray:
        """Cut this process's part out of a whole array."""
        dimension = self.dimension(name)
        if dimension is None:
            return whole
        return np.split(whole, self.axis.size, axis=dimension)[self.axis.index]

    def whole(self, name: str, part: np.ndarray) -> np.ndarray:
        """Join everyone's part; all processes of the axis must ask for the same names in turn."""
        dimension = self.dimension(name)
        if dimension is None:
            return part
        rows = paddle.to_tensor(np.ascontiguousarray(np.moveaxis(part, dimension, 0)))
        return np.moveaxis(self.axis.all_gather(rows).numpy(), 0, dimension)

    def squared_norm(self, parameters: Mapping[str, Tensor]) -> float:
        """Sum of the squares of the whole model's gradients: of what is whole, once."""
        split = [each for name, each in parameters.items() if name in self.dimensions]
        whole = [each for name, each in parameters.items() if name not in self.dimensions]
        (total,) = self.axis.totals(squared_norm(split))
        return total + squared_norm(whole)


def split(model: GPT, axis: Axis, *, sequence: bool = False) -> Partition:
    """Leave to this process its part of a whole model, which is built alike in all of `axis`.

    The parameters stay what they are to the model, but for their sizes, and so do their names,
    learning rates and shares of the weight decay; set their values, and have optimizers made, after
    it. Random numbers of the attention are the process's own; all others must be those of the other
    processes, too. With `sequence`, time is divided between the layers (`divide_time`): sequences
    must be of a length that `axis.size` divides. Raises `ConfigError` with every reason why the
    model cannot be split so.
    """
    if axis.size == 1:
        return Partition(axis)
    check_layout(model.config, model.config.max_position_embeddings, Layout(mp=axis.size))
    dimensions: dict[str, int] = {}
    undo: list[Callable[[], None]] = []
    for name, layer in model.named_sublayers():
        if not isinstance(layer, DecoderLayer):
            continue
        for sublayer, first, second in (
            ("self_attn", "qkv_proj", "out_proj"),
            ("ffn", "linear1", "linear2"),
        ):
            kind = SlicedLinear if sequence else SplitLinear
            for linear, by in ((first, "columns"), (second, "rows")):
                part = kind(getattr(getattr(layer, sublayer), linear), axis, by=by)
                path = f"{name}.{sublayer}.{linear}"
                dimensions |= {f"{path}.{key}": where for key, where in part.dimensions.items()}
                undo.append(part.undo)
        undo.append(_split_heads(layer.self_attn, axis))
    if not sequence:
        return Partition(axis, dimensions, undo)
    undo += divide_time(model, axis)
    return Partition(axis, dimensions, undo, summed_names(model, dimensions))


def join(model: GPT, partition: Partition) -> None:
    """Undo `split`, in place: every process has the whole model again, to merge it, say.

    As with `split`, gradients are gone, and optimizers of before are of no use.
    """
    for name, parameter in model.named_parameters():
        if partition.dimension(name) is not None:
            whole = partition.whole(name, parameter.numpy())
            resize(parameter, paddle.to_tensor(whole, dtype=parameter.dtype))
    for each in partition.undo:
        each()


def _split_heads(attention: SelfAttention, axis: Axis) -> Callable[[], None]:
    """Leave some heads to an attention, and random numbers of their own; return what undoes it."""
    stream, heads = RandomStream(axis.index), attention.heads

    def drops() -> bool:
        return attention.training and attention.dropout_prob > 0

    def begin(layer: nn.Layer, inputs: Any, output: Any) -> None:
        if drops():
            stream.begin()

    def end(layer: nn.Layer, inputs: Any) -> None:
        if drops():
            stream.end()

    hooks = [
        attention.qkv_proj.register_forward_post_hook(begin),
        attention.out_proj.register_forward_pre_hook(end),
    ]
    attention.heads = heads // axis.size

    def undo() -> None:
        attention.heads = heads
        for hook in hooks:
            hook.remove()

    return undo
