"""AdamW against float64, and a state that travels by parameter names."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import paddle
import pytest

from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.distributed.gradients import squared_norm
from fastffn_cli.engine.checkpoint import model_tensors, set_weights
from fastffn_cli.engine.optimizer import AdamW, decays
from models.ffn.low_rank import LowRankOptions, learning_rate_scales
from models.gpt import GPT, GPTConfig
from models.kernels import library

D, F = 16, 48
OPTIONS = OptimizerSection(
    weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, grad_clip=0.0
)
FFN = {
    **{"kind": "low_rank", "rank": 3, "init": "normal"},
    **{"lr_rule": "spectral", "lr_cap": 100.0, "decay_rule": "half"},
}


@pytest.fixture(autouse=True, params=["kernels", "Paddle"])
def path(request):
    """Every test runs with the update at once and with Paddle's optimizer."""
    library.load()
    with nullcontext() if request.param == "kernels" else library.suspended():
        yield


def small_gpt(seed: int = 5, ffn: dict[str, object] | None = None) -> GPT:
    paddle.seed(seed)
    return GPT(
        GPTConfig(
            vocab_size=20,
            hidden_size=D,
            num_layers=1,
            num_attention_heads=2,
            ffn_hidden_size=F,
            max_position_embeddings=8,
            ffn=ffn if ffn is not None else FFN,
        )
    )


def set_gradients(model: GPT, seed: int) -> dict[str, np.ndarray]:
    source = np.random.default_rng(seed)
    gradients = {}
    for name, parameter in model.named_parameters():
        values = source.normal(0, 0.1, parameter.shape).astype(np.float32)
        parameter.grad = paddle.to_tensor(values)
        gradients[name] = values
    return gradients


def scale_of(name: str) -> float:
    """Learning rate factor under `lr_rule: spectral`, from the closed form."""
    options = LowRankOptions(rank=3, init="normal", lr_rule="spectral", lr_cap=100.0)
    sizes = (D, F) if "linear1" in name else (F, D)
    left, right = learning_rate_scales(*sizes, 0.02, options)
    return left if name.endswith(".left") else right if name.endswith(".right") else 1.0


@pytest.mark.parametrize("corrected", [True, False])
def test_three_updates_are_those_of_a_float64_adamw(corrected: bool) -> None:
    """Decay leaves biases and norms out, factors have their own rates and half of the decay."""
    model = small_gpt()
    options = OPTIONS.model_copy(update={"bias_correction": corrected})
    optimizer = AdamW(model, options, multi_precision=False)
    expected = {name: array.astype(np.float64) for name, array in model_tensors(model).items()}
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"random gradients of seed {seed}")
    first = {name: np.zeros_like(array) for name, array in expected.items()}
    second = {name: np.zeros_like(array) for name, array in expected.items()}
    scales = {name: scale_of(name) for name in expected}
    assert {round(scale, 6) for scale in scales.values()} != {1.0}

    for t, rate in enumerate((1e-3, 5e-4, 2e-3), start=1):
        gradients = set_gradients(model, seed=seed + t)
        optimizer.step(rate)
        for name, gradient in gradients.items():
            own_rate = rate * scales[name]
            share = 0.0 if "bias" in name or "norm" in name else 1.0
            if name.endswith((".left", ".right")):
                share = 0.5 / scales[name]
            g = gradient.astype(np.float64)
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            expected[name] *= 1 - own_rate * 0.1 * share
            m_hat, v_hat = first[name], second[name]
            if corrected:
                m_hat, v_hat = m_hat / (1 - 0.8**t), v_hat / (1 - 0.95**t)
            expected[name] -= own_rate * m_hat / (np.sqrt(v_hat) + 1e-6)

    for name, array in model_tensors(model).items():
        np.testing.assert_allclose(array, expected[name], rtol=2e-5, atol=2e-7, err_msg=name)


