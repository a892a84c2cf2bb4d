"""Block-diagonal weights: each weight has b blocks on its diagonal and zeros elsewhere.

    y = gelu(x @ blkdiag(W1) + b1) @ blkdiag(W2) + b2

The first phase of "reverse sparsification" (Dao et al. 2022, arXiv:2204.00595; HazyResearch/fly
trains BERT so and makes the feed-forwards dense later). The layer is then b separate feed-forwards
of D/b to F/b: only attention mixes their columns. Merging writes the zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import paddle
from paddle import Tensor, nn

from models.ffn.base import Cost, Shape
from models.ffn.blocks import (
    BlockFFN,
    BlockLinear,
    block_diagonal_matrix,
    check_blocks,
    diagonal_blocks,
    join_columns,
    learning_rate_scale,
    overwrite,
    split_columns,
)
from models.ffn.moments import MergedParameter, complete_second_moment, copy_state
from models.ffn.parameters import to_float64


@dataclass(frozen=True)
class BlockDiagonalOptions:
    """Options of `Model.ffn` for kind `block_diagonal`.

    `lr_rule` is `none` (the dense learning rate) or `spectral`: b times it, at most `lr_cap` times
    (see `blocks.learning_rate_scale`; the rule η ∝ 1/fan-in of arXiv:2406.06248 says the same).
    """

    blocks: int = 4
    lr_rule: Literal["none", "spectral"] = "none"
    lr_cap: float = 4.0


class BlockDiagonalLinear(BlockLinear):
    """`x @ blkdiag(weight) + bias`; `weight` is [b, in/b, out/b].

    Entries start as Normal(0, init_std·√b), for a fan-in that is b times smaller (fly's rule): the
    [in, out] matrix has then the root mean square init_std, zeros included, and the spectral norm
    init_std·(√in + √out), both those of a dense start.
    """

    weight: Tensor

    def create_weights(self, options: BlockDiagonalOptions, init_std: float) -> None:
        """Make `weight`."""
        rows, columns, b = self.in_features, self.out_features, self.blocks
        check_blocks(b, rows, columns)
        self.weight = self.add_weight(
            [b, rows // b, columns // b],
            nn.initializer.Normal(0.0, init_std * math.sqrt(b)),
            learning_rate_scale(options, dense_size=rows * columns, size=rows * columns, blocks=b),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return join_columns(self.multiply(split_columns(x, self.blocks)), x.shape[:-1])

    def multiply(self, x_bNi: Tensor) -> Tensor:
        """Map [b, N, in/b] to [b, N, out/b], bias and all."""
        y_bNo = paddle.matmul(x_bNi, self.weight)
        return y_bNo if self.bias is None else y_bNo + self.bias.reshape([self.blocks, 1, -1])

    def dense_weight(self) -> np.ndarray:
        """The [in, out] matrix, with its zeros, in float64."""
        return block_diagonal_matrix(to_float64(self.weight))

    def fit(self, weight_IO: np.ndarray) -> None:
        """Keep the blocks on the diagonal: what is dropped cannot be made up for elsewhere."""
        overwrite(self.weight, diagonal_blocks(weight_IO, self.blocks))

    def merged_parameters(self) -> dict[str, MergedParameter]:
        """Name the weight, of another shape than the blocks."""
        shape = (self.in_features, self.out_features)
        return {"weight": MergedParameter(shape, ("weight",))}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the blocks' moments as they are, and an estimate of those between them.

        `state` and the result are those of `models.ffn.moments.MergesState`. The entries that had
        no gradient have a first moment of zero, and a second one by the rank-1 model that their
        rows and columns within the blocks tell (`complete_second_moment`).
        """
        copied = copy_state(state, "weight", "weight")
        known_bio = np.ones(self.weight.shape, dtype=bool)
        merged = {
            entry: block_diagonal_matrix(known_bio if entry == "weight.copied" else blocks_bio)
            for entry, blocks_bio in copied.items()
        }
        merged["weight.moment2"] = complete_second_moment(
            merged["weight.moment2"], merged["weight.copied"]
        )
        return merged

    def split_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments on the diagonal: see `models.ffn.moments.SplitsState`."""
        return {
            entry: array if entry == "weight.copied" else diagonal_blocks(array, self.blocks)
            for entry, array in copy_state(state, "weight", "weight").items()
        }


class BlockDiagonalFFN(BlockFFN):
    """The feed-forward with block-diagonal weights: 4DF/b forward FLOPs a token."""

    kind = "block_diagonal"
    Options = BlockDiagonalOptions
    Linear = BlockDiagonalLinear

    linear1: BlockDiagonalLinear
    linear2: BlockDiagonalLinear

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D].

        The hidden units stay cut into blocks, [b, N, F/b]: on a CPU, joining and cutting them again
        would cost as much as the products do.
        """
        hidden_bNf = self.linear1.multiply(split_columns(x_BTD, self.linear1.blocks))
        y_bNd = self.linear2.multiply(self.activate(hidden_bNf))
        return join_columns(y_bNd, x_BTD.shape[:-1])

    @classmethod
    def cost(cls, shape: Shape, options: BlockDiagonalOptions) -> Cost:
        """Parameters 2DF/b + F + D, forward FLOPs 4DF/b a token."""
        d, f = shape.hidden_size, shape.ffn_hidden_size
        check_blocks(options.blocks, d, f)
        weights = 2 * d * f // options.blocks
        return Cost(parameters=weights + f + d, flops_per_token=2 * weights, kept_per_token=2 * f)
