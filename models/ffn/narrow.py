"""A dense feed-forward of few hidden units, which grows to full size when it is merged.

    y = gelu(x @ W1 + b1) @ W2 + b2    with W1 [D, M], W2 [M, D]

The plainest approximation of all, and the baseline of every other: M = 5R units cost what factors
of rank R cost at F = 4D (arXiv:1511.05641, 2110.07143 and 2602.02472 grow so; see `grow`).

Shape legend: D hidden_size, F ffn_hidden_size, M hidden units here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from models.ffn.base import FFN, FUSED_PAIRS, Cost, Shape, relative_error
from models.ffn.dense import DenseFFN, multiply_matrices
from models.ffn.grow import (
    INTO,
    OUT_OF,
    HiddenUnits,
    choose_units,
    grow_linear,
    take_units,
)
from models.ffn.moments import MergedParameter, copy_state
from models.ffn.parameters import to_float64


@dataclass(frozen=True)
class NarrowOptions:
    """Options of `Model.ffn` for kind `narrow`: the number of hidden units, None for D // 4."""

    width: int | None = None


class NarrowLinear(nn.Layer):
    """`x @ weight + bias`: a Linear into or out of few hidden units, which `merge()` grows.

    `weight` is [in, out] and starts as Normal(0, init_std), `bias` is [out] or None, at 0. `units`
    tells the dense feed-forward's hidden units.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        units: HiddenUnits,
        *,
        init_std: float = 0.02,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.units = units
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, init_std))
        self.weight = self.create_parameter([in_features, out_features], attr=normal)
        self.bias = self.create_parameter([out_features], is_bias=True) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return functional.linear(x, self.weight, self.bias)

    def dense_weight(self) -> np.ndarray:
        """The weight, [in, out], in float64."""
        return to_float64(self.weight)

    def merge(self) -> nn.Linear:
        """Return the Linear of all hidden units, `grow.grow_linear`."""
        return grow_linear(self, self.units)

    def merged_parameters(self) -> dict[str, MergedParameter]:
        """Name what grows: the weight and, into the hidden units, the bias."""
        shape = self.units.grown_shape(self.weight.shape)
        if shape == tuple(self.weight.shape):
            return {}
        weight = {"weight": MergedParameter(shape, ("weight",))}
        return weight | merged_bias(self.units, self.bias)

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments (and masters) as they are: see `models.ffn.moments.MergesState`."""
        names = self.merged_parameters()
        return {k: v for name in names for k, v in copy_state(state, name, name).items()}

    def split_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments of the units that were taken: see `models.ffn.moments.SplitsState`."""
        names = self.merged_parameters()
        return {k: v for name in names for k, v in take_state(self.units, state, name).items()}

    @classmethod
    def from_linear(cls, linear: nn.Linear, units: HiddenUnits) -> NarrowLinear:
        """Return the part of `linear` that belongs to the units."""
        taken = take_units(linear, units)
        in_features, out_features = taken.weight.shape
        layer = cls(in_features, out_features, units, bias=taken.bias is not None)
        layer.to(dtype=taken.weight.dtype)
        layer.set_state_dict(taken.state_dict())
        layer.training = linear.training
        return layer

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        in_features, out_features = self.weight.shape
        return (
            f"in_features={in_features}, out_features={out_features}, "
            f"hidden_units={self.units.total}"
        )


FUSED_PAIRS[NarrowLinear.forward] = multiply_matrices


class NarrowFFN(FFN):
    """W2·gelu(W1·x + b1) + b2 with M hidden units: 4DM forward FLOPs a token.

    W1 starts as in the dense layer, W2 with √(F/M) times its spread, so that a sum over fewer units
    is as large. Raises `ValueError` for a width above F.
    """

    kind = "narrow"
    Options = NarrowOptions

    def __init__(self, shape: Shape, options: NarrowOptions) -> None:
        super().__init__(shape, options)
        d, f, std = shape.hidden_size, shape.ffn_hidden_size, shape.init_std
        width = choose_width(shape, options.width)
        self.linear1 = NarrowLinear(d, width, HiddenUnits(f, INTO), init_std=std)
        self.linear2 = NarrowLinear(
            width, d, HiddenUnits(f, OUT_OF), init_std=output_std(shape, width)
        )

    @classmethod
    def cost(cls, shape: Shape, options: NarrowOptions) -> Cost:
        """Parameters 2DM + M + D, forward FLOPs 4DM a token."""
        d, m = shape.hidden_size, choose_width(shape, options.width)
        return Cost(
            parameters=2 * d * m + m + d,
            flops_per_token=4 * d * m,
            kept_per_token=2 * m,
            kept_fused=m,
        )

    @classmethod
    def approximate_pair(
        cls, linear1: nn.Linear, linear2: nn.Linear, options: NarrowOptions, init_std: float
    ) -> tuple[nn.Layer, nn.Layer]:
        """Keep the M hidden units that matter most, `grow.choose_units`, as they are."""
        first, second = kept_units(linear1, linear2, options.width)
        return NarrowLinear.from_linear(linear1, first), NarrowLinear.from_linear(linear2, second)

    @classmethod
    def pair_errors(
        cls, linears: tuple[nn.Linear, nn.Linear], stand_ins: tuple[nn.Layer, nn.Layer]
    ) -> tuple[float, float]:
        """Return the relative errors with zeros in the place of the units that were dropped."""
        return narrowing_errors(linears, stand_ins)

    def merge(self) -> DenseFFN:
        """Grow to F hidden units: the same function."""
        return DenseFFN.from_linears(self.linear1.merge(), self.linear2.merge(), self.activation)


def choose_width(shape: Shape, width: int | None) -> int:
    """Return the number of hidden units: a quarter of D (at most F) where `width` is None.

    Raises `ValueError` for a width outside 1..F.
    """
    if width is None:
        return min(max(1, shape.hidden_size // 4), shape.ffn_hidden_size)
    if not 1 <= width <= shape.ffn_hidden_size:
        raise ValueError(
            f"width {width} is outside 1..{shape.ffn_hidden_size}, the hidden units to grow to"
        )
    return width


def output_std(shape: Shape, width: int) -> float:
    """Spread of W2's entries by which a sum over `width` units is as large as one over F."""
    return shape.init_std * math.sqrt(shape.ffn_hidden_size / width)


