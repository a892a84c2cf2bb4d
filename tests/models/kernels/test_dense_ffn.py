"""The fused feed-forward of whole matrices: what `test_feed_forwards` does not say of it."""

from __future__ import annotations

import paddle
import pytest

from models.kernels import library
from models.kernels.dense_ffn import dense_ffn
from tests.models.kernels.feed_forwards import (
    ACTIVATIONS,
    TOLERANCE,
    largest_error,
    random_arrays,
    to_tensors,
)


@pytest.fixture(autouse=True)
def loaded():
    library.load()
    if not library.multiplies():
        pytest.skip("this Paddle brings no MKL")


# The last one is more tokens than go through at a time.
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("tokens", "outer", "hidden"), [(101, 70, 131), (8, 96, 384), (250, 33, 7), (2500, 40, 100)]
)
def test_output_and_gradients_agree_with_float64(rng, tokens, outer, hidden, activation):
    arrays = random_arrays(rng, (tokens,), outer, hidden, None)

    assert largest_error(dense_ffn, arrays, activation) < TOLERANCE


def test_the_hidden_units_are_kept_once(rng):
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with paddle.autograd.saved_tensors_hooks(keep, lambda tensor: tensor):
        dense_ffn(*to_tensors(random_arrays(rng, (3, 37), 48, 101, None)), "gelu")

    assert sum(tensor.size == 3 * 37 * 101 for tensor in kept.values()) == 1