def test_half_decay_takes_the_dense_rate_off_the_product() -> None:
    model = small_gpt()
    optimizer = AdamW(model, OPTIONS, multi_precision=False)
    linear = model.layers[0].ffn.linear1
    before = linear.dense_weight()
    for parameter in model.parameters():
        parameter.grad = paddle.zeros_like(parameter)
    optimizer.step(1e-3)
    np.testing.assert_allclose(linear.dense_weight(), before * (1 - 1e-3 * 0.1), atol=1e-8, rtol=0)
    assert np.abs(before).max() * 1e-3 * 0.1 > 1e-7  # the decay itself is far above that


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("word_embeddings.weight", True),
        ("position_embeddings.weight", True),
        ("layers.0.self_attn.qkv_proj.weight", True),
        ("layers.0.ffn.linear1.left", True),
        ("layers.0.ffn.linear1.bias", False),
        ("layers.0.norm1.weight", False),
        ("norm.bias", False),
    ],
)
def test_what_decays_is_fleetx_rule(name: str, expected: bool) -> None:
    assert decays(name) is expected


def test_the_state_goes_by_the_places_of_parameters_in_the_model() -> None:
    model = small_gpt()
    optimizer = AdamW(model, OPTIONS, multi_precision=False)
    assert optimizer.state() == {}
    set_gradients(model, seed=1)
    optimizer.step(1e-3)

    state = optimizer.state()

    kinds = ("moment1", "moment2", "beta1_pow", "beta2_pow")
    assert state.keys() == {
        f"{name}.{kind}" for name, _ in model.named_parameters() for kind in kinds
    }
    moment = state["layers.0.ffn.linear2.right.moment1"]
    assert moment.shape == (3, D)


def test_without_bias_correction_the_powers_stay_zero_and_so_in_the_state() -> None:
    model = small_gpt()
    options = OPTIONS.model_copy(update={"bias_correction": False})
    optimizer = AdamW(model, options, multi_precision=False)
    assert optimizer.state() == {}
    for step in (1, 2):
        set_gradients(model, seed=step)
        optimizer.step(1e-3)
        powers = [array for name, array in optimizer.state().items() if name.endswith("_pow")]
        assert len(powers) == 2 * len(optimizer.parameters)
        assert not np.any(powers)


def test_without_bias_correction_half_precision_begins_with_its_float32_master() -> None:
    """The state alone: no CPU kernel updates half precision parameters."""
    linear = paddle.nn.Linear(3, 2)
    linear.to(dtype="float16")
    options = OPTIONS.model_copy(update={"bias_correction": False})
    optimizer = AdamW(linear, options, multi_precision=True)
    block = paddle.static.default_main_program().global_block()
    optimizer.inner._create_accumulators(block, linear.parameters())

    state = optimizer.state()

    assert {array.dtype for array in state.values()} == {np.dtype("float32")}
    assert state["weight.beta1_pow"].item() == state["weight.beta2_pow"].item() == 0.0
    np.testing.assert_array_equal(state["weight.master"], linear.weight.numpy())


@pytest.mark.parametrize("corrected", [True, False])
def test_a_restored_optimizer_goes_on_bit_for_bit_in_a_process_that_built_other_models(
    corrected: bool,
) -> None:
    options = OPTIONS.model_copy(update={"bias_correction": corrected})
    straight = small_gpt()
    optimizer = AdamW(straight, options, multi_precision=False)
    for step in (1, 2):
        set_gradients(straight, seed=step)
        optimizer.step(1e-3)
    weights, state = model_tensors(straight), optimizer.state()
    set_gradients(straight, seed=3)
    optimizer.step(1e-3)

    small_gpt(seed=8)  # Paddle's own tensor names are now shifted
    restored = small_gpt(seed=9)
    set_weights(restored, weights, "memory")
    second = AdamW(restored, options, multi_precision=False)
    second.load_state(state)
    set_gradients(restored, seed=3)
    second.step(1e-3)

    expected, expected_state = model_tensors(straight), optimizer.state()
    for name, array in model_tensors(restored).items():
        assert array.tobytes() == expected[name].tobytes(), name
    for name, array in second.state().items():
        assert array.tobytes() == expected_state[name].tobytes(), name


def test_a_missing_state_tensor_is_named() -> None:
    model = small_gpt()
    optimizer = AdamW(model, OPTIONS, multi_precision=False)
    set_gradients(model, seed=1)
    optimizer.step(1e-3)
    state = optimizer.state()
    del state["norm.weight.moment2"]
    with pytest.raises(KeyError, match=r"norm\.weight\.moment2"):
        AdamW(model, OPTIONS, multi_precision=False).load_state(state)


