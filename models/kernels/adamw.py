"""The optimizer's two passes over all parameters at once: the norm of the gradients, the update."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor

from models.kernels import library


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """Return the sum of the squares of all values of tensors that the kernels serve, in float64."""
    return float(library.run("squared_norm", list(tensors)).item())


def update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: tuple[Sequence[Tensor], Sequence[Tensor]],
    powers: tuple[Sequence[Tensor], Sequence[Tensor]],
    *,
    rates: Sequence[float],
    decays: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
    gradient_factor: float = 1.0,
) -> None:
    """Make one step of AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) in place.

    Of each parameter: the gradient times `gradient_factor`, the first and second moments, all of
    its shape, the powers of beta1 and beta2 that correct them, [1], its learning rate and its
    weight decay. The arithmetic is that of Paddle's `adamw_`, in float32, and the powers are
    multiplied by the betas as there. All must be tensors that the kernels serve.
    """
    with paddle.no_grad():
        # The same memory: an operator may not write into what asks for gradients itself.
        weights = [parameter.detach() for parameter in parameters]
        paddle._C_ops._run_custom_op(
            "fastffn_adamw",
            *map(list, (weights, gradients, *moments, *powers, rates, decays)),
            *betas,
            epsilon,
            gradient_factor,
        )
