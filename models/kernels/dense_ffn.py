"""The feed-forward of two whole matrices as one operator, which keeps its hidden units once."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn import functional

from models.kernels import library
from models.kernels.activation import ACTIVATIONS


def dense_ffn(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    activation: str,
) -> Tensor:
    """Return ``activation(x @ weight1 + bias1) @ weight2 + bias2``, [..., D].

    `x` is [..., D], `weight1` [D, F], `bias1` [F], `weight2` [F, D], `bias2` [D]; `activation` is a
    name of `models.kernels.activation.ACTIVATIONS`.

    Where the kernels serve more than a few tokens, products are MKL's, and bias and activation one
    pass between them over 1024 tokens at a time. Kept for the backward pass are x and u = x @
    weight1; one pass there makes g = activation(u + bias1) again, and du = (dout @ weight2ᵀ) ⊙
    activation'(u + bias1) with its sums. Raises Paddle's errors for shapes that do not fit each
    other.
    """
    serves = library.multiplies() and library.serves(x, weight1, bias1, weight2, bias2)
    if library.is_few(x) or not serves:
        hidden = ACTIVATIONS[activation](functional.linear(x, weight1, bias1))
        return functional.linear(hidden, weight2, bias2)
    bias1 = paddle.zeros([weight1.shape[1]], x.dtype) if bias1 is None else bias1
    bias2 = paddle.zeros([weight2.shape[1]], x.dtype) if bias2 is None else bias2
    out, _ = library.run("dense_ffn", x, weight1, bias1, weight2, bias2, activation)
    return out
