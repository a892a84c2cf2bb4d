"""Thin low-rank factors in place of the two big matrices: stage 1 of FastFFN.

    y = (gelu((x @ left1) @ right1 + b1) @ left2) @ right2 + b2

The mathematics is that of the original FastFFN (MindSpore, mindformers @57ef28f:
`fastffnmapping1/2` and `fastffnprojection1/2`, no bias and no activation between two factors, rank
8 there, free here).
Merging multiplies the factors: W = left @ right, bias kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from models.ffn.base import FFN, FUSED_PAIRS, Cost, Shape
from models.ffn.dense import DenseFFN
from models.ffn.moments import (
    MergedParameter,
    lift_first_moment,
    lift_second_moment,
    pair_rate,
    split_moments,
)
from models.ffn.parameters import master_or_value, rate_scale, to_float64
from models.kernels.low_rank_ffn import low_rank_ffn

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class LowRankOptions:
    """Options of `Model.ffn` for kind `low_rank`.

    `init`
        `normal`: every factor entry from Normal(0, init_std), as the original; the product then
        starts far smaller than a dense matrix would (init_std²·√rank an entry).
        `spectral`: the best rank-R approximation of a dense initial matrix, A = U√Σ, B = √ΣVᵀ; the
        product has the dense matrix's spectral norm, the one that update sizes should respect.
        `variance`: entries of the product have the dense spread init_std; its spectral norm is then
        about √(D/R) times too large, so only for ranks near D/4 and above.
    `lr_rule`
        `none`: factors train at the dense learning rate. `spectral`: each factor's rate is scaled
        so that an Adam step moves the product, in spectral norm, as far as it would move a dense
        matrix: half of that budget for each factor, at most `lr_cap` times the dense rate.
    `decay_rule`
        `full`: both factors decay like dense weights, which decays their product twice.
        `half`: the product decays at the dense rate, whatever the factors' learning rates.
    """

    rank: int = 8
    init: Literal["normal", "spectral", "variance"] = "spectral"
    lr_rule: Literal["none", "spectral"] = "none"
    lr_cap: float = 4.0
    decay_rule: Literal["full", "half"] = "full"


class LowRankLinear(nn.Layer):
    """`(x @ left) @ right + bias`: a Linear whose [in, out] weight is the product of two factors.

    `left` is [in, R], `right` is [R, out], `bias` is [out] or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        options: LowRankOptions,
        *,
        init_std: float = 0.02,
        bias: bool = True,
    ) -> None:
        super().__init__()
        rank = options.rank
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"rank {rank} is outside 1..{min(in_features, out_features)} "
                f"for a {in_features} x {out_features} matrix"
            )
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        scale_left, scale_right = learning_rate_scales(in_features, out_features, init_std, options)
        normal = nn.initializer.Normal(0.0, factor_std(init_std, options))
        self.left = self._factor([in_features, rank], scale_left, options, normal)
        self.right = self._factor([rank, out_features], scale_right, options, normal)
        self.bias = self.create_parameter([out_features], is_bias=True) if bias else None
        # A layer built without values (`paddle.LazyGuard`) has them set later.
        if options.init == "spectral" and self.left._is_initialized():
            dense_IO = paddle.normal(0.0, init_std, [in_features, out_features]).numpy()
            self.set_factors(*truncated_svd(dense_IO, rank))

    def _factor(
        self,
        shape: list[int],
        scale: float,
        options: LowRankOptions,
        initializer: nn.initializer.Initializer,
    ) -> Tensor:
        parameter = self.create_parameter(shape, attr=paddle.ParamAttr(initializer=initializer))
        _set_rate(parameter, scale, options)
        return parameter

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out] through [..., R]."""
        return functional.linear(self.narrow(x), self.right, self.bias)

    def narrow(self, x: Tensor) -> Tensor:
        """Map [..., in] to what lies between the factors, [..., R]."""
        return paddle.matmul(x, self.left)

    def set_factors(self, left_IR: np.ndarray, right_RO: np.ndarray) -> None:
        """Overwrite both factors, cast to the layer's dtype."""
        for parameter, value in ((self.left, left_IR), (self.right, right_RO)):
            parameter.set_value(paddle.to_tensor(value, dtype=parameter.dtype))

    def dense_weight(self) -> np.ndarray:
        """`left @ right`, [in, out], multiplied in float64."""
        left, right = (to_float64(factor) for factor in (self.left, self.right))
        return left @ right

    def merge(self) -> nn.Linear:
        """Return the ordinary Linear of the same function and dtype."""
        linear = nn.Linear(
            self.in_features, self.out_features, bias_attr=None if self.bias is not None else False
        )
        linear.to(dtype=self.left.dtype)
        linear.weight.set_value(paddle.to_tensor(self.dense_weight(), dtype=self.left.dtype))
        if self.bias is not None:
            linear.bias.set_value(self.bias)
        linear.training = self.training
        return linear

    def merged_parameters(self) -> dict[str, MergedParameter]:
        """Name the weight, which takes the place of both factors."""
        shape = (self.in_features, self.out_features)
        return {"weight": MergedParameter(shape, ("left", "right"))}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments (and the float32 master, if any) of the merged weight, in float64.

        `state` and the result are those of `models.ffn.moments.MergesState`.
        """
        left, right = (master_or_value(self, name, state) for name in ("left", "right"))
        first, second = (
            lift(left, right, state[f"left.{moment}"], state[f"right.{moment}"])
            for moment, lift in (("moment1", lift_first_moment), ("moment2", lift_second_moment))
        )
        master = {"weight.master": left @ right} if "left.master" in state else {}
        return {"weight.moment1": first, "weight.moment2": second, **master}

    def split_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments of both factors from those of the weight they stand for, in float64.

        `state` and the result are those of `models.ffn.moments.SplitsState`.
        """
        split = split_moments(
            to_float64(self.left),
            to_float64(self.right),
            state["weight.moment1"],
            state["weight.moment2"],
        )
        return {
            f"{name}.{entry}": moment
            for name, moments in zip(("left", "right"), split, strict=True)
            for entry, moment in zip(("moment1", "moment2"), moments, strict=True)
        }

    def merged_rates(self) -> dict[str, float]:
        """Return `models.ffn.moments.pair_rate` of the factors, for the weight."""
        rates = (rate_scale(factor) for factor in (self.left, self.right))
        return {"weight": pair_rate(to_float64(self.left), to_float64(self.right), *rates)}

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, options: LowRankOptions, init_std: float = 0.02, **more: Any
    ) -> Self:
        """Return the best approximation of `linear` at the rank (truncated SVD, Eckart-Young).

        Its factors train at the rates of a layer that starts with `init_std`, as it is when a run
        that goes on from it is resumed. `more` are further arguments of the class.
        """
        in_features, out_features = linear.weight.shape
        # The bare factors are overwritten at once: no need to decompose a random matrix first.
        layer = cls(
            in_features,
            out_features,
            replace(options, init="normal"),
            bias=linear.bias is not None,
            **more,
        )
        scales = learning_rate_scales(in_features, out_features, init_std, options)
        for factor, scale in zip((layer.left, layer.right), scales, strict=True):
            _set_rate(factor, scale, options)
        layer.to(dtype=linear.weight.dtype)
        layer.set_factors(*truncated_svd(to_float64(linear.weight), options.rank))
        if layer.bias is not None:
            layer.bias.set_value(linear.bias)
        layer.training = linear.training
        return layer

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"in_features={self.in_features}, rank={self.rank}, out_features={self.out_features}"


