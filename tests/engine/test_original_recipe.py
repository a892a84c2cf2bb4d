"""`Optimizer.recipe: mindspore-fastffn` is the original's training, update by update.

Its own 8 updates (MindSpore, float32) are the reference: everything here is built from a
configuration, as `fastffn pretrain` builds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastffn_cli.config.load import default_config
from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.checkpoint import model_tensors, set_weights
from fastffn_cli.engine.model import build_model, gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.schedule import build_schedule
from fastffn_cli.engine.step import StepResult, TrainStep
from fastffn_cli.tasks.causal_lm import CausalLM
from models.gpt import GPT
from tests.conftest import Outcome, Workplace
from tests.engine.runs import assert_same_state, exact_metrics
from tests.original_models import EOS, load_arrays, our_weights

Program = Callable[..., Outcome]

STEPS = 8
OVERRIDES = (
    *("Model.vocab_size=97", "Model.hidden_size=16", "Model.num_layers=2"),
    *("Model.num_attention_heads=2", "Model.max_position_embeddings=32"),
    *("Model.hidden_dropout_prob=0", "Model.attention_probs_dropout_prob=0"),
    *(f"Model.masked_token_id={EOS}", "Model.ffn={kind: low_rank, rank: 8, init: normal}"),
    *("Data.dataset.max_seq_len=32", "Data.batch_size.global_batch_size=2"),
    "Optimizer={recipe: mindspore-fastffn, lr: {max_lr: 5e-3, min_lr: 1e-4, warmup_steps: 3}}",
)


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    return load_arrays("tiny_train.npz")


def configured(*more: str) -> Config:
    return default_config([*OVERRIDES, *more]).config


class Training:
    """The engine's parts, from the original's first weights on."""

    def __init__(self, config: Config) -> None:
        self.model: GPT = build_model(gpt_config(config), seed=1)
        set_weights(self.model, our_weights(load_arrays("tiny.npz"), "p."), "the original")
        self.optimizer = AdamW(self.model, config.Optimizer, multi_precision=False)
        self.schedule = build_schedule(config.Optimizer.lr, STEPS)
        self.update = TrainStep(
            CausalLM(self.model),
            self.optimizer,
            Precision(),
            micro_batch_size=config.Data.batch_size.micro_batch_size,
            grad_clip=config.Optimizer.grad_clip,
        )

    def run(self, batches: np.ndarray, first: int, last: int) -> list[StepResult]:
        """Make the updates first..last, counted from 1."""
        results = []
        for step in range(first, last + 1):
            ids = batches[step - 1].astype(np.int64)
            mask = (ids[:, :-1] != EOS).astype(np.float32)
            batch = Batch(ids[:, :-1], ids[:, 1:], mask)
            results.append(self.update(batch, self.schedule(step)))
        return results


def test_the_original_trajectory_is_reproduced(original: dict[str, np.ndarray]) -> None:
    training = Training(configured())
    losses = [result.loss for result in training.run(original["batches"], 1, STEPS)]
    np.testing.assert_allclose(losses, original["losses"], rtol=0, atol=1e-4)
    assert_near(model_tensors(training.model), our_weights(original, "f."), 1e-4)


def test_the_original_learning_rates_are_reproduced(original: dict[str, np.ndarray]) -> None:
    schedule = build_schedule(configured().Optimizer.lr, STEPS)
    rates = [schedule(step) for step in range(1, STEPS + 1)]
    np.testing.assert_allclose(rates, original["lrs"], rtol=1e-6, atol=0)
    assert rates[0] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        "Optimizer.bias_correction=True",
        "Optimizer.lr.name=cosine",
        "Optimizer.adam_beta2=0.999",
        "Optimizer.weight_decay=0.01",
        "Optimizer.grad_clip=0.1",
        "Model.masked_token_id=",
    ],
)
def test_every_part_of_the_recipe_is_needed(original: dict[str, np.ndarray], change: str) -> None:
    training = Training(configured(change))
    training.run(original["batches"], 1, STEPS)
    with pytest.raises(AssertionError):
        assert_near(model_tensors(training.model), our_weights(original, "f."), 1e-4)


def test_a_resumed_run_is_the_straight_one_bit_for_bit(original: dict[str, np.ndarray]) -> None:
    straight = Training(configured())
    straight.run(original["batches"], 1, 4)
    weights, state = model_tensors(straight.model), straight.optimizer.state()
    expected = straight.run(original["batches"], 5, STEPS)

    resumed = Training(configured())
    set_weights(resumed.model, weights, "memory")
    resumed.optimizer.load_state(state)
    assert resumed.run(original["batches"], 5, STEPS) == expected
    assert_same(model_tensors(resumed.model), model_tensors(straight.model))
    assert_same(resumed.optimizer.state(), straight.optimizer.state())


BY_NAME = (
    *("-o", "Optimizer={recipe: mindspore-fastffn, lr: {decay_steps: 8, warmup_steps: 2}}"),
    *("-o", "Model.masked_token_id=256"),
)


def test_the_program_resumes_the_recipe_bit_for_bit(fastffn: Program, workplace: Workplace) -> None:
    whole = ("-o", "Engine.save_load.output_dir=runs/whole")
    for more in (whole, ("-o", "Engine.max_steps=4"), ("--resume",)):
        done = fastffn("pretrain", "-c", "tiny.yaml", *BY_NAME, *more)
        assert done.code == 0, done.err
    last = "checkpoints/step-00000008"
    assert_same_state(workplace.dir / "runs" / "whole" / last, workplace.run_dir / last)
    assert exact_metrics(workplace.dir / "runs" / "whole") == exact_metrics(workplace.run_dir)
    rates = [
        value["learning_rate"] for _, value in sorted(exact_metrics(workplace.run_dir).items())
    ]
    assert [rate for rate in rates if rate is not None][:2] == [0.0, 5e-5]


def test_a_masked_token_that_is_not_the_datas_end_of_text_is_noted(fastffn: Program) -> None:
    command = ("pretrain", "-c", "tiny.yaml", "--dry-run", "-o")
    other = fastffn(*command, "Model.masked_token_id=7")
    assert "Model.masked_token_id is 7, and end-of-text is 256" in other.err
    assert "masked_token_id" not in fastffn(*command, "Model.masked_token_id=256").err


def test_a_masked_token_beyond_the_datas_vocabulary_is_refused(fastffn: Program) -> None:
    done = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "-o", "Model.masked_token_id=50256")
    assert done.code == 2
    assert "Model.masked_token_id 50256 is not below the 257 tokens of the data" in done.err


def without_key_biases(name: str, array: np.ndarray) -> np.ndarray:
    """Leave out the key biases: softmax cancels them, their gradients are nothing but rounding."""
    return array.reshape(2, 3, 8)[:, [0, 2]] if name.endswith("qkv_proj.bias") else array


def assert_near(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(
            without_key_biases(name, found[name]),
            without_key_biases(name, array),
            rtol=0,
            atol=tolerance,
            err_msg=name,
        )


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    assert not different
