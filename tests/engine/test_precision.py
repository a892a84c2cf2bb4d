"""Half precision: chosen where the device has it, said where it has not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from fastffn_cli.config.schema_training import MixPrecision, OptimizerSection
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import LossScaler, Precision, choose_precision
from fastffn_cli.engine.step import MAX_SKIPPED, TrainStep
from fastffn_cli.errors import Diverged
from fastffn_cli.tasks.causal_lm import CausalLM
from models.gpt import GPT, GPTConfig
from tests.engine.runs import random_batch

CPU = Device("cpu")


class Accelerator(Device):
    """A device that says it has these types; nothing is computed on it here."""

    types: tuple[str, ...] = ("float16", "bfloat16")

    def supports(self, dtype: str) -> bool:
        return dtype in self.types


class OldAccelerator(Accelerator):
    types = ("float16",)


@pytest.mark.parametrize("device", [CPU, Accelerator("gpu")])
def test_float32_is_the_default_and_says_nothing(device: Device) -> None:
    precision, warning = choose_precision(MixPrecision(), device)
    assert warning is None
    assert precision.describe() == "float32"
    assert not precision.enabled
    assert precision.loss_scale == 1.0
    assert precision.state() is None


@pytest.mark.parametrize(
    ("options", "device", "words"),
    [
        (MixPrecision(use_pure_fp16=True), CPU, ("float16 O2", "silently ignores on cpu")),
        (MixPrecision(enable=True, dtype="bfloat16", level="O1"), CPU, ("bfloat16 O1",)),
        (MixPrecision(enable=True, dtype="bfloat16"), OldAccelerator("npu"), ("on npu:0",)),
    ],
)
def test_where_it_is_missing_a_warning_says_that_float32_trains(
    options: MixPrecision, device: Device, words: tuple[str, ...]
) -> None:
    precision, warning = choose_precision(options, device)
    assert not precision.enabled
    assert warning is not None
    for word in (*words, "training in float32"):
        assert word in warning


@pytest.fixture
def scalers_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Paddle's GradScaler believe that it stands on a GPU: its CPU kernels do the same."""
    place = SimpleNamespace(
        is_gpu_place=lambda: True, is_xpu_place=lambda: False, is_custom_place=lambda: False
    )
    monkeypatch.setattr(
        paddle.amp.grad_scaler, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=place)
    )


def test_float16_has_a_scaler_and_bfloat16_has_none(scalers_work: None) -> None:
    half, _ = choose_precision(MixPrecision(use_pure_fp16=True), Accelerator("gpu"))
    assert half.describe() == "float16 O2, loss scale 32768"
    assert half.multi_precision
    brain, _ = choose_precision(
        MixPrecision(enable=True, dtype="bfloat16", level="O1"), Accelerator("gpu")
    )
    assert brain.describe() == "bfloat16 O1"
    assert brain.scaler is None
    assert not brain.multi_precision


def test_enable_false_beats_use_pure_fp16() -> None:
    options = MixPrecision(use_pure_fp16=True, enable=False)
    assert not choose_precision(options, Accelerator("gpu"))[0].enabled


def test_the_scaler_travels_through_json(scalers_work: None) -> None:
    before = scaled_precision()
    assert before.scaler is not None
    state = before.scaler.state_dict()
    state["scale"] = np.array([4096.0], np.float32)
    state["incr_count"] = 17
    before.scaler.load_state_dict(state)

    after = scaled_precision()
    after.load_state(json.loads(json.dumps(before.state())))

    assert after.loss_scale == 4096.0
    assert after.state() == before.state()
    assert after.scaler is not None
    assert after.scaler.state_dict()["incr_count"] == 17


def test_a_checkpoint_of_a_float32_run_leaves_the_scaler_as_it_is(scalers_work: None) -> None:
    precision = scaled_precision()
    precision.load_state(None)
    assert precision.loss_scale == 1024.0


def scaled_precision() -> Precision:
    """Float32 arithmetic with a loss scale: what the scaler does can be seen on a CPU."""
    return Precision("float16", "O1", scaler=LossScaler(init_loss_scaling=1024.0))


def scaled_step(precision: Precision) -> tuple[TrainStep, GPT]:
    paddle.seed(2)
    sizes = {
        **{"vocab_size": 30, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2},
        **{"ffn_hidden_size": 32, "max_position_embeddings": 8},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    model = GPT(GPTConfig(**sizes))
    model.train()
    optimizer = AdamW(model, OptimizerSection(), multi_precision=False)
    step = TrainStep(CausalLM(model), optimizer, precision, micro_batch_size=2, grad_clip=1.0)
    return step, model


@pytest.mark.filterwarnings("ignore:For float16, amp only support")
def test_a_scaled_update_is_the_plain_one(scalers_work: None) -> None:
    plain, plain_model = scaled_step(Precision())
    scaled, scaled_model = scaled_step(scaled_precision())
    for seed in range(3):
        batch = random_batch(seed, 4, 8, 30)
        expected, result = plain(batch, 1e-3), scaled(batch, 1e-3)
        assert not result.skipped
        assert result.loss == pytest.approx(expected.loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    weights = model_tensors(scaled_model)
    for name, array in model_tensors(plain_model).items():
        if "qkv_proj.bias" not in name:
            np.testing.assert_allclose(weights[name], array, atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.filterwarnings("ignore:For float16, amp only support")
def test_an_overflow_skips_the_update_halves_the_scale_and_training_goes_on(
    scalers_work: None,
) -> None:
    precision = scaled_precision()
    step, model = scaled_step(precision)
    overflow = model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = model_tensors(model)

    result = step(random_batch(0, 4, 8, 30), 1e-3)

    assert result.skipped
    assert np.isfinite(result.loss)
    assert precision.loss_scale == 512.0
    for name, array in model_tensors(model).items():
        assert array.tobytes() == before[name].tobytes(), name
    overflow.remove()
    assert not step(random_batch(0, 4, 8, 30), 1e-3).skipped
    assert model_tensors(model)["norm.weight"].tobytes() != before["norm.weight"].tobytes()


@pytest.mark.filterwarnings("ignore:For float16, amp only support")
def test_the_scale_goes_as_paddles_does_and_nothing_is_printed(
    scalers_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"init_loss_scaling": 64.0, "incr_every_n_steps": 2, "decr_every_n_nan_or_inf": 2}
    ours, paddles = LossScaler(**settings), paddle.amp.GradScaler(**settings)
    rng = np.random.default_rng()
    for _ in range(40):
        overflowed = bool(rng.random() < 0.4)
        for scaler in (ours, paddles):
            scaler._cache_found_inf = overflowed
        ours.update()
        assert capsys.readouterr().out == ""
        paddles.update()
        capsys.readouterr()
        assert ours.state_dict() == paddles.state_dict()


@pytest.mark.filterwarnings("ignore:For float16, amp only support")
def test_overflows_without_end_are_divergence(scalers_work: None) -> None:
    step, model = scaled_step(scaled_precision())
    model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match=f"{MAX_SKIPPED} updates in a row overflowed float16"):
        for _ in range(MAX_SKIPPED):
            step(random_batch(0, 4, 8, 30), 1e-3)
