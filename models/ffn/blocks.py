"""What the kinds with block-diagonal factors share: the product, the start, the rates, the merge.

A block-diagonal [in, out] matrix of b blocks is kept as [b, in/b, out/b]; a product with it is one
batched matmul that costs a b-th of the dense one.

Shape legend: N tokens, D hidden_size, F ffn_hidden_size, b blocks, R rank.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import paddle
from paddle import Tensor, nn

from models.ffn.base import FFN, Shape
from models.ffn.dense import DenseFFN
from models.ffn.parameters import to_float64


class RateOptions(Protocol):
    """The options that decide the learning rates of blocks."""

    @property
    def lr_rule(self) -> Literal["none", "spectral"]:
        """`none` or `spectral`."""

    @property
    def lr_cap(self) -> float:
        """Largest multiple of the dense learning rate."""


class BlockLinear(nn.Layer):
    """A Linear whose [in, out] weight is made of blocks; a kind adds its weights and `forward`.

    Raises `ValueError` where `blocks` does not divide the sizes.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        options: Any,
        *,
        init_std: float = 0.02,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.blocks = options.blocks
        self.create_weights(options, init_std)
        self.bias = self.create_parameter([out_features], is_bias=True) if bias else None

    def create_weights(self, options: Any, init_std: float) -> None:
        """Make the factors, so that their product starts as a matrix of `init_std` would."""
        raise NotImplementedError

    def dense_weight(self) -> np.ndarray:
        """Return the [in, out] matrix of the same function, multiplied in float64."""
        raise NotImplementedError

    def fit(self, weight_IO: np.ndarray) -> None:
        """Overwrite the factors by the best approximation of a dense weight (Frobenius norm)."""
        raise NotImplementedError

    def merge(self) -> nn.Linear:
        """Return the ordinary Linear of the same function and dtype."""
        dtype = next(iter(self.parameters())).dtype
        linear = nn.Linear(
            self.in_features, self.out_features, bias_attr=None if self.bias is not None else False
        )
        linear.to(dtype=dtype)
        linear.weight.set_value(paddle.to_tensor(self.dense_weight(), dtype=dtype))
        if self.bias is not None:
            linear.bias.set_value(self.bias)
        linear.training = self.training
        return linear

    @classmethod
    def from_linear(cls, linear: nn.Linear, options: Any, init_std: float = 0.02) -> BlockLinear:
        """Return the best approximation of `linear`; its bias is kept.

        It trains at the rates of a layer that starts with `init_std`.
        """
        in_features, out_features = linear.weight.shape
        layer = cls(
            in_features, out_features, options, init_std=init_std, bias=linear.bias is not None
        )
        layer.to(dtype=linear.weight.dtype)
        layer.fit(to_float64(linear.weight))
        if layer.bias is not None:
            layer.bias.set_value(linear.bias)
        layer.training = linear.training
        return layer

    def add_weight(
        self, shape: list[int], initializer: nn.initializer.Initializer, rate: float
    ) -> Tensor:
        """Make a parameter that trains at `rate` times the learning rate."""
        attr = paddle.ParamAttr(initializer=initializer, learning_rate=rate)
        return self.create_parameter(shape, attr=attr)

    def add_bias(self, y: Tensor) -> Tensor:
        """Add the bias, if there is one."""
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"blocks={self.blocks}"
        )


class BlockFFN(FFN):
    """A feed-forward of two `BlockLinear`s; a kind sets `kind`, `Options`, `Linear` and `cost`."""

    Linear: ClassVar[type[BlockLinear]]

    def __init__(self, shape: Shape, options: Any) -> None:
        super().__init__(shape, options)
        d, f, std = shape.hidden_size, shape.ffn_hidden_size, shape.init_std
        self.linear1 = self.Linear(d, f, options, init_std=std)
        self.linear2 = self.Linear(f, d, options, init_std=std)

    @classmethod
    def approximate_pair(
        cls, linear1: nn.Linear, linear2: nn.Linear, options: Any, init_std: float
    ) -> tuple[nn.Layer, nn.Layer]:
        """Fit either matrix by itself; biases are kept."""
        return (
            cls.Linear.from_linear(linear1, options, init_std),
            cls.Linear.from_linear(linear2, options, init_std),
        )

    def merge(self) -> DenseFFN:
        """Multiply out both matrices."""
        return DenseFFN.from_linears(self.linear1.merge(), self.linear2.merge(), self.activation)


