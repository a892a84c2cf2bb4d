"""Linear layers of which each process has a part, with plain tensors in, out and inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paddle
from paddle import Tensor, nn

from fastffn_cli.distributed.exchanges import (
    add_up,
    add_up_to_divide,
    hand_out,
    join_to_hand_out,
    own_part,
)

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis

TIME = 1  # the dimension of [B, T, D] that sequence parallelism divides


class SplitLinear:
    """Splits the outputs (`by="columns"`) or the inputs (`by="rows"`) of a linear layer, in place.

    The layer is of one matrix (`weight`) or of two factors (`left`, `right`, and `narrow` between
    them). Columns take a whole tensor and return a part of its last axis, rows take a part and
    return the sum of all. The parameters stay what they are to the model, but for their sizes.
    """

    def __init__(self, linear: nn.Layer, axis: Axis, *, by: str) -> None:
        self.linear, self.axis, self.columns = linear, axis, by == "columns"
        self.factored = hasattr(linear, "narrow")
        if self.columns:
            cut = {"right" if self.factored else "weight": 1, "bias": 0}
        else:
            cut = {"left" if self.factored else "weight": 0}
        held = dict(linear.named_parameters())
        self.dimensions = {name: dimension for name, dimension in cut.items() if name in held}
        for name, dimension in self.dimensions.items():
            with paddle.no_grad():
                resize(held[name], own_part(axis, dimension, held[name]))
        self._hooks = self._stand_by()

    def _stand_by(self) -> list[Any]:
        """Exchange what is due at each call of the layer."""
        linear = self.linear
        if self.factored:
            narrow = linear.narrow
            linear.narrow = lambda x: self.meet(narrow(x))
            return []

        def begin(layer: nn.Layer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self.columns:
                (x,) = inputs
                return (self.enter(x),)
            layer.__dict__["bias"] = None  # it is added once, to the sum
            return None

        def end(layer: nn.Layer, inputs: Any, output: Tensor) -> Tensor | None:
            if self.columns:
                return None
            del layer.__dict__["bias"]
            summed = self.leave(output)
            return summed if layer.bias is None else summed + layer.bias

        return [linear.register_forward_pre_hook(begin), linear.register_forward_post_hook(end)]

    def enter(self, x: Tensor) -> Tensor:
        """Prepare the whole input of a matrix whose columns are split."""
        return hand_out(x, self.axis)

    def leave(self, output: Tensor) -> Tensor:
        """Complete the output of a matrix whose rows are split."""
        return add_up(output, self.axis)

    def meet(self, narrow: Tensor) -> Tensor:
        """Exchange what goes from one factor to the other, as wide as their rank."""
        return self.enter(narrow) if self.columns else self.leave(narrow)

    def undo(self) -> None:
        """Let the layer compute alone again."""
        for hook in self._hooks:
            hook.remove()
        self.linear.__dict__.pop("narrow", None)


class SlicedLinear(SplitLinear):
    """A `SplitLinear` at whose whole side, in or out, each process has a slice along time.

    What comes in is gathered, or what goes out is added up and divided: of two factors, between
    them. Parameters that are whole in every process compute on the slice, so that everyone has some
    summands of their gradients.
    """

    def enter(self, x: Tensor) -> Tensor:
        """Prepare the input, of which each process has a slice."""
        return join_to_hand_out(x, self.axis, TIME)

    def leave(self, output: Tensor) -> Tensor:
        """Return this process's slice of the output."""
        return add_up_to_divide(output, self.axis, TIME)


def resize(parameter: Tensor, value: Tensor) -> None:
    """Give a parameter a value of another size; its gradient would not fit any more."""
    parameter.clear_gradient(False)
    parameter.data = value
