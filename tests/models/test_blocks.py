"""What the kinds with block-diagonal factors have in common."""

import json
import math

import numpy as np
import paddle
import pytest
from paddle import nn

from models.ffn import DenseFFN, Shape, approximate, build, cost, find_kind, merge
from models.ffn.blocks import (
    OrthogonalBlocks,
    block_diagonal_matrix,
    check_blocks,
    learning_rate_scale,
    multiply_blocks,
    start_norm,
)
from models.gpt import GPT, GPTConfig

SPECS = {
    "monarch": {"kind": "monarch", "blocks": 4},
    "monarch, uneven": {"kind": "monarch", "blocks": 8},  # 64 does not divide 24
    "block_dense": {"kind": "block_dense", "blocks": 4, "rank": 12},
    "block_diagonal": {"kind": "block_diagonal", "blocks": 4},
}
each_kind = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def small_gpt(spec, **options):
    config = GPTConfig(
        vocab_size=61,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        ffn_hidden_size=96,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        ffn=spec,
        **options,
    )
    return GPT(config)


def randomise(layer, rng):
    for parameter in layer.parameters():
        value = paddle.to_tensor(rng.normal(0, 0.3, parameter.shape))
        parameter.set_value(value.astype(parameter.dtype))


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 5, 8)])
def test_product_is_that_of_the_block_diagonal_matrix(double_precision, rng, shape):
    weight, x = rng.normal(size=(2, 4, 6)), rng.normal(size=shape)
    ours = multiply_blocks(paddle.to_tensor(x), paddle.to_tensor(weight)).numpy()
    by_hand = np.zeros((8, 12))
    by_hand[:4, :6], by_hand[4:, 6:] = weight
    np.testing.assert_array_equal(block_diagonal_matrix(weight), by_hand)
    np.testing.assert_allclose(ours, x @ by_hand, atol=1e-13)