class OrthogonalBlocks(nn.initializer.Initializer):
    """Start each block of a [b, rows, columns] weight as `scale` times a random orthogonal matrix.

    Where a block is not square, its shorter side is orthonormal (QR of normal entries with the
    signs of R's diagonal taken out, which makes it uniform; arXiv:math-ph/0609050). A [rows,
    columns] weight is one block.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, param: Tensor, block: object = None) -> None:
        """Fill `param`; Paddle calls it, under `LazyGuard` not before values are asked for."""
        *blocks, rows, columns = param.shape
        dtype = "float64" if param.dtype == paddle.float64 else "float32"
        with paddle.no_grad():
            normal = paddle.randn([*blocks, max(rows, columns), min(rows, columns)], dtype)
            q, r = paddle.linalg.qr(normal)
            signs = paddle.sign(paddle.diagonal(r, axis1=-2, axis2=-1))
            q = q * (self.scale * signs).unsqueeze(-2)
            value = paddle.moveaxis(q, -1, -2) if rows < columns else q
            paddle.assign(value.astype(param.dtype), param)


def start_norm(in_features: int, out_features: int, rank: int, init_std: float) -> float:
    """Return the spectral norm at which a product of orthogonal factors starts.

    All of its `rank` singular values are equal. They are set such that the product has the spread
    of a dense start (its entries have the root mean square init_std: σ = init_std·√(in·out/rank)),
    or its spectral norm init_std·(√in + √out) where the spread would need more: then the step sizes
    that suit a dense matrix suit the product. The spread decides from rank in·out/(√in + √out)² on,
    4/9 of D at F = 4D; below it the product starts with less spread, as truncated SVD does.
    """
    spread = math.sqrt(in_features * out_features / rank)
    return init_std * min(spread, math.sqrt(in_features) + math.sqrt(out_features))


def learning_rate_scale(
    options: RateOptions,
    *,
    dense_size: int,
    size: int,
    blocks: int = 1,
    other_norm: float = 1.0,
    share: float = 1.0,
) -> float:
    """Multiple of the dense learning rate η for one factor of a matrix.

    `dense_size` is in·out, `size` the factor's rows·columns (zeros included), `other_norm` the
    spectral norm of the other factor, `share` this factor's part of the movement.

    An Adam step is sign-like: it moves a dense matrix by η·√(in·out) in spectral norm, and a
    block-diagonal [rows, columns] one by η·√(rows·columns)/b, which the other factor's norm
    multiplies. Rule `spectral` gives the factor its share of the dense movement, at most `lr_cap`
    times η. The norms are those of the start, so that a resumed run has the same rates. Rule
    `none`, the default, is 1: the other one bounds how far a step moves and does not say how far is
    best, and the experiments of Wei et al. 2024 have one rate for dense and structured layers.
    """
    if options.lr_rule == "none":
        return 1.0
    return min(share * blocks * math.sqrt(dense_size / size) / other_norm, options.lr_cap)


def check_blocks(blocks: int, *sizes: int) -> None:
    """Raise `ValueError`, naming the numbers that fit, where `blocks` does not divide all sizes."""
    if blocks < 1 or any(size % blocks for size in sizes):
        common = math.gcd(*sizes)
        fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        named = ", ".join(map(str, sizes))
        raise ValueError(f"blocks {blocks} does not divide all of {named}; these do: {fits}")


def split_columns(x: Tensor, blocks: int) -> Tensor:
    """Cut [..., in] into [b, N, in/b]."""
    return x.reshape([-1, blocks, x.shape[-1] // blocks]).transpose([1, 0, 2])


def join_columns(y_bNo: Tensor, leading: list[int]) -> Tensor:
    """Put the blocks of [b, N, out/b] side by side: [*leading, out]."""
    return y_bNo.transpose([1, 0, 2]).reshape([*leading, y_bNo.shape[0] * y_bNo.shape[2]])


def multiply_blocks(x: Tensor, weight_bio: Tensor) -> Tensor:
    """Multiply [..., in] by the block-diagonal matrix of [b, in/b, out/b]: [..., out].

    3-D transposes and one batched matmul: on a CPU as fast as b products of split columns where
    these are large, and up to twice as fast where they are small.
    """
    # `matmul` rather than `bmm`: automatic mixed precision lists only the former.
    y_bNo = paddle.matmul(split_columns(x, weight_bio.shape[0]), weight_bio)
    return join_columns(y_bNo, x.shape[:-1])


def block_diagonal_matrix(weight_bio: np.ndarray) -> np.ndarray:
    """Return the [in, out] matrix with these blocks on its diagonal."""
    blocks, rows, columns = weight_bio.shape
    matrix = np.zeros([blocks, rows, blocks, columns], weight_bio.dtype)
    for block in range(blocks):
        matrix[block, :, block] = weight_bio[block]
    return matrix.reshape([blocks * rows, blocks * columns])


def diagonal_blocks(matrix_IO: np.ndarray, blocks: int) -> np.ndarray:
    """Return the [b, in/b, out/b] blocks on the diagonal of a matrix [in, out]."""
    rows, columns = matrix_IO.shape
    grid = matrix_IO.reshape([blocks, rows // blocks, blocks, columns // blocks])
    return np.stack([grid[block, :, block] for block in range(blocks)])


def overwrite(parameter: Tensor, value: np.ndarray) -> None:
    """Set a parameter, cast to its dtype."""
    parameter.set_value(paddle.to_tensor(value, dtype=parameter.dtype))
