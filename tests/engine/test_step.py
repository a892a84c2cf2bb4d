"""One update: exact accumulation, the clip, FleetX's numbers, and what a bad number does."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.data.dataset import Batch
from fastffn_cli.distributed.parallelism import ALONE
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.errors import Diverged
from fastffn_cli.tasks.causal_lm import CausalLM
from models.gpt import GPT, GPTConfig
from tests.engine.runs import random_batch
from tests.fleetx_models import load_arrays, load_small, our_name

ROWS, SEQ_LEN, VOCAB = 8, 16, 50
LOW_RANK = {"kind": "low_rank", "rank": 4}


def tiny_gpt(seed: int = 3, dropout: float = 0.0, **changes: Any) -> GPT:
    paddle.seed(seed)
    sizes = {
        **{"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4},
        **{"ffn_hidden_size": 64, "max_position_embeddings": SEQ_LEN, "ffn": LOW_RANK},
        **{"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
    }
    model = GPT(GPTConfig(**{**sizes, **changes}))
    model.train()
    return model


def train_step(model: GPT, *, micro: int = ROWS, clip: float = 1.0, **options: Any) -> TrainStep:
    optimizer = AdamW(model, OptimizerSection(**options), multi_precision=False)
    return TrainStep(
        CausalLM(model), optimizer, Precision(), micro_batch_size=micro, grad_clip=clip
    )


def without_key_biases(weights: dict[str, np.ndarray], heads: int = 4) -> dict[str, np.ndarray]:
    """Leave out the key biases: softmax cancels them, so their true gradient is 0.

    What is left of it is rounding, which Adam divides by its own size: no two orders of summation
    agree there, and no output depends on it.
    """
    kept = dict(weights)
    for name in weights:
        if name.endswith("qkv_proj.bias"):
            kept[name] = weights[name].reshape(heads, 3, -1)[:, [0, 2]]
    return kept


def trained(micro: int) -> tuple[list[float], list[float], dict[str, np.ndarray]]:
    model = tiny_gpt()
    step = train_step(model, micro=micro)
    results = [step(random_batch(k, ROWS, SEQ_LEN, VOCAB), 1e-3) for k in range(4)]
    return (
        [r.loss for r in results],
        [r.grad_norm for r in results],
        without_key_biases(model_tensors(model)),
    )


def test_accumulation_is_exact_under_uneven_masks() -> None:
    losses, norms, weights = trained(micro=8)
    for micro in (4, 1):
        other_losses, other_norms, other_weights = trained(micro)
        np.testing.assert_allclose(other_losses, losses, rtol=0, atol=1e-6)
        np.testing.assert_allclose(other_norms, norms, rtol=1e-5)
        for name, array in weights.items():
            np.testing.assert_allclose(other_weights[name], array, rtol=0, atol=1e-6, err_msg=name)


def test_the_masks_of_that_test_are_uneven() -> None:
    batch = random_batch(0, ROWS, SEQ_LEN, VOCAB)
    valid = batch.mask_BS.sum(axis=1)
    assert valid.max() >= 2 * valid.min()


def test_a_micro_batch_without_valid_tokens_adds_nothing() -> None:
    full = random_batch(0, 4, SEQ_LEN, VOCAB, masked=0.0)
    empty = np.zeros_like(full.mask_BS)
    padded = Batch(
        np.concatenate([full.tokens_BS, full.tokens_BS]),
        np.concatenate([full.labels_BS, full.labels_BS]),
        np.concatenate([full.mask_BS, empty]),
    )
    alone = train_step(tiny_gpt(), micro=4)(full, 1e-3)
    beside = train_step(tiny_gpt(), micro=4)(padded, 1e-3)
    assert beside.loss == pytest.approx(alone.loss, rel=1e-6)
    assert beside.grad_norm == pytest.approx(alone.grad_norm, rel=1e-6)


def test_a_batch_without_any_valid_token_is_a_loss_of_zero_not_nan() -> None:
    batch = random_batch(0, ROWS, SEQ_LEN, VOCAB)
    nothing = Batch(batch.tokens_BS, batch.labels_BS, np.zeros_like(batch.mask_BS))
    assert train_step(tiny_gpt())(nothing, 1e-3).loss == 0.0


def test_six_updates_are_fleetx_updates() -> None:
    """Losses, gradient norms and weights of the engine run that the fixture recorded."""
    recorded = load_arrays("A_train.npz")
    model = load_small()
    model.train()
    step = train_step(model, micro=4, clip=1.0, weight_decay=0.1)

    results = [
        step(
            Batch(
                recorded["tokens"][k],
                recorded["labels"][k],
                recorded["loss_mask"][k].astype(np.float32),
            ),
            float(recorded["lr_used"][k]),
        )
        for k in range(6)
    ]

    np.testing.assert_allclose([r.loss for r in results], recorded["losses"], atol=5e-5, rtol=0)
    np.testing.assert_allclose([r.grad_norm for r in results], recorded["grad_norm"], rtol=1e-4)
    weights = model_tensors(model)
    projected = {
        our_name(name.removeprefix("step_6.proj.")): value
        for name, value in recorded.items()
        if name.startswith("step_6.proj.")
    }
    assert projected.keys() == weights.keys()
    for name, (total, norm, signed) in projected.items():
        if name.endswith("qkv_proj.bias"):
            continue  # a third of it are key biases, see `without_key_biases`
        values = weights[name].astype(np.float64).reshape(-1)
        signs = np.where((7 * np.arange(values.size)) % 5 < 2, 1.0, -1.0)
        np.testing.assert_allclose(np.linalg.norm(values), norm, rtol=1e-4, err_msg=name)
        for ours, theirs in ((values.sum(), total), (values @ signs, signed)):
            assert abs(ours - theirs) <= 2e-4 * np.sqrt(values.size) + 1e-4, name


def test_fleetx_micro_batches_give_the_same_first_update() -> None:
    recorded = load_arrays("A_train.npz")
    batch = Batch(recorded["tokens"][0], recorded["labels"][0], recorded["loss_mask"][0])
    model = load_small()
    model.train()
    result = train_step(model, micro=2, weight_decay=0.1)(batch, float(recorded["lr_used"][0]))
    assert result.loss == pytest.approx(recorded["losses"][0], abs=5e-5)
    assert result.grad_norm == pytest.approx(recorded["grad_norm"][0], rel=1e-4)


def norms_of_the_updates(step: TrainStep, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have the optimizer note the norm of what each update is made of."""
    norms: list[float] = []
    apply = step.optimizer.step

    def note(rate: float, *, gradient_factor: float) -> None:
        norms.append(gradient_factor * ALONE.gradient_norm(step.optimizer))
        apply(rate, gradient_factor=gradient_factor)

    monkeypatch.setattr(step.optimizer, "step", note)
    return norms


