"""Layer norm (Ba, Kiros and Hinton 2016, arXiv:1607.06450) in one pass forward and one backward."""

from __future__ import annotations

from paddle import Tensor, nn
from paddle.nn import functional

from models.kernels import library


class LayerNorm(nn.LayerNorm):
    """`paddle.nn.LayerNorm` over the last axis, by `layer_norm`."""

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__(width, epsilon=epsilon)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [..., width]."""
        return layer_norm(input, self.weight, self.bias, self._epsilon)


def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis, [..., D].

    The variance is that of the values, not an estimate of it. Kept for the backward pass are x and
    the mean and the inverse deviation of each row; dweight and dbias are summed by groups of rows,
    in the same order for any number of threads.
    """
    if not library.is_few(x) and library.serves(x, weight_D, bias_D):
        return library.run("layer_norm", x, weight_D, bias_D, epsilon)[0]
    return functional.layer_norm(x, x.shape[-1:], weight_D, bias_D, epsilon)
