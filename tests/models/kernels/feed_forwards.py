"""Random feed-forwards, and what a fused one computes against float64 and Paddle's operators."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import paddle
from paddle import Tensor

from models.kernels import library
from models.kernels.dense_ffn import dense_ffn
from models.kernels.low_rank_ffn import low_rank_ffn

TOLERANCE = 1e-5  # of the largest value of an array
ACTIVATIONS = ["gelu", "erf_gelu", "fast_gelu"]
OPERATORS: dict[str, Callable[..., Tensor]] = {"low_rank": low_rank_ffn, "dense": dense_ffn}


def random_arrays(
    rng: np.random.Generator, leading: tuple[int, ...], outer: int, hidden: int, rank: int | None
) -> list[np.ndarray]:
    """Return x and the weights of `low_rank_ffn`, or of `dense_ffn` without a rank, in float32."""
    if rank is None:
        first, second = [(outer, hidden)], [(hidden, outer)]
    else:
        first, second = [(outer, rank), (rank, hidden)], [(hidden, rank), (rank, outer)]
    shapes: list[tuple[int, ...]] = [(*leading, outer), *first, (hidden,), *second, (outer,)]
    spreads = [1.0, *(s[0] ** -0.5 for s in first), 1.0, *(s[0] ** -0.5 for s in second), 1.0]
    return [
        (spread * rng.standard_normal(shape)).astype("float32")
        for shape, spread in zip(shapes, spreads, strict=True)
    ]


def to_tensors(arrays: list[np.ndarray]) -> list[Tensor]:
    """Return what an operator takes, with gradients."""
    return [paddle.to_tensor(each, stop_gradient=False) for each in arrays]


def run(
    operator: Callable[..., Tensor], arrays: list[np.ndarray], activation: str, dtype: str
) -> list[np.ndarray]:
    """Return the output and the gradients of a sum with fixed random weights."""
    tensors = [paddle.to_tensor(each.astype(dtype), stop_gradient=False) for each in arrays]
    out = operator(*tensors, activation)
    weights = np.random.default_rng(1).standard_normal(out.shape).astype("float32")
    out.backward(paddle.to_tensor(weights.astype(dtype)))
    return [out.numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def largest_error(
    operator: Callable[..., Tensor], arrays: list[np.ndarray], activation: str
) -> float:
    """Return how far output and gradients are from Paddle's operators in float64.

    The largest of all differences, each over the largest value of its array.
    """
    fused = run(operator, arrays, activation, "float32")
    with library.suspended():
        exact = run(operator, arrays, activation, "float64")
    return max(
        float(np.abs(ours - true).max() / np.abs(true).max())
        for ours, true in zip(fused, exact, strict=True)
    )


if __name__ == "__main__":  # name seed leading outer hidden rank activation, as JSON
    name, seed, *sizes, activation = json.loads(sys.argv[1])
    library.load()
    arrays = random_arrays(np.random.default_rng(seed), (sizes[0],), *sizes[1:])
    sys.stdout.write(f"{library.path()} {largest_error(OPERATORS[name], arrays, activation)}\n")
