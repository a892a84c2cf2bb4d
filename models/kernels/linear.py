"""A linear layer's products, with its bias and the bias' gradient beside them."""

from __future__ import annotations

from paddle import Tensor
from paddle.nn import functional

from models.kernels import library


def linear(x: Tensor, weight_IO: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return x W + b: [..., I] to [..., O].

    Where the kernels serve more than a few rows, products are MKL's and begin with the bias in
    their place; the sum of the gradient's rows takes one pass, where Paddle 3.3's is several times
    slower. Raises Paddle's errors for shapes that do not fit each other.
    """
    known = bias_O is not None and library.multiplies() and not library.is_few(x)
    if known and library.serves(x, weight_IO, bias_O):
        return library.run("linear", x, weight_IO, bias_O)
    return functional.linear(x, weight_IO, bias_O)
