"""AdamW's state across the merge, on a model that has really been trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle
import pytest

from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.handover import hand_over, merged_parameters
from fastffn_cli.engine.handover_policies import POLICIES
from fastffn_cli.engine.optimizer import AdamW
from models import ffn
from models.ffn.moments import MergedParameter
from tests.engine.handover_runs import (
    FACTORS,
    NEW,
    OPTIONS,
    RATE,
    Training,
    batch,
    dense_gradients,
    owner,
    tiny_gpt,
    train,
)


@pytest.fixture(scope="module")
def trained() -> Training:
    """Trained, and never changed by a test."""
    return train()


def test_merging_makes_these_parameters(trained: Training) -> None:
    assert merged_parameters(trained.model) == NEW
    assert merged_parameters(tiny_gpt({"kind": "dense"})) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_the_state_is_the_merged_models_and_all_but_the_merged_matrices_keep_theirs(
    trained: Training, policy: str
) -> None:
    state = trained.optimizer.state()
    kept = {name: array.tobytes() for name, array in state.items()}

    handed = hand_over(state, trained.model, policy, options=OPTIONS)

    dense = trained.merged(handed).optimizer
    entries = ("moment1", "moment2", "beta1_pow", "beta2_pow")
    assert handed.keys() == {f"{name}.{entry}" for name in dense.parameters for entry in entries}
    for name, array in handed.items():
        assert array.dtype == np.float32
        if name.endswith(("moment1", "moment2")):
            assert list(array.shape) == dense.parameters[owner(name)].shape
        if owner(name) not in NEW:
            assert array.tobytes() == kept[name], name
    # The caller's own state is left alone.
    assert {name: array.tobytes() for name, array in state.items()} == kept


@pytest.mark.parametrize("policy", ["reset", "rewarm"])
@pytest.mark.parametrize("corrected", [True, False])
def test_reset_is_the_state_of_a_matrix_that_was_never_updated(
    policy: str, corrected: bool
) -> None:
    options = OPTIONS.model_copy(update={"bias_correction": corrected})
    training = train(options, steps=3)
    handed = hand_over(training.optimizer.state(), training.model, policy, options=options)
    for name in NEW:
        assert not handed[f"{name}.moment1"].any()
        assert not handed[f"{name}.moment2"].any()
        expected = (0.9, 0.95) if corrected else (0.0, 0.0)
        for power, value in zip(("beta1_pow", "beta2_pow"), expected, strict=True):
            np.testing.assert_array_equal(handed[f"{name}.{power}"], np.float32([value]))

    # An optimizer that has never seen the matrices makes the same update of them.
    after, fresh = training.merged(handed, options), training.merged({}, options)
    for one in (after, fresh):
        one.step(batch(5), RATE)
    ours, theirs = model_tensors(after.model), model_tensors(fresh.model)
    state, expected_state = after.optimizer.state(), fresh.optimizer.state()
    for name in NEW:
        assert ours[name].tobytes() == theirs[name].tobytes()
        for entry in ("moment1", "moment2", "beta1_pow", "beta2_pow"):
            key = f"{name}.{entry}"
            assert state[key].tobytes() == expected_state[key].tobytes(), key


@pytest.mark.parametrize("policy", ["reset", "lift"])
def test_the_loss_goes_on_falling_over_the_switch(policy: str) -> None:
    training = train()
    handed = hand_over(training.optimizer.state(), training.model, policy, options=OPTIONS)
    after = training.merged(handed)
    before = [training.step(batch(number % 2), RATE).loss for number in range(4)]
    losses = [after.step(batch(number % 2), RATE).loss for number in range(4)]
    assert losses[0] == pytest.approx(before[0], abs=1e-5)  # the same function
    assert losses[2] < losses[0]
    assert losses[3] < losses[1]
    # The first updates after a reset are sign-like and cost 0.02 here; a jump would be far more.
    np.testing.assert_array_less(losses, np.array(before) + 0.05)
    assert all(np.isfinite(array).all() for array in model_tensors(after.model).values())
    assert all(np.isfinite(array).all() for array in after.optimizer.state().values())


@pytest.mark.parametrize("policy", POLICIES)
def test_what_did_not_change_is_updated_bit_for_bit_as_without_the_switch(policy: str) -> None:
    training = train()
    after = training.merged(
        hand_over(training.optimizer.state(), training.model, policy, options=OPTIONS)
    )
    source = np.random.default_rng()
    for step in range(3):
        for name, parameter in after.optimizer.parameters.items():
            gradient = source.normal(0, 0.1, parameter.shape).astype(np.float32)
            parameter.grad = paddle.to_tensor(gradient)
            if name not in NEW:
                training.optimizer.parameters[name].grad = paddle.to_tensor(gradient)
        for one in (training, after):
            one.optimizer.step(RATE / (step + 1))

    expected, updated = model_tensors(training.model), model_tensors(after.model)
    shared = updated.keys() - set(NEW)
    assert shared == expected.keys() - set(FACTORS)
    for name in shared:
        assert updated[name].tobytes() == expected[name].tobytes(), name


def test_models_of_other_makers_hand_over_alike() -> None:
    """Factors inside a plain `nn.Sequential`, found by what they can do."""
    paddle.seed(2)
    model = paddle.nn.Sequential(paddle.nn.Linear(6, 20), paddle.nn.GELU(), paddle.nn.Linear(20, 6))
    ffn.approximate(model, kind="low_rank", rank=3)
    optimizer = AdamW(model, OPTIONS, multi_precision=False)
    for _ in range(2):
        paddle.sum(model(paddle.randn([5, 6])) ** 2).backward()
        optimizer.step(1e-3)
        optimizer.clear_gradients()
    assert merged_parameters(model) == ["0.weight", "2.weight"]
    handed = hand_over(optimizer.state(), model, "lift", options=OPTIONS)
    ffn.merge(model)
    dense = AdamW(model, OPTIONS, multi_precision=False)
    dense.load_state(handed)
    assert handed["0.weight.moment1"].shape == (6, 20)
    assert {owner(name) for name in handed} == set(dense.parameters)


class SumLinear(paddle.nn.Layer):
    """`x @ (first + second)`: a kind of its own, which knows no lift."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.create_parameter([6, 4])
        self.second = self.create_parameter([6, 4])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(x, self.first + self.second)

    def merge(self) -> paddle.nn.Linear:
        linear = paddle.nn.Linear(6, 4, bias_attr=False)
        linear.weight.set_value(self.first + self.second)
        return linear

    def merged_parameters(self) -> dict[str, MergedParameter]:
        return {"weight": MergedParameter((6, 4), ("first", "second"))}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {}