def test_the_reported_norm_is_the_one_before_clipping_and_the_clip_bounds_the_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = train_step(tiny_gpt(), clip=0.05)
    norms = norms_of_the_updates(step, monkeypatch)
    result = step(random_batch(0, ROWS, SEQ_LEN, VOCAB), 1e-3)
    assert result.grad_norm > 0.1
    assert norms == [pytest.approx(0.05, rel=1e-5)]


def test_a_clip_of_zero_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    step = train_step(tiny_gpt(), clip=0.0)
    norms = norms_of_the_updates(step, monkeypatch)
    result = step(random_batch(0, ROWS, SEQ_LEN, VOCAB), 1e-3)
    assert norms == [pytest.approx(result.grad_norm, rel=1e-6)]


def test_global_norm_is_that_of_all_gradients_together() -> None:
    model = tiny_gpt()
    CausalLM(model).loss(random_batch(0, ROWS, SEQ_LEN, VOCAB)).backward()
    squares = [float((p.grad.numpy().astype(np.float64) ** 2).sum()) for p in model.parameters()]
    optimizer = AdamW(model, OptimizerSection(), multi_precision=False)
    assert ALONE.gradient_norm(optimizer) == pytest.approx(np.sqrt(sum(squares)), rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_stops_before_the_update_and_is_named(bad: float) -> None:
    model = tiny_gpt()
    step = train_step(model)
    step(random_batch(0, ROWS, SEQ_LEN, VOCAB), 1e-3)
    spoiled = dict(model.named_parameters())["layers.1.self_attn.out_proj.weight"]
    values = spoiled.numpy()
    values[2, 5] = bad
    spoiled.set_value(values)
    before, moments = model_tensors(model), step.optimizer.state()

    with pytest.raises(Diverged, match=r"first: layers\.1\.self_attn\.out_proj\.weight\)"):
        step(random_batch(1, ROWS, SEQ_LEN, VOCAB), 1e-3)

    for name, array in model_tensors(model).items():
        assert array.tobytes() == before[name].tobytes(), name
    for name, array in step.optimizer.state().items():
        assert array.tobytes() == moments[name].tobytes(), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_that_overflows_is_named_as_one() -> None:
    model = tiny_gpt()
    step = train_step(model)
    model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match=r"first: norm\.weight\.grad"):
        step(random_batch(0, ROWS, SEQ_LEN, VOCAB), 1e-3)


def test_recompute_gives_the_same_update_with_dropout() -> None:
    results = {}
    for granularity in ("off", "full", "full_attn", "core_attn"):
        changes: dict[str, Any] = (
            {}
            if granularity == "off"
            else {"use_recompute": True, "recompute_granularity": granularity}
        )
        model = tiny_gpt(dropout=0.2, **changes)
        paddle.seed(99)
        results[granularity] = train_step(model, micro=4)(
            random_batch(0, ROWS, SEQ_LEN, VOCAB), 1e-3
        )
    for granularity, result in results.items():
        assert result.loss == pytest.approx(results["off"].loss, rel=1e-6), granularity
        assert result.grad_norm == pytest.approx(results["off"].grad_norm, rel=1e-5), granularity