@pytest.mark.parametrize("shape", [[3, 7, 4], [3, 4, 7], [5, 5]])
def test_orthogonal_start_has_equal_singular_values_in_every_block(shape):
    layer = nn.Layer()
    weight = layer.create_parameter(shape, attr=paddle.ParamAttr(initializer=OrthogonalBlocks(0.3)))
    values = np.linalg.svd(weight.numpy().astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(values, 0.3, rtol=1e-5)


def test_orthogonal_start_prefers_no_direction():
    # Uniform orthogonal 2 x 2 blocks: entries average 0, and their squares 1/2.
    paddle.seed(1)
    layer = nn.Layer()
    weight = layer.create_parameter(
        [4000, 2, 2], attr=paddle.ParamAttr(initializer=OrthogonalBlocks(1.0))
    ).numpy()
    np.testing.assert_allclose(weight.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose((weight**2).mean(axis=0), 0.5, atol=0.05)


def test_a_start_exceeds_neither_the_spread_nor_the_norm_of_a_dense_one():
    # At 768 x 3072 the two rules meet at rank 768·3072 / (√768 + √3072)² = 341.3.
    norm = 0.02 * (math.sqrt(768) + math.sqrt(3072))
    assert start_norm(768, 3072, 8, 0.02) == pytest.approx(norm)
    assert start_norm(768, 3072, 341, 0.02) == pytest.approx(norm)
    assert start_norm(768, 3072, 342, 0.02) < norm
    assert start_norm(768, 3072, 768, 0.02) == pytest.approx(0.02 * math.sqrt(3072))


@each_kind
def test_a_step_under_the_spectral_rule_moves_the_product_no_farther_than_a_dense_one(
    double_precision, spec
):
    paddle.seed(2)
    options = {**spec, "lr_rule": "spectral", "lr_cap": 1e9}
    layer = build(options, Shape(24, 96, 0.02)).linear1
    rate, before = 1e-7, layer.dense_weight()
    for name, weight in layer.named_parameters():
        if name == "bias":
            continue
        start = weight.numpy()
        scale = weight.optimize_attr["learning_rate"]
        # All signs alike is the largest step that sign-like updates can make.
        weight.set_value(start + rate * scale)
        moved = np.linalg.norm(layer.dense_weight() - before, 2)
        weight.set_value(start)
        factors = len(list(layer.parameters())) - 1
        assert moved <= rate * math.sqrt(24 * 96) / factors * 1.05


@each_kind
def test_learning_rates_are_the_dense_one_unless_asked(spec):
    layer = build(spec, Shape(24, 96))
    assert {p.optimize_attr["learning_rate"] for p in layer.parameters()} == {1.0}


def test_the_cap_limits_the_rule():
    _, options = find_kind({"kind": "monarch", "lr_rule": "spectral", "lr_cap": 2.5})
    assert learning_rate_scale(options, dense_size=100, size=1, blocks=9) == 2.5


@each_kind
def test_gradients_agree_with_finite_differences(double_precision, rng, spec):
    ffn = build(spec, Shape(24, 96, 0.3))
    randomise(ffn, rng)
    x = paddle.to_tensor(rng.normal(size=(4, 24)), stop_gradient=False)
    weights = paddle.to_tensor(rng.normal(size=(4, 24)))
    (ffn(x) * weights).sum().backward()
    for tensor in (x, *ffn.parameters()):
        direction, kept, values = rng.normal(size=tensor.shape), tensor.numpy().copy(), []
        for step in (1e-6, -1e-6):
            with paddle.no_grad():
                paddle.assign(paddle.to_tensor(kept + step * direction), tensor)
                values.append((ffn(x) * weights).sum().item())
        with paddle.no_grad():
            paddle.assign(paddle.to_tensor(kept), tensor)
        numeric = (values[0] - values[1]) / 2e-6
        analytic = float((tensor.grad.numpy() * direction).sum())
        assert analytic == pytest.approx(numeric, rel=1e-6, abs=1e-7)


@each_kind
def test_merge_keeps_the_function_in_float64(double_precision, rng, spec):
    ffn = build(spec, Shape(24, 96))
    randomise(ffn, rng)
    x = paddle.to_tensor(rng.normal(size=(2, 9, 24)))
    before = ffn(x).numpy()
    merged = ffn.merge()
    assert isinstance(merged, DenseFFN)
    assert isinstance(merged.linear1, nn.Linear)
    assert np.abs(merged(x).numpy() - before).max() <= 1e-12 * max(1.0, np.abs(before).max())


@each_kind
def test_merge_keeps_the_logits_of_a_gpt(rng, spec):
    model = small_gpt(spec)
    model.eval()
    ids = paddle.to_tensor(rng.integers(0, 61, (2, 16)))
    before = model(ids).numpy()
    assert merge(model) == ["layers.0.ffn", "layers.1.ffn"]
    assert np.abs(model(ids).numpy() - before).max() <= 1e-5
    assert [n for n, _ in model.named_parameters()] == [
        n for n, _ in small_gpt({"kind": "dense"}).named_parameters()
    ]


@each_kind
def test_a_gpt_learns_and_its_merged_form_has_the_same_logits(rng, spec):
    paddle.seed(4)
    model = small_gpt(spec, use_recompute=True)
    ids = paddle.to_tensor(rng.integers(0, 61, (2, 16)))
    optimizer = paddle.optimizer.AdamW(3e-3, parameters=model.parameters())
    losses = []
    for _ in range(8):
        logits = model(ids)[:, :-1]
        loss = nn.functional.cross_entropy(logits.reshape([-1, 61]), ids[:, 1:].reshape([-1]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    model.eval()
    trained = model(ids).numpy()
    merge(model)
    assert np.abs(model(ids).numpy() - trained).max() <= 1e-5 * max(1.0, np.abs(trained).max())


@each_kind
def test_recomputation_gives_the_same_gradients(rng, spec):
    ids, gradients = paddle.to_tensor(rng.integers(0, 61, (2, 16))), []
    for use_recompute in (False, True):
        paddle.seed(6)
        model = small_gpt(spec, use_recompute=use_recompute)
        model(ids).square().mean().backward()
        gradients.append([parameter.grad.numpy() for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        np.testing.assert_allclose(recomputed, plain, rtol=1e-5, atol=1e-9)


@each_kind
def test_the_same_seed_gives_the_same_start(spec):
    starts = []
    for _ in range(2):
        paddle.seed(5)
        starts.append([p.numpy() for p in build(spec, Shape(24, 96)).parameters()])
    for first, second in zip(*starts, strict=True):
        np.testing.assert_array_equal(first, second)


@each_kind
def test_a_lazy_layer_takes_its_start_when_asked(spec):
    with paddle.LazyGuard():
        lazy = build(spec, Shape(24, 96))
    paddle.seed(5)
    for parameter in lazy.parameters():
        assert not parameter._is_initialized()
        parameter.initialize()
    paddle.seed(5)
    for ours, usual in zip(lazy.parameters(), build(spec, Shape(24, 96)).parameters(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), usual.numpy())


@each_kind
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_layer_merges_in_its_dtype(spec, dtype):
    ffn = build(spec, Shape(24, 96, 0.2))
    exact = ffn.linear1.dense_weight()
    ffn.to(dtype=dtype)
    merged = ffn.merge()
    assert {str(p.dtype) for p in merged.parameters()} == {f"paddle.{dtype}"}
    weight = merged.linear1.weight.astype("float32").numpy()
    assert np.abs(weight - exact).max() <= 0.02 * np.abs(exact).max()


@each_kind
@pytest.mark.parametrize("shape", [Shape(24, 96), Shape(48, 24)])
def test_cost_in_closed_form_equals_the_built_layer(spec, shape):
    layer, counted = build(spec, shape), cost(spec, shape)
    assert counted.parameters == sum(parameter.size for parameter in layer.parameters())
    weights = [p for name, p in layer.named_parameters() if not name.endswith("bias")]
    # Every entry of a factor is multiplied with one value of each token.
    assert counted.flops_per_token == sum(2 * weight.size for weight in weights)
    between = [p.shape[-1] * (p.shape[0] if len(p.shape) == 3 else 1) for p in weights[:1]]
    lies_between = 2 * between[0] if len(weights) == 4 else 0
    assert counted.kept_per_token == 2 * shape.ffn_hidden_size + lies_between


@each_kind
def test_a_dense_model_can_be_approximated_and_merged_again(rng, spec):
    model = small_gpt({"kind": "dense"})
    model.eval()
    ids = paddle.to_tensor(rng.integers(0, 61, (2, 16)))
    replaced = approximate(model, **spec)
    assert all(0 < error < 1 for item in replaced for error in item.errors)
    before = model(ids).numpy()
    merge(model)
    assert np.abs(model(ids).numpy() - before).max() <= 1e-5
    # What is approximated a second time is of the kind already: nothing is lost.
    again = approximate(model, **spec)
    assert all(error < 1e-6 for item in again for error in item.errors)


@each_kind
def test_linears_without_bias_keep_none(spec):
    model = nn.Sequential(
        nn.Linear(24, 96, bias_attr=False), nn.GELU(), nn.Linear(96, 24, bias_attr=False)
    )
    approximate(model, **spec)
    assert model[0].bias is None
    merge(model)
    assert model[0].bias is None


@pytest.mark.parametrize("kind", ["monarch", "block_dense", "block_diagonal"])
def test_blocks_that_do_not_divide_are_refused_with_those_that_do(kind):
    for call in (build, cost):
        with pytest.raises(
            ValueError, match=r"blocks 5 does not divide all of 24, .*these do: 1, 2, "
        ):
            call({"kind": kind, "blocks": 5}, Shape(24, 96))


def test_numbers_of_blocks_that_fit_are_common_divisors():
    check_blocks(6, 24, 18)
    with pytest.raises(ValueError, match=r"does not divide all of 24, 18; these do: 1, 2, 3, 6$"):
        check_blocks(4, 24, 18)
    with pytest.raises(ValueError, match="blocks 0 does not divide"):
        check_blocks(0, 24, 18)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["monarch", "block_dense", "block_diagonal"])
def test_stage_1_converts_and_stage_2_goes_on_from_it(fastffn, workplace, kind):
    stage_1 = ("pretrain", "-c", "tiny.yaml", "-o", "Engine.max_steps=4")
    done = fastffn(*stage_1, "-o", f"Model.ffn={{kind: {kind}, lr_rule: spectral}}")
    assert done.code == 0, done.err
    merged = fastffn("convert", "--dtype", "float64", "--tolerance", "1e-12", "--json")
    assert merged.code == 0, merged.err
    dense = json.loads(merged.out)["out"]
    done = fastffn(
        *("posttrain", "-c", "tiny.yaml", "--from", dense, "-o", "Model.ffn={kind: dense}"),
        *("-o", "Engine.save_load.output_dir=runs/post", "-o", "Engine.max_steps=2"),
    )
    assert done.code == 0, done.err
    assert (workplace.dir / "runs/post/checkpoints/step-00000002/model.safetensors").is_file()
