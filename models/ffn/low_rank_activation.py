"""Thin factors with an activation between them: CoLA (Liu et al. 2025, arXiv:2502.10940).

    h = silu(x @ left1) @ right1 + b1
    y = silu(a(h) @ left2) @ right2 + b2    with a = gelu, or a = identity

Every weight becomes a small auto-encoder of width R; the paper takes R = D/4 and learning rates
well above a dense model's. Its first models keep the activation over the hidden width (a = gelu
here), later ones drop it.

Shape legend: D hidden_size, F ffn_hidden_size, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from models.ffn.base import FFN, Cost, Shape


@dataclass(frozen=True)
class LowRankActivationOptions:
    """Options of `Model.ffn` for kind `low_rank_activation`.

    `rank` is the width between two factors; `outer_activation` keeps GELU over the hidden width.
    """

    rank: int = 8
    outer_activation: bool = True


class LowRankActivationLinear(nn.Layer):
    """`silu(x @ left) @ right + bias`, where a Linear [in, out] would be.

    `left` is [in, R], `right` is [R, out], `bias` is [out]. The entries of both factors start as
    Normal(0, R^(-1/4)·(in + out)^(-1/4)): without the activation, those of their product would have
    the spread (in + out)^(-1/2). Biases start at 0 (the paper's models have none).

    Raises `ValueError` for a rank below 1.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank {rank} is below 1")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        std = (rank * (in_features + out_features)) ** -0.25
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, std))
        self.left = self.create_parameter([in_features, rank], attr=normal)
        self.right = self.create_parameter([rank, out_features], attr=normal)
        self.bias = self.create_parameter([out_features], is_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out] through [..., R]."""
        return functional.linear(functional.swish(self.narrow(x)), self.right, self.bias)

    def narrow(self, x: Tensor) -> Tensor:
        """Map [..., in] to what lies between the factors, before the activation: [..., R]."""
        return paddle.matmul(x, self.left)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"in_features={self.in_features}, rank={self.rank}, out_features={self.out_features}"


class LowRankActivationFFN(FFN):
    """The feed-forward with an activation inside either weight: 4R(D + F) forward FLOPs a token."""

    kind = "low_rank_activation"
    why_not_mergeable = "an activation (SiLU) stands between the two factors of each weight"
    Options = LowRankActivationOptions

    def __init__(self, shape: Shape, options: LowRankActivationOptions) -> None:
        super().__init__(shape, options)
        d, f = shape.hidden_size, shape.ffn_hidden_size
        self.outer_activation = options.outer_activation
        self.linear1 = LowRankActivationLinear(d, f, options.rank)
        self.linear2 = LowRankActivationLinear(f, d, options.rank)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        if self.outer_activation:
            return super().forward(x_BTD)
        return self.linear2(self.linear1(x_BTD))

    @classmethod
    def cost(cls, shape: Shape, options: LowRankActivationOptions) -> Cost:
        """Parameters 2R(D + F) + F + D, forward FLOPs 4R(D + F) a token, as without activations.

        Kept are both inner widths before and after SiLU, and the hidden units (twice with GELU).
        """
        d, f = shape.hidden_size, shape.ffn_hidden_size
        factors = 2 * options.rank * (d + f)
        hidden = 2 * f if options.outer_activation else f
        return Cost(
            parameters=factors + f + d,
            flops_per_token=2 * factors,
            kept_per_token=hidden + 4 * options.rank,
        )
