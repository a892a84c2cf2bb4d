"""The inside of a feed-forward of thin factors, in the form that fits the device and the wish.

    y = activation(z @ right1 + bias1) @ left2        z [..., R], y [..., R]

Anywhere that can be Paddle's chain of operators, or the same in chunks of tokens; on a GPU also a
kernel (`cuda_library`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import paddle
from paddle import Tensor
from paddle.nn import functional

from models.kernels import cuda_library
from models.kernels.activation import ACTIVATIONS
from models.kernels.chunked_low_rank_inner import chunked_low_rank_inner

Form: TypeAlias = Literal["auto", "fused", "chunked"]

_form: Form = "auto"


def choose_form(form: Form) -> None:
    """Compute low-rank feed-forwards in this form from now on, in this process.

    `auto`: the kernel on a CPU, elsewhere Paddle's operators. `fused`: the kernel on a GPU as well.
    `chunked`: Paddle's operators, some tokens at a time. A kernel that is not loaded is not used.
    Raises `ValueError` for another one.
    """
    global _form
    if form not in get_args(Form):
        raise ValueError(f"no form '{form}'; there are {', '.join(get_args(Form))}")
    _form = form


def is_chunked() -> bool:
    """Tell whether chunks are wanted, whatever kernels there are."""
    return _form == "chunked"


def low_rank_inner(
    z: Tensor, right1: Tensor, bias1: Tensor | None, left2: Tensor, activation: str
) -> Tensor:
    """Return ``activation(z @ right1 + bias1) @ left2``, [..., R], in the chosen form.

    `z` is [..., R], `right1` [R, F], `bias1` [F], `left2` [F, R]; `activation` is a name of
    `models.kernels.activation.ACTIVATIONS`.
    """
    if is_chunked():
        return chunked_low_rank_inner(z, right1, bias1, left2, activation)
    if _form == "fused" and cuda_library.serves(z, right1, bias1, left2):
        return cuda_library.low_rank_inner(z, right1, bias1, left2, activation)
    hidden = functional.linear(z, right1, bias1)
    return paddle.matmul(ACTIVATIONS[activation](hidden), left2)
