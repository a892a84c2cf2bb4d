"""A block-diagonal factor to rank R and a dense one from it, for each weight: BlockDense.

    y = gelu((x @ blkdiag(left1)) @ right1 + b1) @ blkdiag(left2) @ right2 + b2

Wei et al. 2024 (arXiv:2406.16450; CLAIRE-Labo/StructuredFFN `blockdense.py`): low rank whose first
factor, too, is cheap, so that R can be larger. Merging multiplies: W = blkdiag(left) @ right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import paddle
from paddle import Tensor

from models.ffn.base import Cost, Shape
from models.ffn.block_products import BlockProduct, Part
from models.ffn.blocks import (
    BlockFFN,
    OrthogonalBlocks,
    check_blocks,
    learning_rate_scale,
    multiply_blocks,
    start_norm,
)


@dataclass(frozen=True)
class BlockDenseOptions:
    """Options of `Model.ffn` for kind `block_dense`; `blocks` divides `rank` as well.

    `lr_rule` is `none` (both factors train at the dense learning rate) or `spectral`: a step of
    each moves the product half as far as a dense step would, at most `lr_cap` times the dense rate
    (`blocks.learning_rate_scale`).
    """

    blocks: int = 4
    rank: int = 8
    lr_rule: Literal["none", "spectral"] = "none"
    lr_cap: float = 4.0


class BlockDenseLinear(BlockProduct):
    """`x @ blkdiag(left) @ right + bias`; `left` is [b, in/b, R/b], `right` is [R, out].

    The blocks of `left` and the rows of `right` start orthogonal, as in the source, and share the
    norm of the product, which is that of a dense start (`blocks.start_norm`; the source's is 1
    whatever the sizes). Raises `ValueError` for a rank above the smaller size.
    """

    def create_weights(self, options: BlockDenseOptions, init_std: float) -> None:
        """Make `left` and `right`."""
        rows, columns, b, rank = self.in_features, self.out_features, self.blocks, options.rank
        check_rank(rank, rows, columns)
        check_blocks(b, rows, rank)
        scale = math.sqrt(start_norm(rows, columns, rank, init_std))
        start = OrthogonalBlocks(scale)
        rate = partial(
            learning_rate_scale,
            options,
            dense_size=rows * columns,
            other_norm=scale,
            share=0.5,
        )
        self.left = self.add_weight(
            [b, rows // b, rank // b],
            start,
            rate(size=rows * rank, blocks=b),
        )
        self.right = self.add_weight(
            [rank, columns],
            start,
            rate(size=rank * columns),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out] through [..., R]."""
        return self.add_bias(paddle.matmul(multiply_blocks(x, self.left), self.right))

    def grid_shape(self) -> list[int]:
        """Input blocks, their inputs, outputs."""
        return [self.blocks, self.in_features // self.blocks, self.out_features]

    def parts(self) -> Iterator[Part]:
        """The rows of each input block, of rank R/b."""
        rank = self.left.shape[2]
        for block in range(self.blocks):
            yield Part(
                left=(block,), right=(slice(block * rank, (block + 1) * rank),), weight=(block,)
            )


class BlockDenseFFN(BlockFFN):
    """The feed-forward with both matrices so factored: 2R(D + F)(1 + 1/b) forward FLOPs a token."""

    kind = "block_dense"
    Options = BlockDenseOptions
    Linear = BlockDenseLinear

    @classmethod
    def cost(cls, shape: Shape, options: BlockDenseOptions) -> Cost:
        """Parameters R(D + F)(1 + 1/b) + F + D, forward FLOPs 2R(D + F)(1 + 1/b) a token."""
        d, f, b, rank = shape.hidden_size, shape.ffn_hidden_size, options.blocks, options.rank
        check_rank(rank, d, f)
        check_blocks(b, d, f, rank)
        factors = rank * (d + f) * (b + 1) // b
        return Cost(
            parameters=factors + f + d,
            flops_per_token=2 * factors,
            kept_per_token=2 * (f + rank),
        )


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Raise `ValueError` for a rank that a [rows, columns] matrix cannot have."""
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(
            f"rank {rank} is outside 1..{min(rows, columns)} for a {rows} x {columns} matrix"
        )
