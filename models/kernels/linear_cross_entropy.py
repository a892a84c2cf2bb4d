"""The loss of a language model's head without the logits of all tokens: a few tokens at a time.

    loss = Σₙ mₙ · −log softmax(xₙ Wᵀ)[labelₙ]
    dx   = P W,   dW = Pᵀ x,   P = m · (softmax(x Wᵀ) − onehot(label))

While a chunk's logits are there, so is all that its gradients need: they are computed in the
forward pass and only scaled in the backward one (Liger kernel, Hsu et al. 2024, arXiv:2410.10989).
Neither [N, V] logits nor their softmax ever exist. Products of half precision under AMP are those
of `paddle.matmul`; softmax and sums are float32 then.

Shape legend: N tokens, V vocabulary, K width of the table, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer
from paddle.nn import functional

from models.kernels import library

# Tokens of a chunk. The kernel adds each chunk's dW onto the last one's within the product, a pass
# over [V, K]: at V = 50304, K = 768 and 1024 tokens, 512 take 3 % more time than a single chunk of
# all, 256 take 9 %, 128 take 10 %. At a few thousand words the size makes no difference.
KERNEL_ROWS = 512
# Paddle's operators write it and add it: larger chunks, of some 256 MiB of float32 logits.
REFERENCE_LOGITS = 1 << 26


def linear_cross_entropy(x: Tensor, table_VK: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return Σ mask · −log softmax(x tableᵀ)[label], 0-d, float32 (of float64: float64).

    `x` is [..., K]; `labels` (int64, of 0 to V - 1) and `mask` (a weight of each token) have its
    shape but for the last dimension. The CPU's kernel does not look at chunks whose weights are all
    0. Gradients lead to `x` and to the table, in one backward pass (Paddle's PyLayers have no
    second). Raises `ValueError` for shapes that do not fit together.
    """
    x_NK, labels_N = _flatten(x, table_VK, labels)
    mask_N = mask.reshape([-1]).astype(_summing_dtype(x_NK))
    if mask_N.shape != labels_N.shape:
        raise ValueError(f"mask of {mask.shape} for labels of {labels.shape}")
    if not paddle.in_dynamic_mode():  # being traced: one graph, the compiler's to cut
        logits_NV = paddle.matmul(x_NK, table_VK, transpose_y=True)
        return paddle.sum(_weighted_losses(logits_NV, labels_N, mask_N))
    grad = paddle.is_grad_enabled()
    wanted = (grad and not x_NK.stop_gradient, grad and not table_VK.stop_gradient)
    if any(wanted):
        return _ChunkedLoss.apply(x_NK, table_VK, labels_N, mask_N, wanted)
    losses_N, _, _ = _run_chunks(x_NK, table_VK, labels_N, mask_N, wanted)
    return paddle.sum(losses_N)


def token_losses(x: Tensor, table_VK: Tensor, labels: Tensor) -> Tensor:
    """Return −log softmax(x tableᵀ)[label] of every token, [N], without gradients.

    The arguments and dtypes are those of `linear_cross_entropy`.
    """
    x_NK, labels_N = _flatten(x, table_VK, labels)
    mask_N = paddle.ones(labels_N.shape, _summing_dtype(x_NK))
    with paddle.no_grad():
        return _run_chunks(x_NK, table_VK, labels_N, mask_N, (False, False))[0]