def kept_units(
    linear1: nn.Linear, linear2: nn.Linear, width: int | None
) -> tuple[HiddenUnits, HiddenUnits]:
    """Return the hidden units of W1 and W2 that a trained pair is narrowed to, `choose_width`."""
    d, f = linear1.weight.shape
    kept = choose_units(linear1, linear2, choose_width(Shape(d, f), width))
    return HiddenUnits(f, INTO, kept), HiddenUnits(f, OUT_OF, kept)


def narrowing_errors(
    linears: tuple[nn.Linear, nn.Linear], stand_ins: tuple[nn.Layer, nn.Layer]
) -> tuple[float, float]:
    """Return ‖W - W'‖/‖W‖ of both matrices, with zeros in W' for units that were dropped."""
    first, second = (
        relative_error(linear, stand_in.units.put(stand_in.dense_weight()))
        for linear, stand_in in zip(linears, stand_ins, strict=True)
    )
    return first, second


def merged_bias(units: HiddenUnits, bias: Tensor | None) -> dict[str, MergedParameter]:
    """Name the bias where it grows with the hidden units."""
    if bias is None or units.axis != INTO or units.total == bias.shape[0]:
        return {}
    return {"bias": MergedParameter((units.total,), ("bias",))}


def take_state(
    units: HiddenUnits, state: Mapping[str, np.ndarray], name: str
) -> dict[str, np.ndarray]:
    """Return the units' part of the dense moments of `name`, in float64: copied ones."""
    copied = copy_state(state, name, name)
    return {
        entry: array if entry.endswith(".copied") else units.take(array)
        for entry, array in copied.items()
    }
