"""Operators that work on rows, on random input: what they compute, and what float64 does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

import numpy as np
import paddle
from paddle import Tensor

from models.kernels import library
from models.kernels.layer_norm import layer_norm
from models.kernels.linear import linear

# By name: the operator, and the shapes of its arguments behind x for x of a width.
OPERATORS: dict[str, tuple[Callable[..., Tensor], Callable[[int], list[tuple[int, ...]]]]] = {
    "layer_norm": (layer_norm, lambda width: [(width,), (width,)]),
    "linear": (linear, lambda width: [(width, 2 * width + 1), (2 * width + 1,)]),
}


def random_arrays(
    rng: np.random.Generator, name: str, leading: Sequence[int], width: int
) -> list[np.ndarray]:
    """Return x [*leading, width] and the other arguments in float32."""
    shapes = [(*leading, width), *OPERATORS[name][1](width)]
    return [(0.5 + rng.standard_normal(shape)).astype("float32") for shape in shapes]


def run(name: str, arrays: Sequence[np.ndarray], dtype: str = "float32") -> list[np.ndarray]:
    """Return the output and the gradients of a sum with fixed random weights."""
    tensors = [paddle.to_tensor(each.astype(dtype), stop_gradient=False) for each in arrays]
    out = OPERATORS[name][0](*tensors)
    weights = np.random.default_rng(1).standard_normal(out.shape)
    out.backward(paddle.to_tensor(weights.astype("float32").astype(dtype)))
    return [out.numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def largest_error(name: str, arrays: Sequence[np.ndarray]) -> float:
    """Return the largest difference from Paddle in float64, over the array's largest value."""
    ours = run(name, arrays)
    with library.suspended():
        exact = run(name, arrays, "float64")
    return max(
        float(np.abs(one - true).max() / np.abs(true).max())
        for one, true in zip(ours, exact, strict=True)
    )


if __name__ == "__main__":  # operator, seed, rows, width as JSON
    name, seed, rows, width = json.loads(sys.argv[1])
    library.load()
    arrays = random_arrays(np.random.default_rng(seed), name, (rows,), width)
    sys.stdout.write(f"{library.path()} {largest_error(name, arrays)}\n")
