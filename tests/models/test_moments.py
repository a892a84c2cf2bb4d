"""Moments from factors to their product, against least squares, sums and pseudo-inverses."""

import math

import numpy as np
import pytest

from models.ffn import LowRankLinear
from models.ffn.low_rank import LowRankOptions
from models.ffn.moments import (
    MergedParameter,
    MergesState,
    blocked_share,
    grow_moments,
    lift_first_moment,
    lift_second_moment,
    probe_scale,
)

SHAPES = [(6, 9, 3), (9, 6, 3), (5, 5, 1), (4, 7, 4)]  # inputs, outputs, rank


def draw_factors(rng, inputs, outputs, rank):
    return rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs))


def drop_rank(factor, axis):
    """Make the last of the rank's vectors a copy of the first."""
    factor = factor.copy()
    source, target = [[slice(None)] * 2 for _ in range(2)]
    source[axis], target[axis] = 0, -1
    factor[tuple(target)] = factor[tuple(source)]
    return factor


def solve_least_squares(left, right, m_left, m_right):
    """Minimal-norm least squares of both conditions on a dense moment, entry by entry."""
    inputs, outputs = left.shape[0], right.shape[1]
    columns = []
    for entry in range(inputs * outputs):
        unit = np.zeros(inputs * outputs)
        unit[entry] = 1
        unit = unit.reshape(inputs, outputs)
        columns.append(np.concatenate([(unit @ right.T).ravel(), (left.T @ unit).ravel()]))
    wanted = np.concatenate([m_left.ravel(), m_right.ravel()])
    solution, *_ = np.linalg.lstsq(np.stack(columns, axis=1), wanted, rcond=1e-10)
    return solution.reshape(inputs, outputs)


@pytest.mark.parametrize(("inputs", "outputs", "rank"), [*SHAPES, (96, 24, 8)])
def test_lifted_moment_gives_back_the_moments_of_both_factors(rng, inputs, outputs, rank):
    left, right = draw_factors(rng, inputs, outputs, rank)
    true = rng.normal(size=(inputs, outputs))
    m_left, m_right = true @ right.T, left.T @ true
    lifted = lift_first_moment(left, right, m_left, m_right)
    for found, given in ((lifted @ right.T, m_left), (left.T @ lifted, m_right)):
        assert np.abs(found - given).max() <= 1e-12 * np.abs(given).max()


def test_lifted_moment_is_the_closed_form_and_the_tangent_part_of_the_true_one(rng):
    a, b = draw_factors(rng, 12, 20, 4)
    true = rng.normal(size=(12, 20))
    m_left, m_right = true @ b.T, a.T @ true
    inverse_a, inverse_b = np.linalg.inv(a.T @ a), np.linalg.inv(b @ b.T)
    core = 0.5 * (a.T @ m_left + m_right @ b.T)
    closed = m_left @ inverse_b @ b + a @ inverse_a @ m_right - a @ inverse_a @ core @ inverse_b @ b
    p, q = a @ inverse_a @ a.T, b.T @ inverse_b @ b
    tangent = p @ true + true @ q - p @ true @ q
    lifted = lift_first_moment(a, b, m_left, m_right)
    np.testing.assert_allclose(lifted, closed, rtol=0, atol=1e-11)
    np.testing.assert_allclose(lifted, tangent, rtol=0, atol=1e-11)


