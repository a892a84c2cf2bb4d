"""Low-rank feed-forwards: initialisation, learning rate rule, costs, gradients."""

import math

import numpy as np
import paddle
import pytest

from models.ffn import LowRankFFN, LowRankLinear, Shape, build, cost, find_kind
from models.ffn.low_rank import LowRankOptions, learning_rate_scales, truncated_svd
from tests.models.ffn_checks import assert_gradients, unaccounted_per_token

SHAPE = Shape(hidden_size=24, ffn_hidden_size=96, init_std=0.02)


def relu_free_ffn(x, ffn):
    """The original's stage-1 mathematics in float64 numpy, tanh GELU."""
    a1, b1, bias1 = (p.numpy() for p in (ffn.linear1.left, ffn.linear1.right, ffn.linear1.bias))
    a2, b2, bias2 = (p.numpy() for p in (ffn.linear2.left, ffn.linear2.right, ffn.linear2.bias))
    u = x @ a1 @ b1 + bias1
    g = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return g @ a2 @ b2 + bias2


def test_forward_is_the_original_mathematics(double_precision, rng):
    ffn = LowRankFFN(SHAPE, LowRankOptions(rank=5))
    for parameter in ffn.parameters():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)))
    x = rng.normal(size=(3, 7, 24))
    ours = ffn(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(ours, relu_free_ffn(x, ffn), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "spec", [{"kind": "dense"}, {"kind": "low_rank", "rank": 3, "init": "variance"}]
)
def test_gradients_agree_with_finite_differences(double_precision, rng, spec):
    ffn = build(spec, Shape(6, 24, 0.3))
    x = paddle.to_tensor(rng.normal(size=(4, 6)), stop_gradient=False)
    weights = paddle.to_tensor(rng.normal(size=(4, 6)))

    def loss():
        return (ffn(x) * weights).sum()

    assert_gradients(loss, (x, *ffn.parameters()), rng)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(24, 96, 8), (96, 24, 8), (24, 24, 24)])
def test_truncated_svd_is_the_best_fit(rng, rows, columns, rank):
    weight = rng.normal(size=(rows, columns))
    left, right = truncated_svd(weight, rank)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    np.testing.assert_allclose(left @ right, best, atol=1e-9)
    # Both factors carry the root of the singular values.
    np.testing.assert_allclose(left.T @ left, right @ right.T, atol=1e-9)


def test_truncated_svd_survives_a_matrix_of_lower_rank():
    left, right = truncated_svd(np.zeros((6, 8)), 3)
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()
    np.testing.assert_array_equal(left @ right, np.zeros((6, 8)))


def test_spectral_start_has_the_spectral_norm_of_a_dense_start():
    paddle.seed(3)
    linear = LowRankLinear(128, 512, LowRankOptions(rank=8), init_std=0.02)
    norm = np.linalg.norm(linear.dense_weight(), ord=2)
    assert norm == pytest.approx(0.02 * (math.sqrt(128) + math.sqrt(512)), rel=0.05)


def test_variance_start_has_the_entry_spread_of_a_dense_start():
    paddle.seed(3)
    linear = LowRankLinear(256, 1024, LowRankOptions(rank=64, init="variance"), init_std=0.02)
    assert linear.dense_weight().std() == pytest.approx(0.02, rel=0.05)


def test_normal_start_draws_each_factor_like_the_original():
    paddle.seed(3)
    linear = LowRankLinear(256, 1024, LowRankOptions(rank=64, init="normal"), init_std=0.02)
    assert linear.left.numpy().std() == pytest.approx(0.02, rel=0.05)
    assert linear.right.numpy().std() == pytest.approx(0.02, rel=0.05)
    assert not linear.bias.numpy().any()


def test_learning_rate_rule_gives_the_published_example():
    # reference equation at d=768, 4d=3072, rank 8, spectral norm 0.02 (√768 + √3072) = 1.66
    norm = 0.02 * (math.sqrt(768) + math.sqrt(3072))
    options = LowRankOptions(rank=8, lr_rule="spectral", lr_cap=100.0)
    left, right = learning_rate_scales(768, 3072, 0.02, options)
    assert left == pytest.approx(math.sqrt(768 / 8) / math.sqrt(norm))
    assert right == pytest.approx(0.5 * math.sqrt(768 / 8) / math.sqrt(norm))
    # The down matrix swaps the two.
    assert learning_rate_scales(3072, 768, 0.02, options) == pytest.approx((right, left))


def test_learning_rate_rule_makes_a_sign_step_as_large_as_a_dense_one():
    paddle.seed(5)
    options = LowRankOptions(rank=8, lr_rule="spectral", lr_cap=100.0)
    linear = LowRankLinear(128, 512, options, init_std=0.02)
    rate = 1e-6
    left, right = linear.left.numpy().astype(float), linear.right.numpy().astype(float)
    scale_left = linear.left.optimize_attr["learning_rate"]
    scale_right = linear.right.optimize_attr["learning_rate"]
    # The bound that the rule uses is met by updates aligned with the factors' top directions.
    u, _, vt = np.linalg.svd(right, full_matrices=False)
    moved_left = np.outer(np.sign(np.ones(128)), np.sign(u[:, 0])) * rate * scale_left
    moved = np.linalg.norm(moved_left @ right, 2)
    dense = rate * math.sqrt(128 * 512)
    assert moved <= 0.5 * dense * 1.1
    assert scale_left > 1
    assert scale_right > 1
    assert left.shape == (128, 8)
    assert vt.shape == (8, 512)


def test_cap_limits_the_learning_rate_rule():
    options = LowRankOptions(rank=1, lr_rule="spectral", lr_cap=2.5)
    assert learning_rate_scales(768, 3072, 0.001, options) == (2.5, 2.5)


def test_half_decay_shrinks_the_product_like_a_dense_weight():
    linear = LowRankLinear(
        32, 64, LowRankOptions(rank=4, lr_rule="spectral", decay_rule="half"), init_std=0.02
    )
    shares = [
        parameter.optimize_attr["learning_rate"] * parameter.weight_decay_scale
        for parameter in (linear.left, linear.right)
    ]
    assert shares == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("spec", [{"kind": "dense"}, {"kind": "low_rank", "rank": 8}])
def test_cost_in_closed_form_equals_the_built_layer(spec):
    layer = build(spec, SHAPE)
    counted = cost(spec, SHAPE)
    assert counted.parameters == sum(parameter.size for parameter in layer.parameters())
    matrices = [p for p in layer.parameters() if len(p.shape) == 2]
    assert counted.flops_per_token == sum(2 * p.size for p in matrices)
    x = paddle.randn([64, 24])
    x.stop_gradient = False
    assert unaccounted_per_token(layer, counted, x) == [0, 0]


def test_published_parameter_counts_of_the_original():
    shape = Shape(768, 3072)
    assert cost({"kind": "low_rank", "rank": 8}, shape).parameters == 65_280
    assert cost({"kind": "dense"}, shape).parameters == 4_722_432


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "lowrank"}, "unknown feed-forward kind 'lowrank'; there are dense, low_rank"),
        ({"kind": "dense", "rank": 8}, "options of feed-forward kind 'dense': none"),
    ],
)
def test_wrong_spec_is_refused_with_the_choices(spec, said):
    with pytest.raises(ValueError, match=said):
        find_kind(spec)


@pytest.mark.parametrize("rank", [0, 25])
def test_rank_outside_the_matrix_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank {rank} is outside 1..24"):
        LowRankLinear(24, 96, LowRankOptions(rank=rank))
