"""The learning rates at which merged parameters start, and their way back to the schedule's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastffn_cli.engine.handover import (
    hand_over,
    merged_parameters,
    rewarm_factor,
    start_rates,
)
from models.gpt import GPT
from tests.engine.handover_runs import (
    KINDS,
    NEW,
    OPTIONS,
    RATE,
    batch,
    owner,
    tiny_gpt,
    train_with_dense_moments,
    weights,
)


def merged_weights(model: GPT) -> dict[str, np.ndarray]:
    layers = dict(model.named_sublayers())
    return {name: layers[owner(name)].dense_weight() for name in NEW}


def rms(array: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(array, dtype=np.float64)))


@pytest.mark.parametrize("kind", [*KINDS, "guided"])
def test_every_merged_parameter_has_a_rate_and_no_other(kind: str) -> None:
    model = tiny_gpt(KINDS.get(kind, {"kind": "guided", "rank": 4}))
    names = merged_parameters(model)
    assert start_rates(model, "reset") == dict.fromkeys(names, 1.0)
    assert start_rates(model, "rewarm") == dict.fromkeys(names, 0.0)
    lifted = start_rates(model, "lift")
    assert list(lifted) == names
    biases = [name for name in names if name.endswith("bias")]
    copied = names if kind in ("narrow", "block_diagonal") else biases
    assert all((lifted[name] == 1.0) == (name in copied) for name in names)
    with pytest.raises(ValueError, match="unknown handover 'keep'"):
        start_rates(model, "keep")


@pytest.mark.parametrize("rule", [{}, {"lr_rule": "spectral"}])
def test_factors_rates_follow_their_sizes_and_their_own_learning_rates(rule: dict) -> None:
    model = tiny_gpt({**KINDS["low_rank"], **rule})
    rates, values = start_rates(model, "lift"), weights(model)
    parameters = dict(model.named_parameters())
    for name in NEW:
        left, right = (name.replace("weight", factor) for factor in ("left", "right"))
        scale_left, scale_right = (
            parameters[factor].optimize_attr["learning_rate"] for factor in (left, right)
        )
        if rule:
            assert (scale_left, scale_right) != (1.0, 1.0)
        expected = 2.0 * (scale_left * rms(values[right]) + scale_right * rms(values[left]))
        assert rates[name] == pytest.approx(expected, rel=1e-12)


def test_the_guides_inner_factors_decide_its_rate() -> None:
    guided, alone = tiny_gpt({"kind": "guided", "rank": 4}), tiny_gpt(KINDS["low_rank"])
    alone.set_state_dict({n.replace(".inner", ""): p for n, p in guided.named_parameters()})
    rates = start_rates(guided, "lift")
    assert {name: rates[name] for name in NEW} == start_rates(alone, "lift")


@pytest.mark.parametrize("kind", ["low_rank", "thin", "monarch", "block_dense"])
def test_updates_go_on_at_the_size_that_they_had(kind: str) -> None:
    training, moments = train_with_dense_moments(KINDS[kind], 40)
    handed = hand_over(training.optimizer.state(), training.model, "lift", options=OPTIONS)
    rates = start_rates(training.model, "lift")
    for name, (_, second) in moments.items():  # the size that probes would have set
        part = tuple(slice(n) for n in merged_weights(training.model)[name].shape)
        estimate = handed[f"{name}.moment2"]
        estimate *= np.float32(second[part].mean() / estimate[part].mean())
    after = training.merged(handed)
    before = merged_weights(training.model), weights(after.model)
    training.step(batch(99), RATE)
    after.step(batch(99), RATE)
    cheap, dense = merged_weights(training.model), weights(after.model)
    for name in NEW:
        part = tuple(slice(n) for n in cheap[name].shape)
        moved_cheap = rms(cheap[name] - before[0][name])
        moved_dense = rms((dense[name] - before[1][name])[part])
        # κ assumes sign-like updates; these are a tenth of that, of uneven entries.
        assert 0.5 < rates[name] * moved_dense / moved_cheap < 2.0, name


def test_rewarming_goes_in_a_straight_line_from_its_start_to_one() -> None:
    assert [rewarm_factor(step, 5) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [rewarm_factor(step, 3, 2.0) for step in (1, 2, 3, 4)] == [2.0, 1.5, 1.0, 1.0]
    assert [rewarm_factor(step, 5, 1.0) for step in range(7)] == [1.0] * 7
    assert rewarm_factor(1, 0, 0.5) == rewarm_factor(1, 1, 0.5) == 1.0
    assert rewarm_factor(1, 2, 0.5) == 0.5
