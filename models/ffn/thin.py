"""Low-rank factors around few hidden units: thin and narrow at once.

    y = (gelu((x @ left1) @ right1 + b1) @ left2) @ right2 + b2    with M hidden units

Factors of rank R with F hidden units map R numbers to R numbers by way of F, and on fast chips the
traffic of those F costs more than the products. For 4R(D + M) FLOPs, M = D/4 has four times the
rank that M = 4D has. Merging multiplies the factors and grows the hidden units: the grown ones are
of full rank, see `grow`.

Shape legend: D hidden_size, F ffn_hidden_size, M hidden units here, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.ffn.base import FFN, Cost, Shape
from models.ffn.dense import DenseFFN
from models.ffn.grow import grow
from models.ffn.low_rank import LowRankLinear, LowRankOptions
from models.ffn.narrow import choose_width, output_std


@dataclass(frozen=True)
class ThinOptions(LowRankOptions):
    """Options of `Model.ffn` for kind `thin`: those of `low_rank`, and `width` of `narrow`.

    The rules for start and learning rate take the D x M and M x D matrices of a `narrow` layer for
    the dense ones.
    """

    width: int | None = None


class ThinFFN(FFN):
    """Factors of rank R for both matrices of M hidden units: 4R(D + M) forward FLOPs a token.

    As in `narrow`, the second matrix starts √(F/M) times as large as the dense one. Raises
    `ValueError` for a width above F or a rank above min(D, M).
    """

    kind = "thin"
    Options = ThinOptions

    linear1: LowRankLinear
    linear2: LowRankLinear

    def __init__(self, shape: Shape, options: ThinOptions) -> None:
        super().__init__()
        self.ffn_hidden_size = shape.ffn_hidden_size
        d, width = shape.hidden_size, choose_width(shape, options.width)
        self.linear1 = LowRankLinear(d, width, options, init_std=shape.init_std)
        self.linear2 = LowRankLinear(width, d, options, init_std=output_std(shape, width))

    @classmethod
    def cost(cls, shape: Shape, options: ThinOptions) -> Cost:
        """Parameters 2R(D + M) + M + D, forward FLOPs 4R(D + M) a token."""
        d, m = shape.hidden_size, choose_width(shape, options.width)
        factors = 2 * options.rank * (d + m)
        return Cost(
            parameters=factors + m + d,
            flops_per_token=2 * factors,
            kept_per_token=2 * (m + options.rank),
        )

    def merge(self) -> DenseFFN:
        """Multiply the factors in float64, then grow to F hidden units: the same function."""
        return grow(self.linear1.merge(), self.linear2.merge(), self.ffn_hidden_size)