class LowRankFFN(FFN):
    """The feed-forward with both matrices factored: 4R(D + F) forward FLOPs a token."""

    kind = "low_rank"
    Options = LowRankOptions

    def __init__(self, shape: Shape, options: LowRankOptions) -> None:
        super().__init__(shape, options)
        d, f, std = shape.hidden_size, shape.ffn_hidden_size, shape.init_std
        self.linear1 = LowRankLinear(d, f, options, init_std=std)
        self.linear2 = LowRankLinear(f, d, options, init_std=std)

    @classmethod
    def cost(cls, shape: Shape, options: LowRankOptions) -> Cost:
        """Parameters 2R(D + F) + F + D, forward FLOPs 4R(D + F) a token."""
        d, f = shape.hidden_size, shape.ffn_hidden_size
        factors = 2 * options.rank * (d + f)
        return Cost(
            parameters=factors + f + d,
            flops_per_token=2 * factors,
            kept_per_token=2 * (f + options.rank),
            kept_fused=2 * options.rank,
        )

    @classmethod
    def approximate_pair(
        cls, linear1: nn.Linear, linear2: nn.Linear, options: LowRankOptions, init_std: float
    ) -> tuple[nn.Layer, nn.Layer]:
        """Truncated SVD of either matrix; biases are kept."""
        return (
            LowRankLinear.from_linear(linear1, options, init_std),
            LowRankLinear.from_linear(linear2, options, init_std),
        )

    def merge(self) -> DenseFFN:
        """Multiply the factors of both matrices."""
        return DenseFFN.from_linears(self.linear1.merge(), self.linear2.merge(), self.activation)