def test_a_new_kind_plugs_in_and_without_a_lift_it_can_still_be_reset() -> None:
    model = paddle.nn.Sequential(SumLinear(), paddle.nn.Linear(4, 2))
    optimizer = AdamW(model, OPTIONS, multi_precision=False)
    paddle.sum(model(paddle.randn([5, 6])) ** 2).backward()
    optimizer.step(1e-3)
    state = optimizer.state()
    with pytest.raises(ValueError, match=r"'0\.weight' cannot be lifted: use 'reset' or 'rewarm'"):
        hand_over(state, model, "lift", options=OPTIONS)
    handed = hand_over(state, model, "reset", options=OPTIONS)
    ffn.merge(model)
    assert {owner(name) for name in handed} == {name for name, _ in model.named_parameters()}
    assert not handed["0.weight.moment2"].any()
    assert handed["0.weight.moment2"].shape == (6, 4)


def test_a_state_before_the_first_update_stays_empty() -> None:
    assert hand_over({}, tiny_gpt(), "lift", options=OPTIONS) == {}


def test_without_anything_to_merge_the_state_stays() -> None:
    training = Training.of(tiny_gpt({"kind": "dense"}))
    training.step(batch(0), RATE)
    state = training.optimizer.state()
    assert hand_over(state, training.model, "lift", options=OPTIONS) == state


def test_a_missing_tensor_is_named(trained: Training) -> None:
    state = trained.optimizer.state()
    gone = "layers.1.ffn.linear2.right.moment2"
    del state[gone]
    with pytest.raises(KeyError, match=gone):
        hand_over(state, trained.model, "lift", options=OPTIONS)


def test_wrong_requests_are_refused(trained: Training) -> None:
    state = trained.optimizer.state()
    probes = {name: [gradient] for name, gradient in dense_gradients(trained.model, 0).items()}
    with pytest.raises(ValueError, match="'keep'; there are reset, rewarm, lift"):
        hand_over(state, trained.model, "keep", options=OPTIONS)
    with pytest.raises(ValueError, match="for handover 'lift', not for 'reset'"):
        hand_over(state, trained.model, "reset", options=OPTIONS, probes=probes)
    probes["norm.weight"] = probes.pop(NEW[0])
    with pytest.raises(ValueError, match=rf"no more: {NEW[0]}, norm\.weight"):
        hand_over(state, trained.model, "lift", options=OPTIONS, probes=probes)
