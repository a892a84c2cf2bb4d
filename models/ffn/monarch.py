"""Monarch weights: two block-diagonal factors with a permutation behind each.

    W = blkdiag(left) · P_h · blkdiag(right) · P_out,    y = gelu(x @ W1 + b1) @ W2 + b2

Dao et al. 2022 (arXiv:2204.00595); for feed-forwards, as BlockShuffle, Wei et al. 2024
(arXiv:2406.16450, CLAIRE-Labo/StructuredFFN `blockshuffle.py`). Between the factors lie h = min(in,
out) values; value m leaves column m mod h/b of block m // (h/b) and enters row m // b of block
m mod b, and output o comes from column o // b of block o mod b. Every block so meets every other
one, in both matrices. Merging multiplies out.

Where b² divides h, the part of W from input block k to output block l has rank h/b², else one
of the two whole numbers around it.
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
class MonarchOptions:
    """Options of `Model.ffn` for kind `monarch`.

    `lr_rule` is `none` (both factors train at the dense learning rate) or `spectral`: a step of
    each moves the product half as far as a dense step would, at most `lr_cap` times the dense rate
    (`blocks.learning_rate_scale`).
    """

    blocks: int = 4
    lr_rule: Literal["none", "spectral"] = "none"
    lr_cap: float = 4.0


class MonarchLinear(BlockProduct):
    """A Linear of two block-diagonal factors: `left` [b, in/b, h/b], `right` [b, h/b, out/b].

    All blocks start orthogonal, as in Wei et al.; the product's singular values are then equal, and
    are set to init_std·√max(in, out) (the source's are 1 whatever the sizes): its entries have the
    root mean square init_std of a dense start, and its spectral norm is below a dense start's
    init_std·(√in + √out) (`blocks.start_norm` at rank h). The factors share that norm.
    """

    def create_weights(self, options: MonarchOptions, init_std: float) -> None:
        """Make `left` and `right`."""
        rows, columns, b = self.in_features, self.out_features, self.blocks
        check_blocks(b, rows, columns)
        between = min(rows, columns)
        scale = math.sqrt(start_norm(rows, columns, between, init_std))
        start = OrthogonalBlocks(scale)
        rate = partial(
            learning_rate_scale,
            options,
            dense_size=rows * columns,
            blocks=b,
            other_norm=scale,
            share=0.5,
        )
        self.left = self.add_weight(
            [b, rows // b, between // b],
            start,
            rate(size=rows * between),
        )
        self.right = self.add_weight(
            [b, between // b, columns // b],
            start,
            rate(size=between * columns),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out] through [..., h]."""
        b = self.blocks
        between = multiply_blocks(x, self.left)
        permuted_bNh = between.reshape([-1, between.shape[-1] // b, b]).transpose([2, 0, 1])
        y_bNo = paddle.matmul(permuted_bNh, self.right)
        y = y_bNo.transpose([1, 2, 0]).reshape([*x.shape[:-1], self.out_features])
        return self.add_bias(y)

    def grid_shape(self) -> list[int]:
        """Input blocks, their inputs, outputs of an output block, output blocks."""
        return [self.blocks, self.left.shape[1], self.right.shape[2], self.blocks]

    def parts(self) -> Iterator[Part]:
        """From each input block to each output block; there are none for some where b² > h.

        Dao et al. 2022, section 3, fit a Monarch matrix by these parts, too.
        """
        b, size = self.blocks, self.left.shape[2]
        for source in range(b):
            for target in range(b):
                first = (target - source * size) % b  # the first column that leads to the target
                count = len(range(first, size, b))
                if count:
                    row = (source * size + first) // b
                    yield Part(
                        left=(source, slice(None), slice(first, None, b)),
                        right=(target, slice(row, row + count)),
                        weight=(source, slice(None), slice(None), target),
                    )


class MonarchFFN(BlockFFN):
    """The feed-forward with two Monarch weights: 4h(D + F)/b forward FLOPs a token, h = min(D, F).

    At F = 4D that is 20D²/b, against 16D² of the dense layer.
    """

    kind = "monarch"
    Options = MonarchOptions
    Linear = MonarchLinear

    @classmethod
    def cost(cls, shape: Shape, options: MonarchOptions) -> Cost:
        """Parameters 2h(D + F)/b + F + D, forward FLOPs 4h(D + F)/b a token."""
        d, f = shape.hidden_size, shape.ffn_hidden_size
        check_blocks(options.blocks, d, f)
        between = min(d, f)
        factors = 2 * between * (d + f) // options.blocks
        return Cost(
            parameters=factors + f + d,
            flops_per_token=2 * factors,
            kept_per_token=2 * (f + between),
        )
