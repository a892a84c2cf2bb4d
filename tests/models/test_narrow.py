"""Few hidden units that grow: start, costs, growth without a change, what learns afterwards."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import load_file

from models.ffn import DenseFFN, NarrowFFN, Shape, build, cost, grow, merge
from models.gpt import GPT, GPTConfig, count_parameters

SHAPE = Shape(hidden_size=24, ffn_hidden_size=96, init_std=0.02)


def narrow_gpt(seed=3, **changes):
    sizes = {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_layers": 2,
        "num_attention_heads": 3,
        "ffn_hidden_size": 96,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "ffn": {"kind": "narrow"},
    }
    paddle.seed(seed)
    return GPT(GPTConfig(**(sizes | changes)))


def randomise(layer, rng, spread=0.3):
    for parameter in layer.parameters():
        values = rng.normal(0, spread, parameter.shape)
        parameter.set_value(paddle.to_tensor(values).astype(parameter.dtype))


def random_ids(rng, rows=4):
    return paddle.to_tensor(rng.integers(0, 61, (rows, 16)))


def next_token_loss(model, ids):
    logits = model(ids[:, :-1])
    return nn.functional.cross_entropy(logits.reshape([-1, 61]), ids[:, 1:].reshape([-1]))


def train(model, ids, steps, rate=1e-2):
    optimizer = paddle.optimizer.AdamW(rate, parameters=model.parameters())
    losses = []
    for _ in range(steps):
        loss = next_token_loss(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    return losses


def numpy_ffn(x, weight1, bias1, weight2, bias2):
    u = x @ weight1 + bias1
    g = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return g @ weight2 + bias2


def test_forward_is_that_of_a_dense_layer_with_fewer_units(double_precision, rng):
    ffn = build({"kind": "narrow", "width": 5}, SHAPE)
    randomise(ffn, rng)
    x = rng.normal(size=(3, 7, 24))
    weights = [
        parameter.numpy()
        for linear in (ffn.linear1, ffn.linear2)
        for parameter in (linear.weight, linear.bias)
    ]
    np.testing.assert_allclose(
        ffn(paddle.to_tensor(x)).numpy(), numpy_ffn(x, *weights), rtol=0, atol=1e-12
    )


def test_start_gives_an_output_as_large_as_a_dense_start(rng):
    paddle.seed(3)
    shape = Shape(256, 1024, init_std=0.02)
    x = paddle.to_tensor(rng.normal(size=(64, 256)).astype("float32"))
    dense, narrow = (build(spec, shape) for spec in ({"kind": "dense"}, {"kind": "narrow"}))
    assert narrow.linear1.weight.shape == [256, 64]
    assert narrow.linear1.weight.numpy().std() == pytest.approx(0.02, rel=0.03)
    assert narrow.linear2.weight.numpy().std() == pytest.approx(0.02 * 4, rel=0.03)
    assert not narrow.linear1.bias.numpy().any()
    assert narrow(x).numpy().std() == pytest.approx(dense(x).numpy().std(), rel=0.15)


@pytest.mark.parametrize("width", [None, 1, 17, 96])
def test_cost_in_closed_form_equals_the_built_layer(width):
    spec = {"kind": "narrow", "width": width}
    layer, counted = build(spec, SHAPE), cost(spec, SHAPE)
    matrices = [parameter for parameter in layer.parameters() if len(parameter.shape) == 2]
    assert counted.parameters == sum(parameter.size for parameter in layer.parameters())
    assert counted.flops_per_token == sum(2 * matrix.size for matrix in matrices)
    assert counted.kept_per_token == 2 * layer.linear1.weight.shape[1]


def test_forty_units_cost_what_factors_of_rank_eight_cost():
    shape = Shape(768, 3072)
    narrow = cost({"kind": "narrow", "width": 40}, shape)
    low_rank = cost({"kind": "low_rank", "rank": 8}, shape)
    assert narrow.flops_per_token == low_rank.flops_per_token


@pytest.mark.parametrize(
    ("shape", "width"), [(Shape(24, 96), 6), (Shape(3, 12), 1), (Shape(64, 8), 8)]
)
def test_blank_width_is_a_quarter_of_the_hidden_size_within_reason(shape, width):
    assert build({"kind": "narrow"}, shape).linear1.weight.shape[1] == width


@pytest.mark.parametrize("width", [0, 97])
def test_a_width_to_which_nothing_can_grow_is_refused(width):
    for attempt in (build, cost):
        with pytest.raises(ValueError, match=f"width {width} is outside 1..96"):
            attempt({"kind": "narrow", "width": width}, SHAPE)


@pytest.mark.parametrize("width", [1, 17, 96])
def test_merge_keeps_the_function_in_float64(double_precision, rng, width):
    ffn = build({"kind": "narrow", "width": width}, SHAPE)
    randomise(ffn, rng)
    x = paddle.to_tensor(rng.normal(size=(5, 24)))
    before, merged = ffn(x).numpy(), ffn.merge()
    assert isinstance(merged, DenseFFN)
    assert merged.linear1.weight.shape == [24, 96]
    assert merged.linear2.weight.shape == [96, 24]
    assert np.abs(merged(x).numpy() - before).max() <= 1e-12 * max(1.0, np.abs(before).max())


def test_growth_adds_random_units_of_the_old_size_that_nothing_reads(rng):
    ffn = build({"kind": "narrow", "width": 64}, Shape(128, 512))
    randomise(ffn, rng, spread=0.7)
    grown = ffn.merge()
    for name in ("weight", "bias"):
        old, new = (getattr(layer.linear1, name).numpy() for layer in (ffn, grown))
        np.testing.assert_array_equal(new[..., :64], old)
    np.testing.assert_array_equal(grown.linear2.weight.numpy()[:64], ffn.linear2.weight.numpy())
    np.testing.assert_array_equal(grown.linear2.bias.numpy(), ffn.linear2.bias.numpy())
    fresh = grown.linear1.weight.numpy()[:, 64:]
    assert fresh.std() == pytest.approx(0.7, rel=0.03)
    assert not grown.linear1.bias.numpy()[64:].any()
    assert not grown.linear2.weight.numpy()[64:].any()
    x = rng.normal(size=(256, 128))
    sizes = [np.sqrt(np.mean((x @ part) ** 2)) for part in (ffn.linear1.weight.numpy(), fresh)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_growth_is_drawn_from_paddles_generator_alike_in_every_precision(rng):
    grown = {}
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        ffn = build({"kind": "narrow", "width": 8}, SHAPE)
        for parameter in ffn.parameters():
            parameter.set_value(paddle.full(parameter.shape, 0.25))
        ffn.to(dtype=dtype)
        paddle.seed(11)
        merged = ffn.merge()
        assert {str(p.dtype) for p in merged.parameters()} == {f"paddle.{dtype}"}
        grown[dtype] = merged.linear1.weight.astype("float64").numpy()
    for dtype, precision in (("float64", 1e-7), ("float16", 1e-3), ("bfloat16", 1e-2)):
        np.testing.assert_allclose(grown[dtype], grown["float32"], rtol=precision)
    again = NarrowFFN.merge(ffn).linear1.weight.astype("float64").numpy()
    assert (again[:, 8:] != grown["bfloat16"][:, 8:]).mean() > 0.9


def test_a_model_in_float64_grows_the_units_of_its_float32_form(rng, double_precision):
    values = rng.normal(size=(24, 8)).astype("float32")
    grown = []
    for dtype in ("float64", "float32"):
        paddle.set_default_dtype(dtype)
        pair = nn.Linear(24, 8), nn.Linear(8, 24)
        pair[0].weight.set_value(values.astype(dtype))
        paddle.seed(11)
        grown.append(grow(*pair, 96).linear1.weight.numpy())
    np.testing.assert_allclose(grown[0], grown[1], rtol=1e-6)


def test_a_pair_without_biases_grows_and_keeps_none(rng):
    pair = [nn.Linear(24, 8, bias_attr=False), nn.Linear(8, 24, bias_attr=False)]
    grown = grow(*pair, 96)
    assert grown.linear1.bias is None
    assert grown.linear2.bias is None
    with pytest.raises(ValueError, match="8 hidden units cannot grow to 7"):
        grow(*pair, 7)


def test_new_units_learn_from_the_first_step_and_their_inputs_from_the_second(rng):
    model = narrow_gpt()
    ids = random_ids(rng)
    train(model, ids, 3)
    merge(model)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    inputs, outputs = [], []  # gradients of the 90 new units' weights
    for _ in range(2):
        next_token_loss(model, ids).backward()
        inputs.append(model.layers[0].ffn.linear1.weight.grad.numpy()[:, 6:])
        outputs.append(model.layers[0].ffn.linear2.weight.grad.numpy()[6:])
        optimizer.step()
        optimizer.clear_grad()
    assert not inputs[0].any()
    assert (np.abs(outputs[0]).max(axis=1) > 0).all()
    assert (np.abs(inputs[1]).max(axis=0) > 0).all()


def test_a_gpt_trains_and_computes_the_same_when_grown(rng):
    model = narrow_gpt()
    ids = random_ids(rng)
    losses = train(model, ids, 12)
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    before, loss = model(ids).numpy(), next_token_loss(model, ids).item()
    assert merge(model) == ["layers.0.ffn", "layers.1.ffn"]
    assert np.abs(model(ids).numpy() - before).max() <= 1e-5
    assert next_token_loss(model, ids).item() == pytest.approx(loss, abs=5e-6)
    dense = narrow_gpt(ffn={"kind": "dense"})
    shapes = [(name, parameter.shape) for name, parameter in dense.named_parameters()]
    assert [(name, parameter.shape) for name, parameter in model.named_parameters()] == shapes
    model.train()
    assert train(model, ids, 12)[-1] < loss


def test_layers_that_stay_dense_are_left_alone_by_the_growth(rng):
    model = narrow_gpt(ffn={"kind": "narrow", "width": 4, "dense_layers": [0]})
    assert sum(parameter.size for parameter in model.parameters()) == count_parameters(model.config)
    kept = model.layers[0].ffn
    assert merge(model) == ["layers.1.ffn"]
    assert model.layers[0].ffn is kept


def test_recompute_gives_the_same_gradients(rng):
    ids = random_ids(rng)
    gradients = []
    for use_recompute in (False, True):
        model = narrow_gpt(use_recompute=use_recompute)
        model.train()
        next_token_loss(model, ids).backward()
        gradients.append([parameter.grad.numpy() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        np.testing.assert_allclose(recomputed, plain, rtol=0, atol=1e-6)


def test_it_is_built_without_values_under_lazy_guard():
    with paddle.LazyGuard():
        model = narrow_gpt()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes["layers.1.ffn.linear1.weight"] == [24, 6]
    assert shapes["layers.1.ffn.linear2.weight"] == [6, 24]


@pytest.mark.parametrize(
    "spec", ["{kind: narrow, width: 8}", "{kind: thin, width: 16, rank: 4, lr_rule: spectral}"]
)
def test_stage_2_goes_on_from_the_grown_model(fastffn, workplace, spec):
    options = ("-c", "tiny.yaml", "-o", "Engine.max_steps=2")
    trained = fastffn("pretrain", *options, "-o", f"Model.ffn={spec}")
    assert trained.code == 0, trained.err

    # The new units are the same, whatever was drawn before in the process.
    for out in ("grown", "again"):
        converted = fastffn("convert", "--out", out)
        assert converted.code == 0, converted.err
        assert "ok (tolerance 0.0001)" in converted.err
        paddle.seed(5)
    first, second = (load_file(f"{name}/model.safetensors") for name in ("grown", "again"))
    assert first["layers.0.ffn.linear1.weight"].shape == (32, 128)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)

    resumed = fastffn(
        *("posttrain", *options, "-o", "Model.ffn={kind: dense}", "--from", "grown"),
        *("-o", "Engine.save_load.output_dir=runs/post"),
    )
    assert resumed.code == 0, resumed.err
    after = load_file("runs/post/checkpoints/step-00000002/model.safetensors")
    moved = after["layers.0.ffn.linear2.weight"] - first["layers.0.ffn.linear2.weight"]
    assert np.abs(moved[16:]).max() > 0
