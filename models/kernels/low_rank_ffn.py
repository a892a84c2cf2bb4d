"""The feed-forward of two pairs of thin factors as one operator, which keeps no hidden units."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn import functional

from models.kernels import library
from models.kernels.low_rank_inner import is_chunked, low_rank_inner


def low_rank_ffn(
    x: Tensor,
    left1: Tensor,
    right1: Tensor,
    bias1: Tensor | None,
    left2: Tensor,
    right2: Tensor,
    bias2: Tensor | None,
    activation: str,
) -> Tensor:
    """Return ``(activation((x @ left1) @ right1 + bias1) @ left2) @ right2 + bias2``, [..., D].

    `x` is [..., D], `left1` [D, R], `right1` [R, F], `bias1` [F], `left2` [F, R], `right2` [R, D],
    `bias2` [D]; `activation` is a name of `models.kernels.activation.ACTIVATIONS`.

    Where the kernels serve, the hidden units [..., F] exist for some tokens and 64 units at a time,
    in the nearest caches. Kept for the backward pass are x, z = x @ left1 and y = g @ left2, of R
    values a token either; with u = z @ right1 + bias1, g = activation(u) made again from z, and dy
    = dout @ right2ᵀ it returns

        du = (dy @ left2ᵀ) ⊙ activation'(u)    dz = du @ right1ᵀ      dx = dz @ left1ᵀ
        dleft1 = xᵀ dz    dright1 = zᵀ du    dleft2 = gᵀ dy    dright2 = yᵀ dout

    and the sums over tokens of du and dout for the biases. Elsewhere, for few tokens, and where
    chunks are wanted, `low_rank_inner` stands between two products of Paddle's. Raises Paddle's
    errors for shapes that do not fit each other.
    """
    serves = library.serves(x, left1, right1, bias1, left2, right2, bias2)
    if is_chunked() or library.is_few(x) or not serves:
        y = low_rank_inner(paddle.matmul(x, left1), right1, bias1, left2, activation)
        return functional.linear(y, right2, bias2)
    bias1 = paddle.zeros([right1.shape[1]], x.dtype) if bias1 is None else bias1
    bias2 = paddle.zeros([right2.shape[1]], x.dtype) if bias2 is None else bias2
    weights = (left1, right1, bias1, left2, right2, bias2)
    out, _, _ = library.run("low_rank_ffn", x, *weights, activation)
    return out
