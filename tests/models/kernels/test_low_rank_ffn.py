"""The fused feed-forward of thin factors: what `test_feed_forwards` does not say of it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from models.kernels import library
from models.kernels.low_rank_ffn import low_rank_ffn
from tests.models.kernels.feed_forwards import (
    ACTIVATIONS,
    TOLERANCE,
    largest_error,
    random_arrays,
    to_tensors,
)

# Tokens, D, F, R: no multiple of any vector or tile, more ranks than a tile is deep, few tokens.
RAGGED = [(101, 70, 131, 5), (95, 96, 64, 8), (250, 33, 200, 17), (64, 65, 129, 77)]
LARGE = [(8, 96, 384, 8), (700, 64, 256, 33), (97, 200, 260, 150)]


@pytest.fixture(autouse=True)
def loaded():
    library.load()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "outer", "hidden", "rank"), RAGGED + LARGE)
def test_output_and_gradients_agree_with_float64(rng, tokens, outer, hidden, rank, activation):
    arrays = random_arrays(rng, (tokens,), outer, hidden, rank)

    assert largest_error(low_rank_ffn, arrays, activation) < TOLERANCE


def test_sums_over_very_many_tokens_agree_with_float64(rng):
    arrays = random_arrays(rng, (60_000,), 16, 64, 4)

    assert largest_error(low_rank_ffn, arrays, "gelu") < TOLERANCE


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_very_large_hidden_units_pass_or_vanish(activation):
    one = paddle.ones([1, 1])
    x = paddle.to_tensor([[5e4], [-5e4]], stop_gradient=False)
    out = low_rank_ffn(x, one, one, None, one, one, None, activation)
    out.sum().backward()

    np.testing.assert_allclose(out.numpy(), [[5e4], [0]], atol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), [[1], [0]], atol=1e-6)


def test_the_hidden_units_are_not_kept(rng):
    kept = []

    def keep(tensor):
        kept.append(tensor.size)
        return tensor

    with paddle.autograd.saved_tensors_hooks(keep, lambda tensor: tensor):
        low_rank_ffn(*to_tensors(random_arrays(rng, (3, 37), 48, 100, 6)), "gelu")

    assert kept
    assert all(size < 3 * 37 * 100 for size in kept)
