"""Lifted moments of low-rank factors: what they must fulfil, their size, half precision."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest

from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.handover import hand_over
from fastffn_cli.engine.optimizer import AdamW
from models import ffn
from models.ffn.moments import lift_second_moment
from tests.engine.handover_runs import (
    FACTORS,
    NEW,
    OPTIONS,
    STEPS,
    Training,
    dense_gradients,
    owner,
    train,
)


@pytest.fixture(scope="module")
def trained() -> Training:
    """Trained, and never changed by a test."""
    return train()


def test_lifted_moments_of_resting_factors_are_the_tangent_part_of_the_dense_models() -> None:
    """At learning rate 0 the factors' moments average one dense gradient's shares."""
    training = train(steps=4, rate=0.0)
    state = training.optimizer.state()
    handed = hand_over(state, training.model, "lift", options=OPTIONS)

    averages = {name: np.zeros(()) for name in NEW}
    for number in range(4):
        for name, gradient in dense_gradients(training.model, number % 2).items():
            averages[name] = 0.9 * averages[name] + 0.1 * gradient

    factors = {
        name: array.astype(np.float64)
        for name, array in model_tensors(training.model).items()
        if name in FACTORS
    }
    for name, average in averages.items():
        left, right = (factors[name.replace("weight", factor)] for factor in ("left", "right"))
        outside_left = np.eye(len(left)) - left @ np.linalg.pinv(left)
        outside_right = np.eye(right.shape[1]) - np.linalg.pinv(right) @ right
        tangent = average - outside_left @ average @ outside_right
        lifted = handed[f"{name}.moment1"].astype(np.float64)
        tolerance = 1e-4 * np.abs(tangent).max()
        np.testing.assert_allclose(lifted, tangent, rtol=0, atol=tolerance, err_msg=name)
        assert np.linalg.norm(tangent) < 0.99 * np.linalg.norm(average)  # a part, not all of it
        for found, factor in ((lifted @ right.T, "left"), (left.T @ lifted, "right")):
            given = state[name.replace("weight", factor) + ".moment1"]
            tolerance = 1e-4 * np.abs(given).max()
            np.testing.assert_allclose(found, given, rtol=0, atol=tolerance, err_msg=name)


def test_lifted_moments_of_a_trained_model_fit_both_factors_best(trained: Training) -> None:
    state = trained.optimizer.state()
    handed = hand_over(state, trained.model, "lift", options=OPTIONS)
    weights = model_tensors(trained.model)
    for name in NEW:
        left, right = (
            weights[name.replace("weight", factor)].astype(np.float64)
            for factor in ("left", "right")
        )
        m_left, m_right = (
            state[name.replace("weight", factor) + ".moment1"].astype(np.float64)
            for factor in ("left", "right")
        )
        lifted = handed[f"{name}.moment1"].astype(np.float64)
        slope = (lifted @ right.T - m_left) @ right + left @ (left.T @ lifted - m_right)
        scale = np.abs(m_left @ right).max() + np.abs(left @ m_right).max()
        assert np.abs(slope).max() < 1e-5 * scale

        second = lift_second_moment(
            left,
            right,
            *(state[name.replace("weight", f)] for f in ("left.moment2", "right.moment2")),
        )
        share = (1 - 0.95**STEPS) / (1 - 0.9**STEPS) ** 2
        expected = np.maximum(second, share * lifted**2)
        np.testing.assert_allclose(handed[f"{name}.moment2"], expected, rtol=1e-4, err_msg=name)
        assert np.mean(expected == second) > 0.9  # the bound is the exception

        for power in ("beta1_pow", "beta2_pow"):
            counter = state[name.replace("weight", "left") + f".{power}"]
            np.testing.assert_array_equal(handed[f"{name}.{power}"], counter)


@pytest.mark.parametrize("corrected", [True, False])
def test_no_lifted_entry_asks_for_more_than_the_learning_rate(corrected: bool) -> None:
    """Row 0 of every matrix has seen no gradient itself; its first moment comes from the others."""
    options = OPTIONS.model_copy(update={"bias_correction": corrected})
    training = train(options, steps=5)
    state = training.optimizer.state()
    for name in NEW:
        for entry in ("moment1", "moment2"):
            state[name.replace("weight", "left") + f".{entry}"][0] = 0.0
    handed = hand_over(state, training.model, "lift", options=options)
    weights = (1 - 0.9**5, 1 - 0.95**5) if corrected else (1.0, 1.0)
    for name in NEW:
        first = handed[f"{name}.moment1"].astype(np.float64) / weights[0]
        second = handed[f"{name}.moment2"].astype(np.float64) / weights[1]
        assert first[0].any()
        assert (np.abs(first) <= np.sqrt(second) * (1 + 1e-5) + 1e-18).all()


@pytest.mark.parametrize("corrected", [True, False])
def test_probes_set_the_size_of_the_bias_corrected_second_moment(corrected: bool) -> None:
    options = OPTIONS.model_copy(update={"bias_correction": corrected})
    training = train(options, steps=5)
    state = training.optimizer.state()
    loud = {  # far above any first moment, so that the bound by its square is at rest
        name: [100 * gradient, 300 * gradient]
        for name, gradient in dense_gradients(training.model, 7).items()
    }
    plain = hand_over(state, training.model, "lift", options=options)
    handed = hand_over(state, training.model, "lift", options=options, probes=loud)
    weight = 1 - 0.95**5 if corrected else 1.0
    for name in NEW:
        assert handed[f"{name}.moment1"].tobytes() == plain[f"{name}.moment1"].tobytes()
        mean = handed[f"{name}.moment2"].astype(np.float64).mean() / weight
        expected = np.mean([np.mean(np.square(gradient)) for gradient in loud[name]])
        assert mean == pytest.approx(expected, rel=1e-3)


def test_half_precision_masters_are_the_product_of_the_factors_masters() -> None:
    """The state alone: no CPU kernel updates half precision parameters."""
    training = train(steps=3)
    masters = model_tensors(training.model)
    state = training.optimizer.state()
    state.update({f"{name}.master": array for name, array in masters.items()})
    half = copy.deepcopy(training.model)
    half.to(dtype="bfloat16")

    handed = hand_over(state, half, "lift", options=OPTIONS)
    ffn.merge(half)
    optimizer = AdamW(half, OPTIONS, multi_precision=True)
    optimizer.load_state(handed)
    block = paddle.static.default_main_program().global_block()
    optimizer.inner._create_accumulators(block, list(optimizer.parameters.values()))
    restored = optimizer.state()

    assert restored.keys() == handed.keys()
    for name, array in restored.items():
        assert array.tobytes() == handed[name].tobytes(), name
    for name in NEW:
        left, right = (
            masters[name.replace("weight", factor)].astype(np.float64)
            for factor in ("left", "right")
        )
        np.testing.assert_array_equal(handed[f"{name}.master"], (left @ right).astype(np.float32))
    assert not any(owner(name) in FACTORS for name in handed)
