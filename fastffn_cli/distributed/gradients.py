"""Adding up the gradients of processes that read other sequences.

Like gradients travel together in buffers of a bounded size (PyTorch DDP's buckets, Li et al. 2020,
arXiv:2006.15704), after the last micro batch: once a step, whatever it accumulates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import paddle
from paddle import Tensor

from models.kernels import adamw, library

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis

BUCKET = 1 << 24  # values: 64 MiB of float32


def sum_gradients(parameters: Sequence[Tensor], axis: Axis) -> None:
    """Replace each gradient by the sum of those of all processes along `axis`.

    All of them must pass the same parameters in the same order. One that had no gradient here (an
    expert that no token came to) adds zeros.
    """
    if axis.size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    with paddle.no_grad():
        for bucket in buckets([parameter.grad for parameter in parameters]):
            summed = axis.all_sum(flatten(bucket))
            for gradient, value in zip(bucket, unflatten(summed, bucket), strict=True):
                paddle.assign(value, gradient)


def squared_norm(parameters: Iterable[Tensor]) -> float:
    """Sum of the squares of all gradients that are there."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    if not gradients:
        return 0.0
    if library.serves(*gradients):
        return adamw.squared_norm(gradients)
    return float(paddle.add_n([_squared_norm(each) for each in gradients]).item())


def _squared_norm(gradient: Tensor) -> Tensor:
    # One pass over the memory; the operator behind Paddle's own ClipGradByGlobalNorm.
    kernel = getattr(paddle._C_ops, "squared_l2_norm", None)
    if kernel is not None and gradient.dtype == paddle.float32:
        return kernel(gradient)
    return paddle.sum(paddle.square(gradient.astype("float32"))).reshape([1])


def buckets(tensors: Sequence[Tensor], limit: int = BUCKET) -> Iterator[list[Tensor]]:
    """Cut a list of tensors into lists of one dtype and of at most `limit` values each.

    A larger tensor is a bucket of its own.
    """
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        filled = 0
        for tensor in tensors:
            if tensor.dtype != kind:
                continue
            if bucket and filled + tensor.size > limit:
                yield bucket
                bucket, filled = [], 0
            bucket.append(tensor)
            filled += tensor.size
        yield bucket


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors into one of one dimension."""
    return paddle.concat([tensor.reshape([-1]) for tensor in tensors])


def unflatten(joined: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut what `flatten` joined into tensors of the shapes of `like`."""
    pieces = paddle.split(joined, [tensor.size for tensor in like])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
