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

import numpy as np
import paddle
from paddle import Tensor

from models.ffn.base import Cost, Shape
from models.ffn.blocks import (
    BlockFFN,
    BlockLinear,
    OrthogonalBlocks,
    check_blocks,
    learning_rate_scale,
    multiply_blocks,
    overwrite,
    start_norm,
)
from models.ffn.low_rank import to_float64, truncated_svd


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


class MonarchLinear(BlockLinear):
    """A Linear of two block-diagonal factors: `left` [b, in/b, h/b], `right` [b, h/b, out/b].

    All blocks start orthogonal, as in Wei et al.; the product's singular values are then equal, and
    are set to init_std·√max(in, out) (the source's are 1 whatever the sizes): its entries have the
    root mean square init_std of a dense start, and its spectral norm is below a dense start's
    init_std·(√in + √out) (`blocks.start_norm` at rank h). The factors share that norm.
    """

    left: Tensor
    right: Tensor

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

    def dense_weight(self) -> np.ndarray:
        """Both factors and permutations multiplied out in float64, [in, out]."""
        left, right = to_float64(self.left), to_float64(self.right)
        b = self.blocks
        weight_bioc = np.zeros([b, left.shape[1], right.shape[2], b])
        for source, target, columns, rows in self._links():
            weight_bioc[source, :, :, target] = left[source][:, columns] @ right[target][rows]
        return weight_bioc.reshape([self.in_features, self.out_features])

    def fit(self, weight_IO: np.ndarray) -> None:
        """Project a dense weight: truncated SVD of each input block by output block.

        Every value between the factors belongs to one such part alone, so the parts are fitted
        one by one, and no Monarch matrix is nearer (Dao et al. 2022, section 3).
        """
        left, right = np.zeros(self.left.shape), np.zeros(self.right.shape)
        weight_bioc = weight_IO.reshape([self.blocks, left.shape[1], right.shape[2], self.blocks])
        for source, target, columns, rows in self._links():
            if len(columns):
                part_io = weight_bioc[source, :, :, target]
                left[source][:, columns], right[target][rows] = truncated_svd(part_io, len(columns))
        overwrite(self.left, left)
        overwrite(self.right, right)

    def _links(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """For each pair of blocks: columns of left[source] and rows of right[target] that meet.

        There are none for some pairs where b² > h.
        """
        size = self.left.shape[2]
        for source in range(self.blocks):
            values = source * size + np.arange(size)
            for target in range(self.blocks):
                columns = np.flatnonzero(values % self.blocks == target)
                yield source, target, columns, values[columns] // self.blocks


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
