"""What every operator on rows owes, against Paddle's operators in float64."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

from models.kernels import library
from tests.models.kernels.on_path import PATHS, is_at_most, run_python
from tests.models.kernels.row_operators import OPERATORS, largest_error, random_arrays, run

TOLERANCE = 1e-5  # of the largest value of an array
each_operator = pytest.mark.parametrize("name", OPERATORS)


@pytest.fixture(autouse=True)
def loaded():
    library.load()


@each_operator
@pytest.mark.parametrize("leading", [(1,), (5, 67), (1003,), (7001,)])
@pytest.mark.parametrize("width", [3, 16, 77, 256])
def test_output_and_gradients_agree_with_float64(rng, name, leading, width):
    arrays = random_arrays(rng, name, leading, width)
    if width == 3:  # as many values may be nearly alike, whose norm float32 cannot know
        arrays[0] += np.array([-4, 0, 4], np.float32)

    assert largest_error(name, arrays) < TOLERANCE


@each_operator
@pytest.mark.parametrize("path", PATHS)
def test_every_path_agrees_with_float64(path, name, rng):
    trial = json.dumps([name, int(rng.integers(1 << 30)), 103, 83])

    used, error = run_python(path, "-m", "tests.models.kernels.row_operators", trial)

    assert is_at_most(used, path)
    assert float(error) < TOLERANCE


@each_operator
@pytest.mark.parametrize("leading", [(1,), (2, 3, 4), (0,), (2, 0)])
def test_any_leading_shape_serves(rng, name, leading):
    arrays = random_arrays(rng, name, leading, 20)
    ours = run(name, arrays)
    with library.suspended():
        theirs = run(name, arrays)

    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@each_operator
def test_strides_of_input_and_gradient_are_minded(rng, name):
    arrays = random_arrays(rng, name, (3, 37), 48)
    expected = run(name, arrays)
    others = [paddle.to_tensor(each, stop_gradient=False) for each in arrays[1:]]
    strided = paddle.to_tensor(arrays[0].T.copy(), stop_gradient=False)
    out = OPERATORS[name][0](strided.transpose([2, 1, 0]), *others)
    weights = np.random.default_rng(1).standard_normal(out.shape).astype("float32")
    (out.transpose([2, 1, 0]) * paddle.to_tensor(weights.T.copy())).sum().backward()

    np.testing.assert_array_equal(out.numpy(), expected[0])
    np.testing.assert_array_equal(strided.grad.numpy().T, expected[1])


@each_operator
def test_twice_the_same_input_gives_the_same_bits(rng, name):
    arrays = random_arrays(rng, name, (501,), 96)

    for one, other in zip(run(name, arrays), run(name, arrays), strict=True):
        np.testing.assert_array_equal(one, other)


@each_operator
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(rng, name, value):
    arrays = random_arrays(rng, name, (40,), 50)
    arrays[0][7, 49] = value

    out, *gradients = run(name, arrays)

    assert not np.isfinite(out[7]).all()
    assert np.isfinite(np.delete(out, 7, axis=0)).all()
    assert not np.isfinite(gradients[1]).all()


@each_operator
def test_a_gradient_that_is_not_finite_reaches_every_argument(rng, name):
    tensors = [
        paddle.to_tensor(each, stop_gradient=False) for each in random_arrays(rng, name, (40,), 50)
    ]
    out = OPERATORS[name][0](*tensors)
    weights = np.ones(out.shape, "float32")
    weights[3, -1] = np.nan
    out.backward(paddle.to_tensor(weights))

    for tensor in tensors:
        assert np.isnan(tensor.grad.numpy()).any()


@each_operator
def test_recompute_gives_the_same_gradients(rng, name):
    operator, arrays = OPERATORS[name][0], random_arrays(rng, name, (9,), 33)
    gradients = []
    for again in (False, True):
        tensors = [paddle.to_tensor(each, stop_gradient=False) for each in arrays]
        out = recompute(operator, *tensors, use_reentrant=False) if again else operator(*tensors)
        (out * out).sum().backward()
        gradients.append([each.grad.numpy() for each in tensors])

    for plain, rebuilt in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, rebuilt)


@each_operator
def test_a_traced_program_computes_the_same(rng, name):
    arrays = random_arrays(rng, name, (2, 9), 33)
    out, gradient, *_ = run(name, arrays)
    x, *others = (paddle.to_tensor(each, stop_gradient=False) for each in arrays)

    @paddle.jit.to_static(full_graph=True)
    def traced(x):
        return OPERATORS[name][0](x, *others)

    result = traced(x)
    weights = np.random.default_rng(1).standard_normal(result.shape).astype("float32")
    (result * paddle.to_tensor(weights)).sum().backward()

    np.testing.assert_array_equal(result.numpy(), out)
    np.testing.assert_array_equal(x.grad.numpy(), gradient)


@each_operator
def test_without_gradients_the_output_is_the_same(rng, name):
    arrays = random_arrays(rng, name, (9,), 33)
    with paddle.no_grad():
        out = OPERATORS[name][0](*map(paddle.to_tensor, arrays))

    assert out.stop_gradient
    np.testing.assert_array_equal(out.numpy(), run(name, arrays)[0])


@each_operator
def test_threads_at_once_do_not_meet(rng, name):
    inputs = [random_arrays(rng, name, (200,), width) for width in (40, 90)]
    alone = [run(name, each) for each in inputs]
    with ThreadPoolExecutor(max_workers=2) as pool:
        together = list(pool.map(lambda turn: run(name, inputs[turn % 2]), range(10)))

    for turn, outputs in enumerate(together):
        for one, other in zip(outputs, alone[turn % 2], strict=True):
            np.testing.assert_array_equal(one, other)


@each_operator
def test_shapes_that_do_not_fit_are_refused(rng, name):
    arrays = random_arrays(rng, name, (9,), 33)
    for wrong in range(1, len(arrays)):
        spoiled = [*arrays[:wrong], arrays[wrong][..., :-1].copy(), *arrays[wrong + 1 :]]
        with pytest.raises((ValueError, OSError, RuntimeError), match="fit"):
            run(name, spoiled)
