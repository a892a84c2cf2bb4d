"""The inside of a low-rank feed-forward in chunks of tokens, against the whole chain in float64."""

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

from models.kernels.activation import ACTIVATIONS
from models.kernels.chunked_low_rank_inner import (
    CHUNK_BYTES,
    SMALLEST_CHUNK,
    choose_chunk,
    chunked_low_rank_inner,
)

WIDTH, UNITS, RANK = 24, 70, 5
# Of the largest value. A CPU has no products in half precision: tests/npu has those.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
NAMES = ["out", "x", "left1", "right1", "bias1", "left2", "right2", "bias2"]


@pytest.fixture
def arrays():
    """A feed-forward's input and weights, and the gradient of its output, in float64."""
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    shapes = {
        "x": [3, 13, WIDTH],
        "left1": [WIDTH, RANK],
        "right1": [RANK, UNITS],
        "bias1": [UNITS],
        "left2": [UNITS, RANK],
        "right2": [RANK, WIDTH],
        "bias2": [WIDTH],
    }
    # Numbers that every dtype holds exactly.
    values = {name: random.integers(-64, 65, shape) / 64 for name, shape in shapes.items()}
    return values, random.integers(-64, 65, shapes["x"]) / 64


def plain(x, left1, right1, bias1, left2, right2, bias2, activation):
    hidden = paddle.matmul(paddle.matmul(x, left1), right1)
    hidden = hidden if bias1 is None else hidden + bias1
    out = paddle.matmul(paddle.matmul(ACTIVATIONS[activation](hidden), left2), right2)
    return out if bias2 is None else out + bias2


def chunked(x, left1, right1, bias1, left2, right2, bias2, activation, **more):
    z = paddle.matmul(x, left1)
    out = paddle.matmul(chunked_low_rank_inner(z, right1, bias1, left2, activation, **more), right2)
    return out if bias2 is None else out + bias2


def run(function, arrays, dtype="float64", without=(), frozen=(), activation="gelu", **more):
    """Return the output and all gradients, as float64, by name."""
    values, gradient = arrays
    tensors = {
        name: None if name in without else paddle.to_tensor(value, dtype=dtype)
        for name, value in values.items()
    }
    for name, tensor in tensors.items():
        if tensor is not None:
            tensor.stop_gradient = name in frozen
    out = function(*tensors.values(), activation, **more)
    out.backward(paddle.to_tensor(gradient, dtype=out.dtype))
    found = {"out": out} | {name: each.grad for name, each in tensors.items() if each is not None}
    return {
        name: None if each is None else each.astype("float64").numpy()
        for name, each in found.items()
    }


def assert_close(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.abs(found[name] - value).max() / np.abs(value).max()
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("chunk", [1, 16, 39, None])
def test_output_and_gradients_are_those_of_the_chain(arrays, dtype, chunk):
    found = run(chunked, arrays, dtype, chunk_tokens=chunk)

    assert_close(found, run(plain, arrays), TOLERANCES[dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_its_gradient(arrays, activation):
    found = run(chunked, arrays, activation=activation, chunk_tokens=16)

    assert_close(found, run(plain, arrays, activation=activation), 1e-12)


def test_biases_can_be_missing(arrays):
    missing = ("bias1", "bias2")

    found = run(chunked, arrays, without=missing, chunk_tokens=16)

    assert_close(found, run(plain, arrays, without=missing), 1e-12)


@pytest.mark.parametrize("frozen", [["right1"], ["bias1", "left2"], ["x", "left1"]])
def test_what_is_frozen_has_no_gradient(arrays, frozen):
    found = run(chunked, arrays, frozen=frozen, chunk_tokens=16)

    assert all(found.pop(name) is None for name in frozen)
    wanted = run(plain, arrays)
    assert_close(found, {name: wanted[name] for name in found}, 1e-12)


def test_an_input_that_is_no_contiguous_block_is_read_right(arrays):
    values, gradient = arrays
    turned = values | {"x": np.ascontiguousarray(values["x"].transpose(2, 0, 1))}

    def turn(function):
        return lambda x, *rest, **more: function(x.transpose([1, 2, 0]), *rest, **more)

    found = run(turn(chunked), (turned, gradient), chunk_tokens=16)

    assert_close(found, run(turn(plain), (turned, gradient)), 1e-12)


def test_it_can_be_computed_anew_for_the_backward_pass(arrays):
    def anew(*arguments, **more):
        return recompute(lambda x: chunked(x, *arguments[1:], **more), arguments[0])

    found = run(anew, arrays, chunk_tokens=16)

    assert_close(found, run(plain, arrays), 1e-12)


def test_a_traced_program_computes_the_same(arrays):
    x, *weights = (paddle.to_tensor(value, dtype="float64") for value in arrays[0].values())

    @paddle.jit.to_static(full_graph=True)
    def traced(x):
        return chunked(x, *weights, "gelu", chunk_tokens=16)

    assert np.allclose(traced(x).numpy(), plain(x, *weights, "gelu").numpy(), rtol=1e-12)


def test_twice_the_same_bits(arrays):
    first, second = (run(chunked, arrays, "float32", chunk_tokens=7) for _ in "ab")

    assert all(np.array_equal(first[name], second[name]) for name in NAMES)


def test_nan_in_a_token_reaches_its_output_and_the_weights(arrays):
    values, _ = arrays
    values["x"][1, 4, 0] = np.nan

    found = run(chunked, arrays, chunk_tokens=16)

    assert np.isnan(found["out"][1, 4]).all()
    assert np.isfinite(np.delete(found["out"].reshape([39, -1]), 17, axis=0)).all()
    assert np.isnan(found["left2"]).all()


def test_no_tokens_are_no_error():
    weights = [paddle.ones(shape) for shape in ([2, 8], [8], [8, 2])]

    assert chunked_low_rank_inner(paddle.ones([0, 2]), *weights, "gelu").shape == [0, 2]


def test_a_chunk_of_no_tokens_is_refused():
    weights = [paddle.ones(shape) for shape in ([2, 8], [8], [8, 2])]

    with pytest.raises(ValueError, match="at least one token, not 0"):
        chunked_low_rank_inner(paddle.ones([3, 2]), *weights, "gelu", chunk_tokens=0)


@pytest.mark.parametrize(("units", "element_bytes"), [(192, 4), (3072, 2), (3072, 4)])
def test_a_chunk_fits_into_the_cache(units, element_bytes):
    chunk = choose_chunk(units, element_bytes)

    assert chunk % SMALLEST_CHUNK == 0
    assert 3 * chunk * units * element_bytes <= CHUNK_BYTES
    assert 3 * 2 * chunk * units * element_bytes > CHUNK_BYTES


def test_a_chunk_of_very_many_units_is_the_smallest():
    assert choose_chunk(1 << 20, 4) == SMALLEST_CHUNK
