"""Low-rank factors around few hidden units: start, costs, merge and growth."""

import math

import numpy as np
import paddle
import pytest

from models.ffn import DenseFFN, Shape, build, cost, merge
from models.gpt import count_parameters
from tests.models.test_narrow import (
    narrow_gpt,
    next_token_loss,
    numpy_ffn,
    random_ids,
    randomise,
    train,
)

SHAPE = Shape(hidden_size=24, ffn_hidden_size=96, init_std=0.02)
SPEC = {"kind": "thin", "rank": 3, "width": 10}


def test_forward_is_that_of_factors_around_few_units(double_precision, rng):
    ffn = build(SPEC, SHAPE)
    randomise(ffn, rng)
    x = rng.normal(size=(3, 7, 24))
    (left1, right1, bias1), (left2, right2, bias2) = (
        (linear.left.numpy(), linear.right.numpy(), linear.bias.numpy())
        for linear in (ffn.linear1, ffn.linear2)
    )
    assert left1.shape == right2.T.shape == (24, 3)
    assert right1.shape == left2.T.shape == (3, 10)
    expected = numpy_ffn(x, left1 @ right1, bias1, left2 @ right2, bias2)
    np.testing.assert_allclose(ffn(paddle.to_tensor(x)).numpy(), expected, rtol=0, atol=1e-12)


def test_gradients_agree_with_finite_differences(double_precision, rng):
    ffn = build({**SPEC, "init": "variance"}, Shape(6, 24, 0.3))
    x = paddle.to_tensor(rng.normal(size=(4, 6)), stop_gradient=False)
    readout = paddle.to_tensor(rng.normal(size=(4, 6)))

    def loss():
        return (ffn(x) * readout).sum()

    loss().backward()
    step = 1e-6
    for tensor in (x, *ffn.parameters()):
        kept, direction = tensor.numpy().copy(), rng.normal(size=tensor.shape)
        values = []
        for sign in (1, -1):
            with paddle.no_grad():
                paddle.assign(paddle.to_tensor(kept + sign * step * direction), tensor)
                values.append(loss().item())
        with paddle.no_grad():
            paddle.assign(paddle.to_tensor(kept), tensor)
        slope = (tensor.grad.numpy() * direction).sum()
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-7)


def test_spectral_start_has_the_norms_of_a_narrow_start():
    paddle.seed(3)
    ffn = build({"kind": "thin", "rank": 8, "width": 64}, Shape(128, 512, 0.02))
    norms = [np.linalg.norm(layer.dense_weight(), 2) for layer in (ffn.linear1, ffn.linear2)]
    of_narrow = 0.02 * (math.sqrt(128) + math.sqrt(64))
    assert norms[0] == pytest.approx(of_narrow, rel=0.05)
    assert norms[1] == pytest.approx(of_narrow * math.sqrt(512 / 64), rel=0.05)


def test_variance_start_has_the_entry_spread_of_a_narrow_start():
    paddle.seed(3)
    ffn = build({"kind": "thin", "rank": 32, "width": 256, "init": "variance"}, Shape(256, 1024))
    assert ffn.linear1.dense_weight().std() == pytest.approx(0.02, rel=0.07)
    assert ffn.linear2.dense_weight().std() == pytest.approx(0.04, rel=0.07)


def test_rules_of_learning_rate_and_decay_reach_all_four_factors():
    rules = {"lr_rule": "spectral", "lr_cap": 100.0, "decay_rule": "half"}
    ffn = build({"kind": "thin", "rank": 4, "width": 64, **rules}, Shape(256, 1024))
    factors = [
        factor for layer in (ffn.linear1, ffn.linear2) for factor in (layer.left, layer.right)
    ]
    scales = [factor.optimize_attr["learning_rate"] for factor in factors]
    # ½√(out/R) over the root of the product's spectral norm, see the rule of low_rank
    norm = 0.02 * (math.sqrt(256) + math.sqrt(64))
    roots = [math.sqrt(norm), math.sqrt(norm * 4)]
    expected = [4 / 2 / roots[0], 8 / 2 / roots[0], 8 / 2 / roots[1], 4 / 2 / roots[1]]
    assert scales == pytest.approx(expected)
    assert [s * f.weight_decay_scale for s, f in zip(scales, factors, strict=True)] == [0.5] * 4