@pytest.mark.parametrize("agree", [True, False])
@pytest.mark.parametrize("deficient", ["none", "left", "right", "both"])
@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(5, 7, 3), (7, 5, 2)])
def test_lifted_moment_is_the_least_squares_solution_of_minimal_norm(
    rng, inputs, outputs, rank, deficient, agree
):
    left, right = draw_factors(rng, inputs, outputs, rank)
    if deficient in ("left", "both"):
        left = drop_rank(left, axis=1)
    if deficient in ("right", "both"):
        right = drop_rank(right, axis=0)
    if agree:
        true = rng.normal(size=(inputs, outputs))
        m_left, m_right = true @ right.T, left.T @ true
    else:
        m_left, m_right = draw_factors(rng, inputs, outputs, rank)
    lifted = lift_first_moment(left, right, m_left, m_right)
    expected = solve_least_squares(left, right, m_left, m_right)
    np.testing.assert_allclose(lifted, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_directions_lost_in_float32_rounding_do_not_blow_up_the_lifted_moment(rng):
    left, right = draw_factors(rng, 32, 48, 4)
    left = drop_rank(left, axis=1)
    # The copy and its moment agree but for the last bit of float32.
    rounding = 1 + 1e-8 * rng.normal(size=(32, 1))
    left[:, -1:] *= rounding
    true = rng.normal(size=(32, 48))
    m_left, m_right = true @ right.T, left.T @ true
    m_right[-1] *= 1 + 1e-7 * rng.normal(size=48)
    assert np.linalg.norm(lift_first_moment(left, right, m_left, m_right)) <= np.linalg.norm(true)


@pytest.mark.parametrize("zero", ["left", "right", "both", "moments"])
def test_zeros_lift_to_finite_moments(rng, zero):
    left, right = draw_factors(rng, 6, 8, 2)
    true = rng.normal(size=(6, 8))
    left = np.zeros_like(left) if zero in ("left", "both") else left
    right = np.zeros_like(right) if zero in ("right", "both") else right
    if zero == "moments":
        true = np.zeros_like(true)
    m_left, m_right = true @ right.T, left.T @ true
    first = lift_first_moment(left, right, m_left, m_right)
    second = lift_second_moment(left, right, m_left**2, m_right**2)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
    np.testing.assert_allclose(first @ right.T, m_left, atol=1e-12)
    np.testing.assert_allclose(left.T @ first, m_right, atol=1e-12)
    assert first.any() == second.any() == (zero in ("left", "right"))


@pytest.mark.parametrize(("inputs", "outputs", "rank"), SHAPES)
def test_second_moment_of_the_rank_one_model_is_recovered(rng, inputs, outputs, rank):
    left, right = draw_factors(rng, inputs, outputs, rank)
    true = np.outer(rng.uniform(0.1, 2, inputs), rng.uniform(0.1, 2, outputs)) * 1e-9
    # Uncorrelated entries: the variances of sums are sums of variances.
    lifted = lift_second_moment(left, right, true @ (right**2).T, (left**2).T @ true)
    np.testing.assert_allclose(lifted, true, rtol=1e-12)


def test_second_moment_agrees_with_the_sums_written_out(rng):
    left, right = draw_factors(rng, 4, 6, 2)
    v_left, v_right = rng.uniform(size=(4, 2)), rng.uniform(size=(2, 6))
    rows = [sum(v_left[i, k] for k in range(2)) for i in range(4)]
    columns = [sum(v_right[k, j] for k in range(2)) for j in range(6)]
    by_columns = sum(columns[j] * sum(right[k, j] ** 2 for k in range(2)) for j in range(6))
    by_rows = sum(rows[i] * sum(left[i, k] ** 2 for k in range(2)) for i in range(4))
    lifted = lift_second_moment(left, right, v_left, v_right)
    for i in range(4):
        for j in range(6):
            expected = rows[i] * columns[j] / math.sqrt(by_columns * by_rows)
            assert lifted[i, j] == pytest.approx(expected, rel=1e-12)


def test_second_moment_is_never_negative_and_scales_with_its_input(rng):
    left, right = draw_factors(rng, 5, 8, 3)
    v_left, v_right = rng.uniform(size=(5, 3)), rng.uniform(size=(3, 8))
    v_left[2] = v_right[:, 4] = 0
    lifted = lift_second_moment(left, right, v_left, v_right)
    assert (lifted >= 0).all()
    assert not lifted[2].any()
    assert not lifted[:, 4].any()
    scaled = lift_second_moment(left, right, 1e-40 * v_left, 1e-40 * v_right)
    np.testing.assert_allclose(scaled, 1e-40 * lifted, rtol=1e-12)


@pytest.mark.parametrize("zero", ["left", "right"])
def test_beside_a_factor_of_zeros_the_rows_its_partner_says_nothing_of_are_alike(rng, zero):
    left, right = draw_factors(rng, 4, 6, 2)
    uneven = rng.uniform(0.1, 2, 4 if zero == "left" else 6)
    true = np.outer(uneven, np.ones(6)) if zero == "left" else np.outer(np.ones(4), uneven)
    if zero == "left":
        left = np.zeros_like(left)
    else:
        right = np.zeros_like(right)
    lifted = lift_second_moment(left, right, true @ (right**2).T, (left**2).T @ true)
    np.testing.assert_allclose(lifted, true, rtol=1e-12)


def test_probes_set_the_mean_of_the_second_moment(rng):
    v = rng.uniform(size=(5, 7))
    gradients = [rng.normal(0, 3, (5, 7)).astype(np.float32) for _ in range(3)]
    mean = sum(float(x) ** 2 for g in gradients for x in g.ravel()) / (3 * 35)
    scaled = v * probe_scale(v, gradients)
    assert scaled.mean() == pytest.approx(mean, rel=1e-12)
    np.testing.assert_allclose(scaled / scaled[0, 0], v / v[0, 0], rtol=1e-12)
    assert probe_scale(np.zeros((5, 7)), gradients) == 1.0


def test_probes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one probe"):
        probe_scale(np.ones((5, 7)), [])
    with pytest.raises(ValueError, match=r"probe gradient is \(7, 5\), the moment \(5, 7\)"):
        probe_scale(np.ones((5, 7)), [np.ones((7, 5))])


@pytest.mark.parametrize(("shape", "axis"), [((4, 5), 1), ((5, 4), 0), ((6,), 0)])
def test_grown_units_begin_at_rest_with_the_median_second_moment(rng, shape, axis):
    first, second = rng.normal(size=shape), rng.uniform(size=shape)
    grown_first, grown_second = grow_moments(first, second, 3, axis)
    existing = [slice(None)] * len(shape)
    existing[axis] = slice(shape[axis])
    np.testing.assert_array_equal(grown_first[tuple(existing)], first)
    np.testing.assert_array_equal(grown_second[tuple(existing)], second)
    for unit in range(shape[axis], shape[axis] + 3):
        assert not grown_first.take(unit, axis).any()
        lines = np.atleast_2d(np.moveaxis(second, axis, -1))
        expected = [
            (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
            for ordered in map(sorted, lines)
        ]
        np.testing.assert_allclose(np.atleast_1d(grown_second.take(unit, axis)), expected)
    assert grow_moments(first, second, 0, axis)[1].shape == shape


def test_blocked_share_is_what_no_change_of_the_factors_can_follow(rng):
    left, right = draw_factors(rng, 5, 7, 2)
    gradient = rng.normal(size=(5, 7))
    columns = [
        (change_left @ right).ravel()
        for change_left in np.eye(10).reshape(10, 5, 2)  # every entry of left
    ] + [(left @ change_right).ravel() for change_right in np.eye(14).reshape(14, 2, 7)]
    basis = np.stack(columns, axis=1)
    nearest = basis @ np.linalg.lstsq(basis, gradient.ravel(), rcond=1e-10)[0]
    expected = np.sum((gradient.ravel() - nearest) ** 2) / np.sum(gradient**2)
    assert blocked_share(left, right, gradient) == pytest.approx(expected, rel=1e-12)
    assert 0 < expected < 1


def test_blocked_share_at_its_ends(rng):
    left, right = draw_factors(rng, 6, 8, 2)
    gradient = rng.normal(size=(6, 8))
    seen = rng.normal(size=(6, 2)) @ right + left @ rng.normal(size=(2, 8))
    assert blocked_share(left, right, seen) == pytest.approx(0, abs=1e-28)
    assert blocked_share(rng.normal(size=(6, 6)), right, gradient) == pytest.approx(0, abs=1e-25)
    assert blocked_share(np.zeros_like(left), np.zeros_like(right), gradient) == 1
    assert blocked_share(left, right, np.zeros((6, 8))) == 0
    repeated = drop_rank(left, axis=1)
    assert blocked_share(repeated, right, gradient) == pytest.approx(
        blocked_share(left[:, :1], right, gradient), rel=1e-12
    )


def test_the_linear_with_factors_tells_the_merged_weights_moments(rng):
    linear = LowRankLinear(12, 20, LowRankOptions(rank=3))
    assert isinstance(linear, MergesState)
    state = {
        f"{name}.{moment}": rng.uniform(size=getattr(linear, name).shape).astype(np.float32)
        for name in ("left", "right")
        for moment in ("moment1", "moment2")
    }
    assert linear.merged_parameters() == {"weight": MergedParameter((12, 20), ("left", "right"))}
    merged = linear.merge_state(state)
    left, right = (factor.numpy().astype(float) for factor in (linear.left, linear.right))
    assert merged.keys() == {"weight.moment1", "weight.moment2"}
    for moment, lift in (("moment1", lift_first_moment), ("moment2", lift_second_moment)):
        expected = lift(left, right, state[f"left.{moment}"], state[f"right.{moment}"])
        np.testing.assert_array_equal(merged[f"weight.{moment}"], expected)
    with pytest.raises(KeyError, match=r"right\.moment1"):
        linear.merge_state({"left.moment1": state["left.moment1"]})


def test_masters_of_half_precision_factors_multiply_in_float64(rng):
    linear = LowRankLinear(12, 20, LowRankOptions(rank=3))
    names = ("left", "right")
    masters = {
        f"{name}.master": rng.normal(size=getattr(linear, name).shape).astype(np.float32)
        for name in names
    }
    moments = {
        f"{name}.{moment}": rng.uniform(size=getattr(linear, name).shape).astype(np.float32)
        for name in names
        for moment in ("moment1", "moment2")
    }
    linear.set_factors(masters["left.master"], masters["right.master"])
    plain = linear.merge_state(moments)
    linear.to(dtype="float16")  # the factors themselves are rounded, their masters are not
    merged = linear.merge_state({**moments, **masters})
    left, right = (masters[f"{name}.master"].astype(float) for name in names)
    np.testing.assert_array_equal(merged.pop("weight.master"), left @ right)
    for name, array in plain.items():
        np.testing.assert_array_equal(merged[name], array)
