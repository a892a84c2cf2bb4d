"""AdamW's state across the merge, on a model that has really been trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import paddle
import pytest

from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.handover import POLICIES, hand_over, merged_parameters, rewarm_factor
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.tasks.causal_lm import CausalLM
from models import ffn
from models.ffn.moments import MergedParameter, lift_second_moment
from models.gpt import GPT, GPTConfig
from tests.engine.runs import random_batch

ROWS, SEQ_LEN, VOCAB = 8, 16, 40
LAYERS, STEPS, RATE = 2, 12, 3e-3
NEW = [f"layers.{k}.ffn.linear{n}.weight" for k in range(LAYERS) for n in (1, 2)]
FACTORS = [name.replace("weight", factor) for name in NEW for factor in ("left", "right")]
OPTIONS = OptimizerSection(adam_beta1=0.9, adam_beta2=0.95)


def tiny_gpt(layer_kind: dict[str, object] | None = None) -> GPT:
    paddle.seed(4)
    model = GPT(
        GPTConfig(
            vocab_size=VOCAB,
            hidden_size=24,
            num_layers=LAYERS,
            num_attention_heads=3,
            ffn_hidden_size=96,
            max_position_embeddings=SEQ_LEN,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            ffn=layer_kind or {"kind": "low_rank", "rank": 4},
        )
    )
    model.train()
    return model


def batch(number: int) -> Batch:
    return random_batch(number, ROWS, SEQ_LEN, VOCAB)


@dataclass
class Training:
    """A model, its optimizer and its step."""

    model: GPT
    optimizer: AdamW
    step: TrainStep

    @classmethod
    def of(cls, model: GPT, options: OptimizerSection = OPTIONS) -> Training:
        optimizer = AdamW(model, options, multi_precision=False)
        step = TrainStep(
            CausalLM(model), optimizer, Precision(), micro_batch_size=ROWS, grad_clip=0.0
        )
        return cls(model, optimizer, step)

    def merged(self, state: dict[str, np.ndarray], options: OptimizerSection = OPTIONS) -> Training:
        """A copy of the model, merged, whose fresh optimizer goes on from `state`."""
        model = copy.deepcopy(self.model)
        ffn.merge(model)
        after = Training.of(model, options)
        after.optimizer.load_state(state)
        return after


def train(options: OptimizerSection = OPTIONS, steps: int = STEPS, rate: float = RATE) -> Training:
    training = Training.of(tiny_gpt(), options)
    for number in range(steps):
        # Two batches, again and again: the loss falls by memory.
        training.step(batch(number % 2), rate)
    return training


@pytest.fixture(scope="module")
def trained() -> Training:
    """Trained, and never changed by a test."""
    return train()


def dense_gradients(model: GPT, number: int) -> dict[str, np.ndarray]:
    """The gradients of the merged matrices, by Paddle's own differentiation."""
    dense = copy.deepcopy(model)
    ffn.merge(dense)
    task = CausalLM(dense)
    (task.loss(batch(number)) / task.weight(batch(number))).backward()
    return {
        name: parameter.grad.numpy().astype(np.float64)
        for name, parameter in dense.named_parameters()
        if name in NEW
    }


def owner(name: str) -> str:
    return name.rpartition(".")[0]


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


def test_rewarming_rises_linearly_to_one_and_stays() -> None:
    assert [rewarm_factor(step, 4) for step in range(7)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert rewarm_factor(1, 0) == 1.0
