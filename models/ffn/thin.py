"""Low-rank factors around few hidden units: thin and narrow at once.

    y = (gelu((x @ left1) @ right1 + b1) @ left2) @ right2 + b2    with M hidden units

Factors of rank R with F hidden units map R numbers to R numbers by way of F, and on fast chips the
traffic of those F costs more than the products. For 4R(D + M) FLOPs, M = D/4 has four times the
rank that M = 4D has. Merging multiplies the factors and grows the hidden units: the grown ones are
of full rank, see `grow`.

Shape legend: D hidden_size, F ffn_hidden_size, M hidden units here, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from paddle import nn

from models.ffn.base import FFN, Cost, Shape
from models.ffn.dense import DenseFFN
from models.ffn.grow import INTO, OUT_OF, HiddenUnits, grow_linear, take_units
from models.ffn.low_rank import LowRankLinear, LowRankOptions
from models.ffn.moments import MergedParameter, copy_state
from models.ffn.narrow import (
    choose_width,
    kept_units,
    merged_bias,
    narrowing_errors,
    output_std,
    take_state,
)


@dataclass(frozen=True)
class ThinOptions(LowRankOptions):
    """Options of `Model.ffn` for kind `thin`: those of `low_rank`, and `width` of `narrow`.

    The rules for start and learning rate take the D x M and M x D matrices of a `narrow` layer for
    the dense ones.
    """

    width: int | None = None


class ThinLinear(LowRankLinear):
    """A `LowRankLinear` into or out of few hidden units, which `merge()` grows, too."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        options: LowRankOptions,
        *,
        units: HiddenUnits,
        **more: Any,
    ) -> None:
        super().__init__(in_features, out_features, options, **more)
        self.units = units

    def merge(self) -> nn.Linear:
        """Multiply the factors in float64, then grow: `grow.grow_linear`."""
        return grow_linear(super().merge(), self.units)

    def merged_parameters(self) -> dict[str, MergedParameter]:
        """Name the weight and, into hidden units that grow, the bias."""
        shape = self.units.grown_shape([self.in_features, self.out_features])
        weight = {"weight": MergedParameter(shape, ("left", "right"))}
        return weight | merged_bias(self.units, self.bias)

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the product's moments and the bias's own: see `models.ffn.moments.MergesState`."""
        merged = super().merge_state(state)
        return merged | (copy_state(state, "bias", "bias") if self._bias_grows() else {})

    def split_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the factors' moments and the bias's own: see `models.ffn.moments.SplitsState`."""
        split = super().split_state(take_state(self.units, state, "weight"))
        return split | (take_state(self.units, state, "bias") if self._bias_grows() else {})

    def _bias_grows(self) -> bool:
        return bool(merged_bias(self.units, self.bias))


class ThinFFN(FFN):
    """Factors of rank R for both matrices of M hidden units: 4R(D + M) forward FLOPs a token.

    As in `narrow`, the second matrix starts √(F/M) times as large as the dense one. Raises
    `ValueError` for a width above F or a rank above min(D, M).
    """

    kind = "thin"
    Options = ThinOptions

    linear1: ThinLinear
    linear2: ThinLinear

    def __init__(self, shape: Shape, options: ThinOptions) -> None:
        super().__init__(shape, options)
        d, f, std = shape.hidden_size, shape.ffn_hidden_size, shape.init_std
        width = choose_width(shape, options.width)
        self.linear1 = ThinLinear(d, width, options, units=HiddenUnits(f, INTO), init_std=std)
        self.linear2 = ThinLinear(
            width, d, options, units=HiddenUnits(f, OUT_OF), init_std=output_std(shape, width)
        )

    @classmethod
    def cost(cls, shape: Shape, options: ThinOptions) -> Cost:
        """Parameters 2R(D + M) + M + D, forward FLOPs 4R(D + M) a token."""
        d, m = shape.hidden_size, choose_width(shape, options.width)
        factors = 2 * options.rank * (d + m)
        return Cost(
            parameters=factors + m + d,
            flops_per_token=2 * factors,
            kept_per_token=2 * (m + options.rank),
            kept_fused=2 * options.rank,
        )

    @classmethod
    def approximate_pair(
        cls, linear1: nn.Linear, linear2: nn.Linear, options: ThinOptions, init_std: float
    ) -> tuple[nn.Layer, nn.Layer]:
        """Keep the M hidden units that matter most, then truncated SVD of what is left."""
        into, out_of = kept_units(linear1, linear2, options.width)
        narrow1, narrow2 = take_units(linear1, into), take_units(linear2, out_of)
        d, f = linear1.weight.shape
        shape = Shape(d, f, init_std)
        std2 = output_std(shape, choose_width(shape, options.width))
        return (
            ThinLinear.from_linear(narrow1, options, init_std, units=into),
            ThinLinear.from_linear(narrow2, options, std2, units=out_of),
        )

    @classmethod
    def pair_errors(
        cls, linears: tuple[nn.Linear, nn.Linear], stand_ins: tuple[nn.Layer, nn.Layer]
    ) -> tuple[float, float]:
        """Return the relative errors with zeros in the place of the units that were dropped."""
        return narrowing_errors(linears, stand_ins)

    def merge(self) -> DenseFFN:
        """Multiply the factors in float64, then grow to F hidden units: the same function."""
        return DenseFFN.from_linears(self.linear1.merge(), self.linear2.merge(), self.activation)
