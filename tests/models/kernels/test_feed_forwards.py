"""What the fused feed-forwards, of whole matrices and of thin factors, have in common."""

from __future__ import annotations

import json
import threading

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

from models.kernels import library
from tests.models.kernels.feed_forwards import (
    ACTIVATIONS,
    OPERATORS,
    TOLERANCE,
    random_arrays,
    run,
    to_tensors,
)
from tests.models.kernels.on_path import PATHS, is_at_most, run_python

RANKS = {"dense": None, "low_rank": 6}
BIASES = {"dense": (2, 4), "low_rank": (3, 6)}  # places among the inputs


@pytest.fixture(params=sorted(OPERATORS))
def kind(request):
    library.load()
    if request.param == "dense" and not library.multiplies():
        pytest.skip("this Paddle brings no MKL")
    return request.param


@pytest.fixture
def operator(kind):
    return OPERATORS[kind]


@pytest.fixture
def arrays(rng, kind):
    return random_arrays(rng, (3, 37), 48, 101, RANKS[kind])


@pytest.mark.parametrize("path", PATHS)
def test_every_path_agrees_with_float64(kind, path, rng):
    trial = json.dumps([kind, int(rng.integers(1 << 30)), 103, 70, 131, RANKS[kind], "gelu"])

    used, error = run_python(path, "-m", "tests.models.kernels.feed_forwards", trial)

    assert is_at_most(used, path)
    assert float(error) < TOLERANCE


@pytest.mark.parametrize("leading", [(), (1,), (2, 3, 4), (0,), (2, 0)])
def test_any_leading_shape_serves(rng, kind, operator, leading):
    arrays = random_arrays(rng, leading, 20, 70, RANKS[kind])

    fused = run(operator, arrays, "gelu", "float32")
    with library.suspended():
        chain = run(operator, arrays, "gelu", "float32")

    for ours, theirs in zip(fused, chain, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tensors_with_strides_are_read_right(operator, arrays):
    x, *others = to_tensors(arrays)
    expected = operator(x, *others, "gelu")
    turned = [paddle.to_tensor(each.T.copy()).T if each.ndim == 2 else paddle.to_tensor(each)
              for each in arrays[1:]]  # fmt: skip
    wide = paddle.concat([x, x], axis=-1)[..., :48]

    np.testing.assert_array_equal(operator(wide, *turned, "gelu"), expected)


def test_a_gradient_with_strides_is_read_right(operator, arrays):
    weights = np.random.default_rng(0).standard_normal(arrays[0].shape[::-1]).astype("float32")
    gradients = []
    for turn in (False, True):
        x, *others = to_tensors(arrays)
        out = operator(x, *others, "gelu")
        if turn:
            (out.transpose([2, 1, 0]) * paddle.to_tensor(weights)).sum().backward()
        else:
            (out * paddle.to_tensor(weights.T.copy())).sum().backward()
        gradients.append(x.grad.numpy())

    np.testing.assert_array_equal(*gradients)


def test_biases_may_be_missing(kind, operator, arrays):
    inputs = [None if place in BIASES[kind] else tensor
              for place, tensor in enumerate(to_tensors(arrays))]  # fmt: skip
    fused = operator(*inputs, "gelu")
    with library.suspended():
        chain = operator(*inputs, "gelu")

    np.testing.assert_allclose(fused.numpy(), chain.numpy(), rtol=1e-4, atol=1e-5)


def test_twice_the_same_input_gives_the_same_bits(operator, arrays):
    first, second = (run(operator, arrays, "gelu", "float32") for _ in range(2))

    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(operator, arrays, value, activation):
    arrays[0][1, 5, 7] = value

    out, *gradients = run(operator, arrays, activation, "float32")

    assert not np.isfinite(out[1, 5]).any()
    assert np.isfinite(np.delete(out.reshape(-1, 48), 37 + 5, axis=0)).all()
    assert not np.isfinite(gradients[1]).all()


def test_a_gradient_that_is_not_finite_reaches_every_weight(operator, arrays):
    x, *others = to_tensors(arrays)
    weights = np.ones(x.shape, "float32")
    weights[0, 0, 0] = np.nan
    operator(x, *others, "gelu").backward(paddle.to_tensor(weights))

    for tensor in (x, *others):
        assert np.isnan(tensor.grad.numpy()).any()


def test_recompute_gives_the_same_gradients(operator, arrays):
    gradients = []
    for again in (False, True):
        x, *others = to_tensors(arrays)
        out = (
            recompute(operator, x, *others, "gelu", use_reentrant=False)
            if again
            else operator(x, *others, "gelu")
        )
        out.sum().backward()
        gradients.append([each.grad.numpy() for each in (x, *others)])

    for plain, rebuilt in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, rebuilt)


def test_a_traced_program_computes_the_same(operator, arrays):
    x, *others = to_tensors(arrays)
    expected = operator(x, *others, "gelu")

    @paddle.jit.to_static(full_graph=True)
    def traced(x):
        return operator(x, *others, "gelu")

    np.testing.assert_array_equal(traced(x).numpy(), expected.numpy())


def test_without_gradients_the_output_is_the_same(operator, arrays):
    tensors = to_tensors(arrays)
    with paddle.no_grad():
        out = operator(*tensors, "gelu")

    assert out.stop_gradient
    np.testing.assert_array_equal(out.numpy(), operator(*tensors, "gelu").numpy())


def test_two_threads_at_once_do_not_meet(rng, kind, operator):
    ranks = (None, None) if RANKS[kind] is None else (3, 20)
    inputs = [random_arrays(rng, (200,), 40, 90, rank) for rank in ranks]
    expected = [run(operator, each, "gelu", "float32") for each in inputs]
    results: dict[int, list[list[np.ndarray]]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(5):
            results[number].append(run(operator, inputs[number], "gelu", "float32"))

    threads = [threading.Thread(target=work, args=(number,)) for number in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for number, runs in results.items():
        assert len(runs) == 5
        for outputs in runs:
            for ours, alone in zip(outputs, expected[number], strict=True):
                np.testing.assert_array_equal(ours, alone)


@pytest.mark.parametrize("wrong", range(1, 7))
def test_shapes_that_do_not_fit_are_refused(operator, arrays, wrong):
    if wrong >= len(arrays):
        pytest.skip("so many inputs has the other kind only")
    arrays[wrong] = arrays[wrong][..., :-1].copy()

    with pytest.raises((ValueError, OSError, RuntimeError), match="does not fit"):
        operator(*to_tensors(arrays), "gelu")
