"""Moments of Monarch and BlockDense weights, part by part, against their Jacobians."""

import numpy as np
import paddle
import pytest

from models.ffn import build
from models.ffn.base import Shape
from models.ffn.moments import MergedParameter, MovesMerged, SplitsState, pair_rate

# (kind and options, inputs, outputs); with three blocks of an inner size of 6, or of 4 and 8, b
# divides neither h/b nor, in the last case, meets every block: some parts of the weight are zero.
WEIGHTS = {
    "monarch": ({"kind": "monarch", "blocks": 2}, 8, 12),
    "monarch down": ({"kind": "monarch", "blocks": 2}, 12, 8),
    "monarch uneven": ({"kind": "monarch", "blocks": 3}, 12, 15),
    "monarch sparse": ({"kind": "monarch", "blocks": 4}, 8, 12),
    "block_dense": ({"kind": "block_dense", "blocks": 2, "rank": 4}, 8, 12),
    "block_dense down": ({"kind": "block_dense", "blocks": 2, "rank": 4}, 12, 8),
}


def random_linear(name, rng):
    spec, inputs, outputs = WEIGHTS[name]
    first_is_wanted = inputs <= outputs
    shape = Shape(min(inputs, outputs), max(inputs, outputs))
    layer = build(spec, shape)
    linear = layer.linear1 if first_is_wanted else layer.linear2
    linear.to(dtype="float64")
    for factor in (linear.left, linear.right):
        factor.set_value(paddle.to_tensor(rng.normal(size=factor.shape)))
    return linear


def jacobians(linear):
    """How the merged weight follows each entry of `left` and of `right`, by the forward pass."""
    identity = paddle.eye(linear.in_features, dtype="float64")

    def weight():
        return (linear(identity) - linear.bias).numpy().ravel()

    found = {}
    for name in ("left", "right"):
        factor = getattr(linear, name)
        kept = factor.numpy()
        columns = []
        for entry in range(kept.size):  # the weight is linear in either factor
            unit = np.zeros(kept.size)
            unit[entry] = 1.0
            factor.set_value(paddle.to_tensor(unit.reshape(kept.shape)))
            columns.append(weight())
        factor.set_value(paddle.to_tensor(kept))
        found[name] = np.stack(columns, axis=1)
    return found


def state_of(linear, jacobian, first, second):
    """The factors' moments under the chain rule, and for uncorrelated entries."""
    state = {}
    for name, matrix in jacobian.items():
        shape = getattr(linear, name).shape
        state[f"{name}.moment1"] = (matrix.T @ first.ravel()).reshape(shape)
        state[f"{name}.moment2"] = (np.square(matrix).T @ second.ravel()).reshape(shape)
    return state


@pytest.mark.parametrize("name", WEIGHTS)
def test_lifted_moment_gives_back_those_of_both_factors_and_is_the_tangent_part(rng, name):
    linear = random_linear(name, rng)
    jacobian = jacobians(linear)
    true = rng.normal(size=(linear.in_features, linear.out_features))
    state = state_of(linear, jacobian, true, np.square(true))
    lifted = linear.merge_state(state)["weight.moment1"]
    for factor, matrix in jacobian.items():
        given = state[f"{factor}.moment1"].ravel()
        np.testing.assert_allclose(
            matrix.T @ lifted.ravel(), given, rtol=0, atol=1e-11 * np.abs(given).max()
        )
    both = np.concatenate(list(jacobian.values()), axis=1)
    tangent = both @ np.linalg.lstsq(both, true.ravel(), rcond=1e-10)[0]
    np.testing.assert_allclose(lifted.ravel(), tangent, rtol=0, atol=1e-9)
    assert np.linalg.norm(tangent) < 0.999 * np.linalg.norm(true)


@pytest.mark.parametrize("name", WEIGHTS)
def test_second_moment_of_the_rank_one_model_is_recovered(rng, name):
    linear = random_linear(name, rng)
    rows, columns = (
        rng.uniform(0.1, 2, linear.in_features),
        rng.uniform(0.1, 2, linear.out_features),
    )
    true = np.outer(rows, columns)
    state = state_of(linear, jacobians(linear), true, true)
    lifted = linear.merge_state(state)["weight.moment2"]
    part = linear.dense_weight() != 0
    np.testing.assert_allclose(lifted[part], true[part], rtol=1e-11)
    # Parts that are always zero are estimated from their rows and columns.
    assert part.all() == (name != "monarch sparse")
    assert (np.abs(np.log(lifted / true)) < 1.0).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_dense_moments_split_by_the_chain_rule(rng, name):
    linear = random_linear(name, rng)
    first = rng.normal(size=(linear.in_features, linear.out_features))
    second = rng.uniform(size=first.shape)
    split = linear.split_state({"weight.moment1": first, "weight.moment2": second})
    expected = state_of(linear, jacobians(linear), first, second)
    assert split.keys() == expected.keys()
    for entry, array in expected.items():
        np.testing.assert_allclose(split[entry], array, rtol=0, atol=1e-12 * np.abs(array).max())


@pytest.mark.parametrize("name", WEIGHTS)
def test_rate_is_the_size_of_sign_like_updates(rng, name):
    """Signs at random move an entry by its Jacobian's norm; both factors' parts are added."""
    linear = random_linear(name, rng)
    shape = linear.in_features, linear.out_features
    moved = [np.square(matrix).sum(axis=1).reshape(shape) for matrix in jacobians(linear).values()]
    rows, columns = np.indices(shape)
    part = rows // (shape[0] // linear.blocks) * linear.blocks
    if name.startswith("monarch"):
        part = part + columns % linear.blocks
    squares = np.zeros(shape)
    for number in np.unique(part):
        inside = part == number
        squares[inside] = sum(np.sqrt(square[inside].mean()) for square in moved) ** 2
    expected = np.sqrt(squares.mean())
    assert linear.merged_rates() == {"weight": pytest.approx(expected, rel=1e-12)}


def test_the_layers_speak_the_protocols(rng):
    for name, (_, inputs, outputs) in WEIGHTS.items():
        linear = random_linear(name, rng)
        assert isinstance(linear, SplitsState)
        assert isinstance(linear, MovesMerged)
        assert linear.merged_parameters() == {
            "weight": MergedParameter((inputs, outputs), ("left", "right"))
        }
        with pytest.raises(KeyError, match=r"right\.moment2"):
            linear.merge_state({"left.moment2": np.zeros(linear.left.shape)})


def test_rate_of_a_part_follows_the_factors_own_learning_rates(rng):
    left, right = rng.normal(size=(5, 3)), rng.normal(size=(3, 7))
    rms_left, rms_right = (np.sqrt((factor**2).mean()) for factor in (left, right))
    expected = np.sqrt(3) * (2 * rms_right + 5 * rms_left)
    assert pair_rate(left, right, 2, 5) == pytest.approx(expected, rel=1e-12)
