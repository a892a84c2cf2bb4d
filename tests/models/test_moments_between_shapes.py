"""Moments from a matrix to its factors, copies, and entries that no layer has seen."""

import numpy as np
import pytest

from models.ffn.moments import (
    complete_second_moment,
    copy_state,
    lift_first_moment,
    lift_second_moment,
    split_moments,
)


def test_split_first_moments_follow_the_chain_rule_entry_by_entry(rng):
    left, right = rng.normal(size=(4, 2)), rng.normal(size=(2, 5))
    first, second = rng.normal(size=(4, 5)), rng.uniform(size=(4, 5))
    (m_left, v_left), (m_right, v_right) = split_moments(left, right, first, second)
    for i in range(4):
        for k in range(2):
            assert m_left[i, k] == pytest.approx(sum(first[i, j] * right[k, j] for j in range(5)))
            expected = sum(second[i, j] * right[k, j] ** 2 for j in range(5))
            assert v_left[i, k] == pytest.approx(expected)
    for k in range(2):
        for j in range(5):
            assert m_right[k, j] == pytest.approx(sum(left[i, k] * first[i, j] for i in range(4)))
            expected = sum(left[i, k] ** 2 * second[i, j] for i in range(4))
            assert v_right[k, j] == pytest.approx(expected)


def test_split_second_moments_are_those_of_independent_gradients(rng):
    left, right = rng.normal(size=(4, 2)), rng.normal(size=(2, 5))
    spread = rng.uniform(0.5, 2, (4, 5))
    gradients = rng.normal(size=(40_000, 4, 5)) * spread
    (_, v_left), (_, v_right) = split_moments(left, right, np.zeros((4, 5)), spread**2)
    np.testing.assert_allclose(v_left, np.mean((gradients @ right.T) ** 2, axis=0), rtol=0.05)
    np.testing.assert_allclose(v_right, np.mean((left.T @ gradients) ** 2, axis=0), rtol=0.05)


def test_lifting_what_was_split_gives_the_rank_one_second_moment_back(rng):
    left, right = rng.normal(size=(6, 3)), rng.normal(size=(3, 8))
    first = rng.normal(size=(6, 8))
    second = np.outer(rng.uniform(0.1, 2, 6), rng.uniform(0.1, 2, 8))
    (m_left, v_left), (m_right, v_right) = split_moments(left, right, first, second)
    np.testing.assert_allclose(lift_second_moment(left, right, v_left, v_right), second, rtol=1e-12)
    lifted = lift_first_moment(left, right, m_left, m_right)
    np.testing.assert_allclose(lifted @ right.T, m_left, atol=1e-12)


def test_unknown_entries_are_those_of_the_rank_one_model_where_blocks_are_alike(rng):
    rows, columns = rng.uniform(0.1, 2, 6), rng.uniform(0.1, 2, 9)
    rows[:2] *= rows[2:].mean() / rows[:2].mean()  # both blocks' rows and columns
    columns[:3] *= columns[3:].mean() / columns[:3].mean()  # have the same means
    true = np.outer(rows, columns)
    known = np.zeros((6, 9), dtype=bool)
    known[:2, :3] = known[2:, 3:] = True
    completed = complete_second_moment(np.where(known, true, np.nan), known)
    np.testing.assert_allclose(completed, true, rtol=1e-12)


def test_known_entries_stay_and_zeros_stay_finite(rng):
    second = rng.uniform(size=(4, 6))
    known = np.kron(np.eye(2), np.ones((2, 3))).astype(bool)
    completed = complete_second_moment(second, known)
    assert (completed == second)[known].all()
    assert (completed[~known] > 0).all()
    scaled = complete_second_moment(1e-30 * second, known)
    np.testing.assert_allclose(scaled, 1e-30 * completed, rtol=1e-12)
    assert not complete_second_moment(np.zeros((4, 6)), known).any()
    second[:2] = 0  # a block without any gradient
    completed = complete_second_moment(second, known)
    assert np.isfinite(completed).all()
    assert not completed[:2].any()
    assert complete_second_moment(second, np.ones((4, 6), bool)).tobytes() == second.tobytes()


def test_copied_entries_keep_their_values_and_say_so(rng):
    state = {f"w.{entry}": rng.normal(size=3).astype("float32") for entry in ("moment1", "moment2")}
    copied = copy_state(state, "w", "v")
    assert copied.keys() == {"v.moment1", "v.moment2", "v.copied"}
    assert copied["v.copied"].all()
    state["w.master"] = np.ones(3, np.float32)
    assert (copy_state(state, "w", "v")["v.master"] == 1).all()
    del state["w.moment2"]
    with pytest.raises(KeyError, match=r"w\.moment2"):
        copy_state(state, "w", "v")