def count_chunk_tokens(vocab_size: int, *, kernel: bool) -> int:
    """Return how many tokens have logits at a time, with the CPU's kernel or without it."""
    return KERNEL_ROWS if kernel else max(1, REFERENCE_LOGITS // vocab_size)


class _ChunkedLoss(PyLayer):
    """The summed loss, whose gradients are there before anyone asks.

    Not where the products are float16: there the gradients have to be computed at the scale that
    the backward pass brings, because without the loss scale they vanish.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NK: Tensor,
        table_VK: Tensor,
        labels_N: Tensor,
        mask_N: Tensor,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        ctx.gradients = ctx.postponed = None
        if _multiplies_in_float16(x_NK, table_VK):
            dtypes = x_NK.dtype, table_VK.dtype
            x_NK, table_VK = x_NK.astype(paddle.float16), table_VK.astype(paddle.float16)
            losses_N, _, _ = _run_chunks(x_NK, table_VK, labels_N, mask_N, (False, False))
            ctx.postponed = (x_NK, table_VK, labels_N, mask_N), wanted, dtypes
        else:
            losses_N, *gradients = _run_chunks(x_NK, table_VK, labels_N, mask_N, wanted)
            ctx.gradients = gradients
        return paddle.sum(losses_N)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.postponed is not None:
            (x_NK, table_VK, labels_N, mask_N), wanted, dtypes = ctx.postponed
            with paddle.no_grad():
                _, *parts = _run_chunks(x_NK, table_VK, labels_N, mask_N * scale, wanted)
            dx, dtable = (
                None if part is None else part.astype(dtype)
                for part, dtype in zip(parts, dtypes, strict=True)
            )
            return dx, dtable, None, None
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: once
        # Reading the scale waits for a device, which costs more there than multiplying.
        if not (scale.place.is_cpu_place() and scale.item() == 1.0):
            gradients = [None if each is None else _scale(each, scale) for each in gradients]
        return (*gradients, None, None)


def _multiplies_in_float16(x_NK: Tensor, table_VK: Tensor) -> bool:
    """Tell whether products of these are float16 here: by themselves or by AMP."""
    if x_NK.dtype == paddle.float64 or not x_NK.shape[0]:
        return False
    return paddle.matmul(x_NK[:1], table_VK[:1], transpose_y=True).dtype == paddle.float16


def _scale(gradient: Tensor, scale: Tensor) -> Tensor:
    """Multiply in place; the scale itself is not rounded to bfloat16."""
    if gradient.dtype == scale.dtype:
        return gradient.multiply_(scale)
    return (gradient.astype(scale.dtype) * scale).astype(gradient.dtype)


def _run_chunks(
    x_NK: Tensor,
    table_VK: Tensor,
    labels_N: Tensor,
    mask_N: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return weighted losses [N], and what is wanted of dx and dW."""
    if library.serves(x_NK, table_VK, mask_N) and library.multiplies():
        losses_N, *gradients = library.run(
            "linear_cross_entropy", x_NK, table_VK, labels_N, mask_N, KERNEL_ROWS, *wanted
        )
        dx_NK, dtable_VK = (
            each if wish else None for each, wish in zip(gradients, wanted, strict=True)
        )
        return losses_N, dx_NK, dtable_VK
    return _run_reference(x_NK, table_VK, labels_N, mask_N, wanted)


def _run_reference(
    x_NK: Tensor,
    table_VK: Tensor,
    labels_N: Tensor,
    mask_N: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    losses, dxs = [paddle.zeros([0], mask_N.dtype)], [paddle.zeros([0, x_NK.shape[1]], x_NK.dtype)]
    dtable_VK = paddle.zeros(table_VK.shape if wanted[1] else [0], mask_N.dtype)
    rows = count_chunk_tokens(table_VK.shape[0], kernel=False)
    for start in range(0, x_NK.shape[0], rows):
        x_CK, labels_C = x_NK[start : start + rows], labels_N[start : start + rows]
        mask_C = mask_N[start : start + rows]
        logits_CV = paddle.matmul(x_CK, table_VK, transpose_y=True)
        if not any(wanted):
            losses.append(_weighted_losses(logits_CV, labels_C, mask_C))
            continue
        losses_C, dlogits_CV = _differentiate(logits_CV, labels_C, mask_C)
        del logits_CV
        losses.append(losses_C)
        if wanted[0]:
            dxs.append(paddle.matmul(dlogits_CV, table_VK).astype(x_NK.dtype))
        if wanted[1]:
            part_VK = paddle.matmul(dlogits_CV, x_CK, transpose_x=True).astype(mask_N.dtype)
            dtable_VK = dtable_VK.add_(part_VK) if start else part_VK
    return (
        paddle.concat(losses),
        paddle.concat(dxs) if wanted[0] else None,
        dtable_VK.astype(table_VK.dtype) if wanted[1] else None,
    )


def _differentiate(logits_CV: Tensor, labels_C: Tensor, mask_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted losses [C], and the gradient of their sum in the dtype of the logits.

    The operators are those of `functional.cross_entropy` and its backward pass, called by
    themselves: what is recomputed must not be differentiated while it runs.
    """
    labels_C1, mask_C1 = labels_C.unsqueeze(1), mask_C.unsqueeze(1)
    how = (False, True, True, -100, -1)  # hard labels, of logits, stable, ignored index, axis
    softmax_CV, losses_C1 = paddle._C_ops.cross_entropy_with_softmax(
        logits_CV.astype(mask_C.dtype), labels_C1, *how
    )
    dlogits_CV = paddle._C_ops.cross_entropy_with_softmax_grad_(
        labels_C1, softmax_CV, mask_C1, *how
    )
    return (losses_C1 * mask_C1).squeeze(1), dlogits_CV.astype(logits_CV.dtype)


def _weighted_losses(logits_NV: Tensor, labels_N: Tensor, mask_N: Tensor) -> Tensor:
    losses = functional.cross_entropy(logits_NV.astype(mask_N.dtype), labels_N, reduction="none")
    return losses.reshape([-1]) * mask_N


def _flatten(x: Tensor, table_VK: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [N, K] and labels [N]; raises `ValueError` where they do not fit together."""
    x_NK, labels_N = x.reshape([-1, x.shape[-1]]), labels.reshape([-1])
    if x_NK.shape[1] != table_VK.shape[1] or x_NK.shape[0] != labels_N.shape[0]:
        raise ValueError(
            f"hidden states of {x.shape} and a table of {table_VK.shape} for labels of "
            f"{labels.shape}"
        )
    return x_NK, labels_N


def _summing_dtype(x: Tensor) -> paddle.dtype:
    return paddle.float64 if x.dtype == paddle.float64 else paddle.float32
