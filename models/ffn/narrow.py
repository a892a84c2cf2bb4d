"""A dense feed-forward of few hidden units, which grows to full size when it is merged.

    y = gelu(x @ W1 + b1) @ W2 + b2    with W1 [D, M], W2 [M, D]

The plainest approximation of all, and the baseline of every other: M = 5R units cost what factors
of rank R cost at F = 4D (arXiv:1511.05641, 2110.07143 and 2602.02472 grow so; see `grow`).

Shape legend: D hidden_size, F ffn_hidden_size, M hidden units here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import paddle
from paddle import nn

from models.ffn.base import FFN, Cost, Shape
from models.ffn.dense import DenseFFN
from models.ffn.grow import grow


@dataclass(frozen=True)
class NarrowOptions:
    """Options of `Model.ffn` for kind `narrow`: the number of hidden units, None for D // 4."""

    width: int | None = None


class NarrowFFN(FFN):
    """W2·gelu(W1·x + b1) + b2 with M hidden units: 4DM forward FLOPs a token.

    W1 starts as in the dense layer, W2 with √(F/M) times its spread, so that a sum over fewer units
    is as large. Raises `ValueError` for a width above F.
    """

    kind = "narrow"
    Options = NarrowOptions

    def __init__(self, shape: Shape, options: NarrowOptions) -> None:
        super().__init__()
        self.ffn_hidden_size = shape.ffn_hidden_size
        width = choose_width(shape, options.width)
        self.linear1 = _linear(shape.hidden_size, width, shape.init_std)
        self.linear2 = _linear(width, shape.hidden_size, output_std(shape, width))

    @classmethod
    def cost(cls, shape: Shape, options: NarrowOptions) -> Cost:
        """Parameters 2DM + M + D, forward FLOPs 4DM a token."""
        d, m = shape.hidden_size, choose_width(shape, options.width)
        return Cost(parameters=2 * d * m + m + d, flops_per_token=4 * d * m, kept_per_token=2 * m)

    def merge(self) -> DenseFFN:
        """Grow to F hidden units: the same function."""
        return grow(self.linear1, self.linear2, self.ffn_hidden_size)


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


def _linear(in_features: int, out_features: int, std: float) -> nn.Linear:
    normal = nn.initializer.Normal(0.0, std)
    return nn.Linear(in_features, out_features, weight_attr=paddle.ParamAttr(initializer=normal))