def multiply_factors(
    linear1: LowRankLinear, linear2: LowRankLinear, x: Tensor, activation: str
) -> Tensor:
    """Return `linear2(activation(linear1(x)))` without keeping the hidden units."""
    first = (linear1.left, linear1.right, linear1.bias)
    second = (linear2.left, linear2.right, linear2.bias)
    return low_rank_ffn(x, *first, *second, activation)


FUSED_PAIRS[LowRankLinear.forward] = multiply_factors


def _set_rate(factor: Tensor, scale: float, options: LowRankOptions) -> None:
    factor.optimize_attr["learning_rate"] = scale
    # Decoupled decay multiplies by 1 - lr·λ with the factor's own lr, so the scale is divided
    # out: (1 - ηλ/2)² = 1 - ηλ to first order in η.
    factor.weight_decay_scale = 0.5 / scale if options.decay_rule == "half" else 1.0


def truncated_svd(weight_IO: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return U√Σ [in, R] and √ΣVᵀ [R, out], whose product is the best rank-R fit of the weight.

    Works on the Gram matrix of the shorter side in float64, which is seven times faster than a full
    SVD at 768 x 3072 and exact to about 1e-8 of the largest singular value: far below float32.
    """
    weight = weight_IO.astype(np.float64)
    rows, columns = weight.shape
    if rows > columns:
        left, right = truncated_svd(weight.T, rank)
        return right.T, left.T
    _, vectors = np.linalg.eigh(weight @ weight.T)
    basis_IR = vectors[:, ::-1][:, :rank]
    projected_RO = basis_IR.T @ weight
    root_R = np.sqrt(np.maximum(np.linalg.norm(projected_RO, axis=1), 1e-300))
    return basis_IR * root_R, projected_RO / root_R[:, None]


def factor_std(init_std: float, options: LowRankOptions) -> float:
    """Spread of a factor's entries for the inits that draw them independently."""
    if options.init == "variance":
        return math.sqrt(init_std / math.sqrt(options.rank))
    return init_std


def learning_rate_scales(
    in_features: int, out_features: int, init_std: float, options: LowRankOptions
) -> tuple[float, float]:
    """Multiples of the dense learning rate for `left` and `right` under `options.lr_rule`.

    An Adam step is sign-like: ‖ΔA·B‖₂ ≲ η_A·√(in·R)·‖B‖₂; a dense one moves W by η·√(in·out).
    With half of the budget for each factor, η_A = ½η·√(out/R)/‖B‖₂ and η_B = ½η·√(in/R)/‖A‖₂.
    The norms are those of the initialisation, in closed form, so a resumed run has the same rates.
    """
    if options.lr_rule == "none":
        return 1.0, 1.0
    rank = options.rank
    if options.init == "spectral":
        norm = init_std * (math.sqrt(in_features) + math.sqrt(out_features))
        norm_left = norm_right = math.sqrt(norm)
    else:
        std = factor_std(init_std, options)
        norm_left = std * (math.sqrt(in_features) + math.sqrt(rank))
        norm_right = std * (math.sqrt(out_features) + math.sqrt(rank))
    left = 0.5 * math.sqrt(out_features / rank) / norm_right
    right = 0.5 * math.sqrt(in_features / rank) / norm_left
    return min(left, options.lr_cap), min(right, options.lr_cap)
