"""The ordinary feed-forward layer: what every other kind is compared with and merged to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn

from models.ffn.base import FFN, FUSED_PAIRS, Cost, Shape
from models.kernels.dense_ffn import dense_ffn


@dataclass(frozen=True)
class DenseOptions:
    """`dense` has no options."""


class DenseFFN(FFN):
    """W2·gelu(W1·x + b1) + b2, full matrices: 4DF forward FLOPs a token, 2DF + F + D parameters.

    Weights start as Normal(0, init_std) and biases at 0, as in FleetX GPT.
    """

    kind = "dense"
    Options = DenseOptions

    def __init__(self, shape: Shape, options: DenseOptions | None = None) -> None:
        super().__init__(shape, options)
        d, f = shape.hidden_size, shape.ffn_hidden_size
        weight = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, shape.init_std))
        self.linear1 = nn.Linear(d, f, weight_attr=weight)
        self.linear2 = nn.Linear(f, d, weight_attr=weight)

    @classmethod
    def cost(cls, shape: Shape, options: DenseOptions) -> Cost:
        """Parameters 2DF + F + D, forward FLOPs 4DF a token."""
        d, f = shape.hidden_size, shape.ffn_hidden_size
        return Cost(
            parameters=2 * d * f + f + d,
            flops_per_token=4 * d * f,
            kept_per_token=2 * f,
            kept_fused=f,
        )

    def merge(self) -> DenseFFN:
        """Dense already: the layer itself."""
        return self

    @classmethod
    def from_linears(
        cls, linear1: nn.Linear, linear2: nn.Linear, activation: str = "gelu"
    ) -> DenseFFN:
        """Wrap two existing Linears, without copying or re-initialising them."""
        layer = cls.__new__(cls)
        nn.Layer.__init__(layer)
        layer.activation = activation
        layer.linear1, layer.linear2 = linear1, linear2
        return layer


def multiply_matrices(linear1: Any, linear2: Any, x: Tensor, activation: str) -> Tensor:
    """Return `linear2(activation(linear1(x)))`, whose hidden units are kept once."""
    return dense_ffn(x, linear1.weight, linear1.bias, linear2.weight, linear2.bias, activation)


FUSED_PAIRS[nn.Linear.forward] = multiply_matrices
