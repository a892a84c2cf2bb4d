"""The inside of a feed-forward of thin factors, some tokens at a time, in Paddle's own operators.

The form for any device that Paddle runs on. It needs no kernel, and keeps nothing of the width of
the hidden units for the backward pass: those of a chunk of tokens are made again from what lies
between the first two factors (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174; chunks of
a feed-forward as in Reformer, Kitaev et al. 2020, arXiv:2001.04451).

Shape legend: N tokens, F hidden units, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer
from paddle.nn import functional

from models.kernels.activation import ACTIVATIONS

# Three arrays of a chunk's hidden units are alive at a time: they should stay in a cache.
CHUNK_BYTES = 24 << 20
SMALLEST_CHUNK = 256  # tokens: below, the operators' own overhead costs more than it saves


def chunked_low_rank_inner(
    z: Tensor,
    right1: Tensor,
    bias1: Tensor | None,
    left2: Tensor,
    activation: str,
    *,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Return ``activation(z @ right1 + bias1) @ left2``, [..., R].

    `z` is [..., R], `right1` [R, F], `bias1` [F], `left2` [F, R]; `activation` is a name of
    `models.kernels.activation.ACTIVATIONS`. Kept for the backward pass is z; what else it needs is
    there for one chunk of `chunk_tokens` at a time, by default as many as fit into `CHUNK_BYTES`.
    Everything is computed in the dtype of z, under autocast as well, but for the sums over chunks
    in the gradients of the weights, which are float32 for the half precisions. In a program that is
    being traced the chain of operators stands, without chunks.

    Raises `ValueError` for a chunk of no tokens.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"a chunk has at least one token, not {chunk_tokens}")
    right1, left2 = right1.astype(z.dtype), left2.astype(z.dtype)
    bias1 = None if bias1 is None else bias1.astype(z.dtype)
    activate = ACTIVATIONS[activation]
    if not paddle.in_dynamic_mode():
        return paddle.matmul(activate(functional.linear(z, right1, bias1)), left2)
    z_NR = z.reshape([-1, z.shape[-1]])
    chunk = chunk_tokens or choose_chunk(right1.shape[-1], z.element_size())
    y_NR = _Inner.apply(z_NR, right1, bias1, left2, activate, chunk)
    return y_NR.reshape([*z.shape[:-1], left2.shape[-1]])


def choose_chunk(units: int, element_bytes: int) -> int:
    """Return the tokens of a chunk with so many hidden units: a multiple of `SMALLEST_CHUNK`."""
    fitting = CHUNK_BYTES // (3 * units * element_bytes)
    return max(fitting // SMALLEST_CHUNK, 1) * SMALLEST_CHUNK


class _Inner(PyLayer):
    """``activation(z @ right1 + bias1) @ left2`` of z [N, R], chunk by chunk.

    With u = z @ right1 + bias1, g = activation(u) and dy the gradient of the result,
    dg = dy @ left2ᵀ and du = dg ⊙ activation'(u):

        dz = du @ right1ᵀ    dright1 = zᵀ du    dbias1 = Σ du    dleft2 = gᵀ dy
    """

    @staticmethod
    def forward(
        ctx: Any,
        z_NR: Tensor,
        right1: Tensor,
        bias1: Tensor | None,
        left2: Tensor,
        activate: Callable[[Tensor], Tensor],
        chunk: int,
    ) -> Tensor:
        ctx.save_for_backward(z_NR, right1, bias1, left2)
        ctx.activate, ctx.chunk = activate, chunk
        tensors = (z_NR, right1, bias1, left2)
        ctx.wanted = [each is not None and not each.stop_gradient for each in tensors]
        with paddle.amp.auto_cast(enable=False):
            pieces = [
                paddle.matmul(activate(functional.linear(z, right1, bias1)), left2)
                for (z,) in _chunks(chunk, z_NR)
            ]
            return paddle.concat(pieces)

    @staticmethod
    def backward(ctx: Any, dy_NR: Tensor) -> tuple[Tensor | None, ...]:
        z_NR, right1, bias1, left2 = ctx.saved_tensor()
        wants_z, wants_right1, wants_bias1, wants_left2 = ctx.wanted
        dz: list[Tensor] = []
        dright1 = dbias1 = dleft2 = None
        with paddle.amp.auto_cast(enable=False):
            for z, dy in _chunks(ctx.chunk, z_NR, dy_NR):
                u = functional.linear(z, right1, bias1)
                dg = paddle.matmul(dy, left2, transpose_y=True)
                g, du = _activate_with_gradient(ctx.activate, u, dg)
                if wants_z:
                    dz.append(paddle.matmul(du, right1, transpose_y=True))
                if wants_right1:
                    dright1 = _sum(dright1, paddle.matmul(z, du, transpose_x=True))
                if wants_bias1:
                    dbias1 = _sum(dbias1, du.sum(axis=0))
                if wants_left2:
                    dleft2 = _sum(dleft2, paddle.matmul(g, dy, transpose_x=True))
            sums = (dright1, dbias1, dleft2) if bias1 is not None else (dright1, dleft2)
            return (
                paddle.concat(dz) if wants_z else None,
                *(each if each is None else each.astype(z_NR.dtype) for each in sums),
            )


def _activate_with_gradient(
    activate: Callable[[Tensor], Tensor], u: Tensor, dg: Tensor
) -> tuple[Tensor, Tensor]:
    """Return activation(u) and dg ⊙ activation'(u), by the device's own gradient operator."""
    with paddle.enable_grad():
        u = u.detach()
        u.stop_gradient = False
        g = activate(u)
    paddle.autograd.backward([g], [dg])
    return g.detach(), u.grad


def _chunks(chunk: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    tokens = tensors[0].shape[0]
    for start in range(0, max(tokens, 1), chunk):  # of no tokens: one chunk of none
        yield tuple(each[start : start + chunk] for each in tensors)


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    """Add a part, in float32 where its own precision is half."""
    if part.dtype in (paddle.float16, paddle.bfloat16):
        part = part.astype("float32")
    return part if total is None else total + part
