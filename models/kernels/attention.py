"""Causal attention from the fused projection to the heads joined again.

Of each head, with q, k and v of size K: softmax(q kᵀ / √K + mask) v. On a CPU that is one operator,
which keeps no [T, S] tensor: scores are computed in blocks and their softmax as they come
(FlashAttention-2, Dao 2023, arXiv:2307.08691); of each row, the largest score and the sum of the
exponentials are kept for the gradient. What lies above the causal diagonal is not computed.

Shape legend: B batch, T new tokens, S tokens attended to (cached + new), D all heads side by side,
H heads, K head size. HB is heads x batch, heads outermost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import paddle
from paddle import Tensor
from paddle.nn import functional

from models.kernels import library
from models.kv_cache import LayerCache

MASKED = -1e4  # finite, so that a fully masked row stays finite in float16
LARGEST_HEAD_SIZE = 256  # that the kernel has room for
LARGEST_SEED = (1 << 31) - 1

# From qkv [B, T, 3D], the number of heads, the mask, the dropout of the weights and the cache to
# [B, T, D], as `attend` does.
AttentionCore: TypeAlias = Callable[[Tensor, int, Tensor | None, float, LayerCache | None], Tensor]


def attend(
    qkv: Tensor,
    heads: int,
    mask: Tensor | None = None,
    dropout_prob: float = 0.0,
    cache: LayerCache | None = None,
) -> Tensor:
    """Map qkv [B, T, 3D] to [B, T, D]: D columns of each of H heads, as they were joined.

    The columns of qkv are q, k and v of the first head, then of the second one ... `mask` is
    additive, [T, S] or [B, T, S]; None is the causal one. Keys and values join those of the
    `cache`, if there is one, and the queries attend to all of them. Weights are dropped with
    `dropout_prob`, by a seed that is drawn from Paddle's generator.
    """
    if not _kernel_serves(qkv, heads, mask, dropout_prob, cache):
        return attend_plainly(qkv, heads, mask, dropout_prob, cache)
    if cache is not None:
        return library.run(
            "cached_attention", qkv, cache.keys, cache.values, mask, heads, cache.length
        )[0]
    seed = paddle.randint(0, LARGEST_SEED, [2], "int64") if dropout_prob else None
    return library.run("attention", qkv, mask, seed, heads, dropout_prob)[0]


def attend_plainly(
    qkv: Tensor,
    heads: int,
    mask: Tensor | None = None,
    dropout_prob: float = 0.0,
    cache: LayerCache | None = None,
) -> Tensor:
    """Do what `attend` does with Paddle's own operators, on any device and in any type."""
    # Splitting along heads and joining on the batch axis gives bit for bit what the usual 4-D
    # transpose gives, at half its time on a CPU (transposes are Paddle's slowest CPU op).
    columns = paddle.split(qkv, 3 * heads, axis=-1)
    q, k, v = (paddle.concat(columns[part::3], axis=0) for part in range(3))
    if cache is not None:
        k, v = cache.append(k, v)
    steps, past = q.shape[1], k.shape[1] - q.shape[1]
    if mask is None:
        mask = causal_mask(steps, past)
    scores = paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True)
    # One mask serves all heads of a sequence: seen as [H, B, T, S], which copies nothing.
    scores_HBTS = scores.reshape([heads, -1, *scores.shape[1:]])
    weights = functional.softmax(scores_HBTS + mask.astype(scores.dtype), axis=-1)
    if dropout_prob:
        weights = functional.dropout(weights, dropout_prob)
    attended = paddle.matmul(weights.reshape(scores.shape), v)
    return paddle.concat(paddle.split(attended, heads, axis=0), axis=-1)


def causal_mask(steps: int, past: int = 0) -> Tensor:
    """Return the mask [steps, past + steps] that hides from each new token those behind it."""
    return paddle.triu(paddle.full([steps, past + steps], MASKED), diagonal=past + 1)


def _kernel_serves(
    qkv: Tensor, heads: int, mask: Tensor | None, dropout_prob: float, cache: LayerCache | None
) -> bool:
    if not library.serves(qkv, mask) or qkv.shape[-1] > 3 * heads * LARGEST_HEAD_SIZE:
        return False
    if cache is not None:  # what is written into it has no gradient
        return qkv.stop_gradient and not dropout_prob and library.serves(cache.keys)
    return dropout_prob < 1 and (mask is None or mask.stop_gradient)
