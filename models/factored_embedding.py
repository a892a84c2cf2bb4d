"""The table of token embeddings that is also the language model's head, whole or in two factors.

    E = P Q,   lookup(id) = P[id] Q,   logits(x) = (x Qᵀ) Pᵀ

The factorised embedding of ALBERT (Lan et al. 2019, arXiv:1909.11942), on both sides of a tied
model: a head of 2R(V + D) FLOPs a token in the place of 2VD. Nothing lies between the factors, so
that their product is an ordinary table of the same function.

Shape legend: V vocabulary, D hidden_size, R rank.
"""

from __future__ import annotations

from dataclasses import replace

import paddle
from paddle import Tensor, nn

from models.ffn.low_rank import LowRankLinear, LowRankOptions
from models.kernels.lookup import look_up


class TiedEmbedding(nn.Embedding):
    """The whole table [V, D], each entry from Normal(0, init_std)."""

    def __init__(self, vocab_size: int, hidden_size: int, *, init_std: float = 0.02) -> None:
        normal = nn.initializer.Normal(0.0, init_std)
        super().__init__(vocab_size, hidden_size, weight_attr=paddle.ParamAttr(initializer=normal))

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids [...] to embeddings [..., D]."""
        return look_up(ids, self.weight)

    def read_out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x' [..., K] and a table [V, K]: logits are x' tableᵀ."""
        return x, self.weight

    def logits(self, x: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V]."""
        return paddle.matmul(*self.read_out(x), transpose_y=True)


class FactoredEmbedding(LowRankLinear):
    """A table [V, D] of rank R: `left` is P [V, R], `right` is Q [R, D].

    It is a `LowRankLinear` on one-hot vectors, and takes from there the learning rates, the weight
    decay, the product and what becomes of an optimizer's state; `init` is always `variance`: the
    entries of the product have the spread `init_std` of a whole table's. Rows of the table and
    logits (of a normalised x) then start as large as in the dense model, while the best rank-R fit
    of a random table, all of whose singular values are about init_std·√V, would keep R/D of their
    squares. Both factors have entries of the same spread s, s² = init_std/√R. An Adam step at the
    dense rate η moves an entry of the product by about 2·η·√R·s = 2·η·√init_std·R^¼: 0.8 η to 1.1 η
    for ranks 64 to 256 at an init_std of 0.02, so that no factor asks for a rate of its own.

    Raises `ValueError` for a rank above V or D.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        options: LowRankOptions,
        *,
        init_std: float = 0.02,
    ) -> None:
        options = replace(options, init="variance")
        super().__init__(vocab_size, hidden_size, options, init_std=init_std, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids [...] to embeddings [..., D]."""
        return paddle.matmul(look_up(ids, self.left), self.right)

    def read_out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x' [..., R] and a table [V, R]: logits are x' tableᵀ."""
        return paddle.matmul(x, self.right, transpose_y=True), self.left

    def logits(self, x: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V] through [..., R]."""
        return paddle.matmul(*self.read_out(x), transpose_y=True)

    def merge(self) -> TiedEmbedding:
        """Return the whole table P Q, multiplied in float64, in this layer's dtype."""
        table = TiedEmbedding(self.in_features, self.out_features)
        table.to(dtype=self.left.dtype)
        table.weight.set_value(paddle.to_tensor(self.dense_weight(), dtype=self.left.dtype))
        table.training = self.training
        return table
