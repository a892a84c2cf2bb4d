"""Dropout by computed random numbers: what stays, what is drawn, what is drawn again."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

from models.kernels import library
from models.kernels.dropout import Dropout, dropout
from tests.models.kernels.on_path import PATHS, run_python

DIGEST = """
import hashlib, paddle
from models.kernels import library
from models.kernels.dropout import dropout

library.load()
paddle.seed(11)
print(hashlib.sha256(dropout(paddle.ones([1003, 37]), 0.3).numpy().tobytes()).hexdigest())
"""


@pytest.fixture(autouse=True)
def seeded():
    library.load()
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"paddle.seed({seed})")
    paddle.seed(seed)


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("shape", [[301, 1007], [7, 31, 999]])
def test_values_are_dropped_with_the_probability_and_the_others_scaled(shape, probability):
    x = paddle.randn(shape)
    y = dropout(x, probability)

    kept = y.numpy() != 0
    deviation = math.sqrt(probability * (1 - probability) / kept.size)
    assert abs(kept.mean() - (1 - probability)) < 5 * deviation
    np.testing.assert_allclose(y.numpy()[kept], x.numpy()[kept] / (1 - probability), rtol=1e-5)


@pytest.mark.parametrize("distance", [1, 2, 16, 256, 4096])
def test_what_happens_to_a_value_tells_nothing_of_others(distance):
    kept = (dropout(paddle.ones([1 << 20]), 0.5).numpy() > 0).astype(float) - 0.5
    both = 4 * (kept[:-distance] * kept[distance:]).mean()

    assert abs(both) < 5 / math.sqrt(kept.size)


def test_two_calls_draw_independent_numbers():
    ones = paddle.ones([1 << 20])
    first, second = ((dropout(ones, 0.5).numpy() > 0).astype(float) - 0.5 for _ in range(2))

    assert abs(4 * (first * second).mean()) < 5 / math.sqrt(first.size)


def test_the_backward_pass_drops_the_same_values():
    x = paddle.randn([33, 77])
    x.stop_gradient = False
    y = dropout(x, 0.4)
    weights = paddle.randn(y.shape)
    y.backward(weights)

    expected = np.where(y.numpy() != 0, weights.numpy() / np.float32(0.6), 0)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


def test_a_seed_gives_the_same_numbers_again_and_others_later():
    ones = paddle.ones([1000])
    paddle.seed(5)
    first, later = dropout(ones, 0.5).numpy(), dropout(ones, 0.5).numpy()
    paddle.seed(5)

    np.testing.assert_array_equal(dropout(ones, 0.5).numpy(), first)
    assert (first != later).any()


def test_every_path_draws_the_same_numbers():
    digests = {run_python(path, "-c", DIGEST)[-1] for path in PATHS}

    assert len(digests) == 1


def test_recompute_drops_the_same_values_again():
    x = paddle.randn([50, 40])
    x.stop_gradient = False
    y = recompute(lambda x: dropout(x, 0.5) ** 2, x, use_reentrant=False)
    paddle.randn([3])  # the generator has gone on before the backward pass
    y.sum().backward()

    np.testing.assert_array_equal(x.grad.numpy() != 0, y.numpy() != 0)


def test_a_traced_program_draws_new_numbers_in_each_run():
    @paddle.jit.to_static(full_graph=True)
    def traced(x):
        return dropout(x, 0.5)

    x = paddle.ones([4, 1000])
    x.stop_gradient = False
    first, second = traced(x), traced(x)
    first.sum().backward()

    assert (first.numpy() != second.numpy()).any()
    np.testing.assert_array_equal(x.grad.numpy(), first.numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_dropped(value):
    y = dropout(paddle.full([1000], value), 0.9).numpy()

    assert not np.isfinite(y).any()


def test_strides_are_minded():
    x = paddle.randn([30, 40])
    paddle.seed(3)
    straight = dropout(x.transpose([1, 0]).contiguous(), 0.5)
    paddle.seed(3)

    np.testing.assert_array_equal(dropout(x.transpose([1, 0]), 0.5).numpy(), straight.numpy())


def test_nothing_is_dropped_outside_of_training():
    layer = Dropout(0.5)
    layer.eval()
    x = paddle.randn([100])

    assert layer(x) is x


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_ends_of_the_range(probability):
    x = paddle.ones([100])

    assert float(dropout(x, probability).sum()) == 100 * (1 - probability)


@pytest.mark.parametrize("shape", [[0], [3, 0], [1], []])
def test_small_and_empty_tensors_pass(shape):
    assert dropout(paddle.ones(shape), 0.5).shape == shape
