"""Factors with an activation between them: mathematics, start, costs, and no dense form."""

import numpy as np
import paddle
import pytest

from models.ffn import (
    LowRankActivationFFN,
    NotMergeable,
    Shape,
    approximate,
    build,
    cost,
    merge,
)
from models.ffn.low_rank_activation import LowRankActivationLinear, LowRankActivationOptions
from models.gpt import GPT
from tests.models.ffn_checks import assert_gradients, kept_per_token, small_gpt_config, train_losses

SHAPE = Shape(hidden_size=24, ffn_hidden_size=96)
KIND = "low_rank_activation"


def reference(x, layer, *, outer):
    """The paper's layers in float64 numpy, tanh GELU between the two."""

    def encode(x, linear):
        z = x @ linear.left.numpy()
        return z / (1 + np.exp(-z)) @ linear.right.numpy() + linear.bias.numpy()

    h = encode(x, layer.linear1)
    if outer:
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return encode(h, layer.linear2)


@pytest.mark.parametrize("outer", [True, False])
def test_forward_is_the_published_mathematics(double_precision, rng, outer):
    layer = LowRankActivationFFN(SHAPE, LowRankActivationOptions(rank=5, outer_activation=outer))
    for parameter in layer.parameters():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)))
    x = rng.normal(size=(3, 7, 24))
    ours = layer(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(ours, reference(x, layer, outer=outer), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("outer", [True, False])
def test_gradients_agree_with_finite_differences(double_precision, rng, outer):
    layer = build({"kind": KIND, "rank": 3, "outer_activation": outer}, Shape(6, 24))
    x = paddle.to_tensor(rng.normal(size=(4, 6)), stop_gradient=False)
    weights = paddle.to_tensor(rng.normal(size=(4, 6)))
    assert_gradients(lambda: (layer(x) * weights).sum(), (x, *layer.parameters()), rng)


@pytest.mark.parametrize(("inside", "outside", "rank"), [(256, 1024, 64), (1024, 256, 64)])
def test_factors_start_with_the_published_spread(inside, outside, rank):
    paddle.seed(3)
    linear = LowRankActivationLinear(inside, outside, rank)
    left, right = linear.left.numpy().astype(float), linear.right.numpy().astype(float)
    expected = rank**-0.25 * (inside + outside) ** -0.25
    assert left.std() == pytest.approx(expected, rel=0.02)
    assert right.std() == pytest.approx(expected, rel=0.02)
    assert (left @ right).std() == pytest.approx((inside + outside) ** -0.5, rel=0.05)
    assert not linear.bias.numpy().any()


@pytest.mark.parametrize("outer", [True, False])
def test_cost_in_closed_form_equals_the_built_layer(outer):
    spec = {"kind": KIND, "rank": 7, "outer_activation": outer}
    layer, counted = build(spec, SHAPE), cost(spec, SHAPE)
    assert counted.parameters == sum(parameter.size for parameter in layer.parameters())
    matrices = [parameter for parameter in layer.parameters() if len(parameter.shape) == 2]
    assert counted.flops_per_token == sum(2 * parameter.size for parameter in matrices)
    x = paddle.randn([64, 24])
    x.stop_gradient = False
    assert counted.kept_per_token == kept_per_token(layer, x)


def test_costs_of_the_published_rank_are_those_of_plain_factors():
    shape = Shape(512, 2048)
    ours, plain = (
        cost({"kind": KIND, "rank": 128}, shape),
        cost({"kind": "low_rank", "rank": 128}, shape),
    )
    assert (ours.parameters, ours.flops_per_token) == (plain.parameters, plain.flops_per_token)


def test_a_rank_above_the_matrix_is_a_wider_auto_encoder_and_one_below_1_is_refused():
    assert LowRankActivationLinear(4, 8, 16).left.shape == [4, 16]
    with pytest.raises(ValueError, match="rank 0 is below 1"):
        LowRankActivationLinear(4, 8, 0)


def test_merging_says_why_it_cannot_and_changes_nothing():
    model = GPT(small_gpt_config({"kind": KIND, "rank": 4}))
    with pytest.raises(NotMergeable, match="an activation \\(SiLU\\)"):
        merge(model)
    assert isinstance(model.layers[0].ffn, LowRankActivationFFN)
    assert model.config.ffn["kind"] == KIND


def test_a_trained_dense_model_cannot_be_approximated_so():
    with pytest.raises(TypeError, match="cannot be approximated by kind 'low_rank_activation'"):
        approximate(GPT(small_gpt_config({"kind": "dense"})), kind=KIND)


def test_a_gpt_trains():
    losses = train_losses({"kind": KIND, "rank": 6})
    assert losses[-1] < losses[0] - 0.1


def test_built_without_values_it_has_the_same_parameters():
    spec = {"kind": KIND, "rank": 4}
    with paddle.LazyGuard():
        hollow = build(spec, SHAPE)
    shapes = [(name, parameter.shape) for name, parameter in hollow.named_parameters()]
    assert shapes == [(name, p.shape) for name, p in build(spec, SHAPE).named_parameters()]
    assert not any(parameter._is_initialized() for parameter in hollow.parameters())


def test_gradients_are_finite_where_the_activation_has_vanished(rng):
    """`functional.silu` of Paddle 3.3 has a gradient of NaN far below zero, `swish` has not."""
    linear = LowRankActivationLinear(4, 6, rank=3)
    x = paddle.to_tensor(-1e5 * np.abs(rng.normal(size=(5, 4))).astype("float32"))
    linear.left.set_value(paddle.ones([4, 3]))

    linear(x).sum().backward()

    assert bool(paddle.isfinite(linear.left.grad).all())
