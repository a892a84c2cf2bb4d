"""Dropout whose random numbers are computed, not stored and not drawn one by one."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from models.kernels import library

SEEDS = (1 << 31) - 1


class Dropout(nn.Dropout):
    """`paddle.nn.Dropout` by `dropout`."""

    def __init__(self, probability: float) -> None:
        super().__init__(probability)

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of a tensor of any shape, in training."""
        return dropout(input, self.p) if self.training else input


def dropout(x: Tensor, probability: float) -> Tensor:
    """Set values of x to zero with a probability, and divide the others by 1 - probability.

    Srivastava et al. 2014 (JMLR 15). Where the kernels serve, two numbers of Paddle's generator are
    the seed of all that a call draws: what stays of a value depends on them and on its place, and
    the backward pass computes it again. Everywhere else it is Paddle's dropout, with other numbers.
    """
    if probability == 0.0:
        return x
    if probability < 1.0 and library.serves(x):
        return library.run("dropout", x, paddle.randint(0, SEEDS, [2], "int64"), probability)
    return functional.dropout(x, probability)