@pytest.mark.parametrize(("rank", "width"), [(3, 10), (6, None), (24, 96)])
def test_cost_in_closed_form_equals_the_built_layer(rank, width):
    spec = {"kind": "thin", "rank": rank, "width": width}
    layer, counted = build(spec, SHAPE), cost(spec, SHAPE)
    matrices = [parameter for parameter in layer.parameters() if len(parameter.shape) == 2]
    assert counted.parameters == sum(parameter.size for parameter in layer.parameters())
    assert counted.flops_per_token == sum(2 * matrix.size for matrix in matrices)
    units = layer.linear1.right.shape[1]
    assert counted.kept_per_token == 2 * units + 2 * rank


def test_a_quarter_of_the_width_buys_four_times_the_rank():
    shape = Shape(768, 3072)
    thin = cost({"kind": "thin", "rank": 32, "width": 192}, shape)
    low_rank = cost({"kind": "low_rank", "rank": 8}, shape)
    assert thin.flops_per_token == low_rank.flops_per_token


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 7}, "rank 7 is outside 1..6 for a 24 x 6 matrix"),
        ({"rank": 25, "width": 48}, "rank 25 is outside 1..24"),
        ({"rank": 3, "width": 97}, "width 97 is outside 1..96"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build({"kind": "thin", **options}, SHAPE)


def test_merge_keeps_the_function_in_float64(double_precision, rng):
    ffn = build(SPEC, SHAPE)
    randomise(ffn, rng)
    x = paddle.to_tensor(rng.normal(size=(5, 24)))
    before, merged = ffn(x).numpy(), ffn.merge()
    assert isinstance(merged, DenseFFN)
    assert merged.linear1.weight.shape == [24, 96]
    assert np.abs(merged(x).numpy() - before).max() <= 1e-12 * max(1.0, np.abs(before).max())


def test_growth_completes_the_first_matrix_to_full_rank(rng):
    ffn = build(SPEC, SHAPE)
    randomise(ffn, rng)
    grown = ffn.merge().linear1.weight.numpy()
    assert np.linalg.matrix_rank(grown[:, :10], tol=1e-4) == 3
    assert np.linalg.matrix_rank(grown, tol=1e-4) == 24
    assert grown[:, 10:].std() == pytest.approx(np.sqrt(np.mean(grown[:, :10] ** 2)), rel=0.1)


@pytest.mark.parametrize(("dtype", "precision"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_half_precision_factors_merge_to_half_precision(rng, dtype, precision):
    ffn = build(SPEC, SHAPE)
    randomise(ffn, rng)
    product = ffn.linear1.dense_weight()
    ffn.to(dtype=dtype)
    merged = ffn.merge()
    assert {str(parameter.dtype) for parameter in merged.parameters()} == {f"paddle.{dtype}"}
    half = merged.linear1.weight.astype("float32").numpy()[:, :10]
    assert np.abs(half - product).max() <= precision * 4 * np.abs(product).max()


def test_a_gpt_trains_and_computes_the_same_when_merged(rng):
    model = narrow_gpt(ffn={**SPEC, "layer_ranks": [2, 5]})
    assert model.layers[1].ffn.linear2.left.shape == [10, 5]
    assert sum(parameter.size for parameter in model.parameters()) == count_parameters(model.config)
    ids = random_ids(rng)
    losses = train(model, ids, 12)
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    before, loss = model(ids).numpy(), next_token_loss(model, ids).item()
    assert merge(model) == ["layers.0.ffn", "layers.1.ffn"]
    assert np.abs(model(ids).numpy() - before).max() <= 1e-5
    assert next_token_loss(model, ids).item() == pytest.approx(loss, abs=5e-6)
    model.train()
    assert train(model, ids, 12)[-1] < loss


def test_it_is_built_without_values_under_lazy_guard():
    with paddle.LazyGuard():
        model = narrow_gpt(ffn={**SPEC, "init": "normal"})
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes["layers.1.ffn.linear1.right"] == [3, 10]