def test_frozen_parameters_are_left_alone() -> None:
    model = small_gpt(ffn={"kind": "dense"})
    model.word_embeddings.weight.stop_gradient = True
    optimizer = AdamW(model, OPTIONS, multi_precision=False)
    assert "word_embeddings.weight" not in optimizer.parameters
    before = model.word_embeddings.weight.numpy()
    set_gradients(model, seed=1)
    optimizer.step(1e-2)
    assert model.word_embeddings.weight.numpy().tobytes() == before.tobytes()


def test_rate_factors_scale_the_updates_of_single_parameters() -> None:
    paddle.seed(3)
    layer = paddle.nn.Linear(4, 4)
    options = OptimizerSection(weight_decay=0.0)
    optimizer = AdamW(layer, options, multi_precision=False)
    moved = []
    for factor in (1.0, 0.25, 0.0, 1.0):
        optimizer.set_rate_factors({"weight": factor})
        before = layer.weight.numpy().copy(), layer.bias.numpy().copy()
        layer(paddle.ones([1, 4])).sum().backward()
        optimizer.step(0.1)
        optimizer.clear_gradients()
        after = layer.weight.numpy(), layer.bias.numpy()
        moved.append([np.abs(now - old).max() for now, old in zip(after, before, strict=True)])
    expected = [[0.1, 0.1], [0.025, 0.1], [0.0, 0.1], [0.1, 0.1]]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_a_rate_factor_of_no_parameter_is_an_error() -> None:
    optimizer = AdamW(paddle.nn.Linear(2, 2), OptimizerSection(), multi_precision=False)
    with pytest.raises(KeyError, match="wieght"):
        optimizer.set_rate_factors({"wieght": 0.5})


@pytest.mark.parametrize("corrected", [True, False])
def test_many_updates_are_those_of_paddles_adamw(corrected: bool) -> None:
    """To the rounding of float32, with rates of their own, missing gradients and clipping."""
    options = OPTIONS.model_copy(update={"bias_correction": corrected})
    models = small_gpt(), small_gpt()
    ours, theirs = (AdamW(model, options, multi_precision=False) for model in models)
    start = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"random gradients of seed {start}")
    for step in range(50):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            set_gradients(model, seed=start + step)
            if step % 3 == 0:
                model.norm.weight.clear_gradient(False)
            optimizer.set_rate_factors({"norm.bias": 1.0 / (1 + step)})
        ours.step(1e-3, gradient_factor=0.25)
        with library.suspended():
            theirs.step(1e-3, gradient_factor=0.25)

    for one, other in [
        (model_tensors(models[0]), model_tensors(models[1])),
        (ours.state(), theirs.state()),
    ]:
        assert one.keys() == other.keys()
        for name, array in one.items():
            # 2e-6 in the worst of 400 inputs: an update magnifies rounding where gradients cancel.
            atol = 1e-5 * float(np.abs(other[name]).max())
            np.testing.assert_allclose(array, other[name], rtol=0, atol=atol, err_msg=name)


def test_the_norm_is_that_of_float64() -> None:
    model = small_gpt()
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"random gradients of seed {seed}")
    gradients = set_gradients(model, seed)
    model.norm.bias.clear_gradient(False)
    expected = sum(
        (array.astype(np.float64) ** 2).sum()
        for name, array in gradients.items()
        if name != "norm.bias"
    )

    assert squared_norm(model.parameters()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_norm_of_gradients_that_are_not_finite_is_not_finite(value: float) -> None:
    model = small_gpt()
    gradients = set_gradients(model, 1)
    gradients["norm.bias"][-1] = value
    model.norm.bias.grad = paddle.to_tensor(gradients["norm.bias"])

    assert not np.isfinite(squared_norm(model.parameters()))


def test_gradients_with_strides_are_minded() -> None:
    layer = paddle.nn.Linear(40, 30)
    weights = np.random.default_rng(3).standard_normal((40, 30)).astype(np.float32)
    options = OptimizerSection(weight_decay=0.0)
    updated = []
    for strided in (False, True):
        layer.weight.set_value(weights)
        gradient = paddle.to_tensor(weights.T.copy()).transpose([1, 0])
        layer.weight.grad = gradient if strided else gradient.contiguous()
        assert squared_norm([layer.weight]) == pytest.approx(float((weights**2).sum()), rel=1e-5)
        AdamW(layer, options, multi_precision=False).step(1e-2)
        updated.append(layer.weight.numpy())

    np.testing.assert_array_equal(*updated)
