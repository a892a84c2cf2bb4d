"""AdamW's state when a trained dense model is made cheap, as between dense start and stage 1."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
import pytest

from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.handover import hand_down, hand_over
from fastffn_cli.engine.optimizer import AdamW
from models import ffn
from models.ffn.grow import choose_units
from models.gpt import GPT
from tests.engine.handover_runs import (
    BETA1,
    BETA2,
    KINDS,
    NEW,
    OPTIONS,
    RATE,
    Training,
    batch,
    owner,
    tiny_gpt,
    train,
    weights,
)

STEPS = 10


@pytest.fixture(scope="module")
def dense() -> Training:
    """Trained, and never changed by a test."""
    return train(steps=STEPS, layer_kind={"kind": "dense"})


def approximated(training: Training, spec: Mapping[str, Any]) -> GPT:
    model = copy.deepcopy(training.model)
    ffn.approximate(model, **spec)
    model.train()
    return model


def goes_on(model: GPT, state: Mapping[str, np.ndarray]) -> Training:
    after = Training.of(model)
    after.optimizer.load_state(state)
    return after


@pytest.mark.parametrize("policy", ["reset", "rewarm", "lift"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cheap_models_optimizer_takes_the_state_and_trains_on(
    dense: Training, kind: str, policy: str
) -> None:
    state = dense.optimizer.state()
    kept = {name: array.tobytes() for name, array in state.items()}
    model = approximated(dense, KINDS[kind])
    handed = hand_down(state, dense.model, model, policy, options=OPTIONS)
    after = goes_on(model, handed)
    entries = ("moment1", "moment2", "beta1_pow", "beta2_pow")
    assert handed.keys() == {
        f"{name}.{entry}" for name in after.optimizer.parameters for entry in entries
    }
    shapes = {name: array.shape for name, array in model_tensors(dense.model).items()}
    for name, array in handed.items():
        assert array.dtype == np.float32
        parameter = after.optimizer.parameters[owner(name)]
        if tuple(parameter.shape) == shapes.get(owner(name)):
            assert array.tobytes() == kept[name], name
        elif name.endswith(("moment1", "moment2")):
            assert list(array.shape) == parameter.shape
            assert array.any() == (policy == "lift")
        else:
            beta = BETA1 if "beta1" in name else BETA2
            expected = beta ** (STEPS + 1 if policy == "lift" else 1)
            np.testing.assert_allclose(array, [expected], rtol=1e-5)
    losses = [after.step(batch(number % 2), RATE).loss for number in range(6)]
    assert losses[4] < losses[0]
    assert losses[5] < losses[1]
    assert {name: array.tobytes() for name, array in state.items()} == kept


def test_factors_get_what_the_chain_rule_makes_of_the_dense_moments(dense: Training) -> None:
    state = dense.optimizer.state()
    model = approximated(dense, KINDS["low_rank"])
    handed = hand_down(state, dense.model, model, "lift", options=OPTIONS)
    values = weights(model)
    share = (1 - BETA2**STEPS) / (1 - BETA1**STEPS) ** 2
    for name in NEW:
        left, right = (values[name.replace("weight", factor)] for factor in ("left", "right"))
        m, v = (state[f"{name}.{entry}"].astype(np.float64) for entry in ("moment1", "moment2"))
        for factor, first, second in (
            ("left", m @ right.T, np.einsum("ij,kj->ik", v, right**2)),
            ("right", left.T @ m, np.einsum("ij,ik->kj", v, left**2)),
        ):
            moments = [handed[name.replace("weight", f"{factor}.moment{n}")] for n in (1, 2)]
            np.testing.assert_allclose(moments[0], first, rtol=0, atol=1e-6 * np.abs(first).max())
            # No entry asks for more than the learning rate.
            np.testing.assert_allclose(moments[1], np.maximum(second, share * first**2), rtol=1e-4)


@pytest.mark.parametrize("kind", ["low_rank", "monarch", "block_dense"])
def test_down_and_over_again_is_the_part_of_the_moment_that_factors_see(
    dense: Training, kind: str
) -> None:
    state = dense.optimizer.state()
    model = approximated(dense, KINDS[kind])
    down = hand_down(state, dense.model, model, "lift", options=OPTIONS)
    up = hand_over(down, model, "lift", options=OPTIONS)
    merged = copy.deepcopy(model)
    ffn.merge(merged)
    again = hand_down(up, merged, model, "lift", options=OPTIONS)
    for name in NEW:
        true, seen = (one[f"{name}.moment1"].astype(np.float64) for one in (state, up))
        # An orthogonal projection: what is left out is orthogonal to what is kept.
        assert abs(((true - seen) * seen).sum()) < 1e-4 * (seen**2).sum()
        assert 0.1 < (seen**2).sum() / (true**2).sum() < 0.999
        for factor in ("left", "right"):
            key = name.replace("weight", f"{factor}.moment1")
            tolerance = 1e-4 * np.abs(down[key]).max()
            np.testing.assert_allclose(again[key], down[key], rtol=0, atol=tolerance)


def test_kept_units_take_their_own_moments_along(dense: Training) -> None:
    state = dense.optimizer.state()
    handed = hand_down(
        state, dense.model, approximated(dense, KINDS["narrow"]), "lift", options=OPTIONS
    )
    for number, layer in enumerate(dense.model.layers):
        kept = choose_units(layer.ffn.linear1, layer.ffn.linear2, KINDS["narrow"]["width"])
        for entry in ("moment1", "moment2"):
            for name, axis in (("linear1.weight", 1), ("linear1.bias", 0), ("linear2.weight", 0)):
                key = f"layers.{number}.ffn.{name}.{entry}"
                assert handed[key].tobytes() == state[key].take(kept, axis).tobytes()


def test_blocks_take_their_own_moments_along(dense: Training) -> None:
    state = dense.optimizer.state()
    model = approximated(dense, KINDS["block_diagonal"])
    handed = hand_down(state, dense.model, model, "lift", options=OPTIONS)
    for name in NEW:
        for entry in ("moment1", "moment2"):
            blocks = handed[f"{name}.{entry}"]
            for number, block in enumerate(blocks):
                rows, columns = (slice(number * n, (number + 1) * n) for n in block.shape)
                assert (block == state[f"{name}.{entry}"][rows, columns]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masters_of_new_parameters_are_their_values(dense: Training, kind: str) -> None:
    state = dense.optimizer.state()
    masters = model_tensors(dense.model)
    state.update({f"{name}.master": array for name, array in masters.items()})
    before = copy.deepcopy(dense.model)
    before.to(dtype="bfloat16")
    model = copy.deepcopy(before)
    ffn.approximate(model, **KINDS[kind])
    handed = hand_down(state, before, model, "lift", options=OPTIONS)
    optimizer = AdamW(model, OPTIONS, multi_precision=True)
    optimizer.load_state(handed)
    block = paddle.static.default_main_program().global_block()
    optimizer.inner._create_accumulators(block, list(optimizer.parameters.values()))
    assert optimizer.state().keys() == handed.keys()
    for name, value in weights(model).items():
        master = handed[f"{name}.master"]
        if name in masters and master.shape == masters[name].shape:
            assert master.tobytes() == masters[name].tobytes()
        else:
            np.testing.assert_array_equal(master, value)


def test_some_layers_stay_dense_with_their_state(dense: Training) -> None:
    state = dense.optimizer.state()
    model = approximated(dense, {**KINDS["low_rank"], "dense_layers": [1]})
    handed = hand_down(state, dense.model, model, "lift", options=OPTIONS)
    assert not any(".ffn.linear1.weight." in n for n in handed if n.startswith("layers.0."))
    for name, array in state.items():
        if name.startswith("layers.1."):
            assert handed[name].tobytes() == array.tobytes()
    goes_on(model, handed).step(batch(0), RATE)


def test_a_reset_asks_nothing_of_the_layers(dense: Training) -> None:
    fresh = tiny_gpt(KINDS["narrow"])
    handed = hand_down(dense.optimizer.state(), dense.model, fresh, "reset", options=OPTIONS)
    assert not handed["layers.0.ffn.linear1.weight.moment1"].any()
    goes_on(fresh, handed).step(batch(0), RATE)


def test_what_is_not_made_of_the_dense_model_is_refused(dense: Training) -> None:
    state = dense.optimizer.state()
    with pytest.raises(ValueError, match="unknown handover 'keep'"):
        hand_down(state, dense.model, dense.model, "keep", options=OPTIONS)
    with pytest.raises(ValueError, match=r"layers\.0\.ffn\.linear1: .* not taken from a dense"):
        hand_down(state, dense.model, tiny_gpt(KINDS["narrow"]), "lift", options=OPTIONS)
    with pytest.raises(ValueError, match=r"'layers\.0\.ffn\.inner.*cannot be lifted: use 'reset'"):
        guided = tiny_gpt({"kind": "guided", "rank": 3})
        hand_down(state, dense.model, guided, "lift", options=OPTIONS)
    other = copy.deepcopy(dense.model)
    other.layers[0].ffn.linear1.weight = other.create_parameter([24, 95])
    with pytest.raises(ValueError, match=r"no parameter .*: layers\.0\.ffn\.linear1\.weight"):
        hand_down(state, dense.model, other, "lift", options=OPTIONS)
    del state["layers.1.ffn.linear2.weight.moment2"]
    model = approximated(dense, KINDS["monarch"])
    with pytest.raises(KeyError, match=r"layers\.1\.ffn\.linear2\.weight\.moment2"):
        hand_down(state, dense.model, model, "lift", options=OPTIONS)
    assert hand_down({}, dense.model, model, "lift", options=OPTIONS) == {}
