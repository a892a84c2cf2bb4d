"""BlockDense weights: the source's mathematics, the start, the fit."""

import math

import numpy as np
import paddle
import pytest

from models.ffn import Shape, build, cost
from models.ffn.block_dense import BlockDenseLinear, BlockDenseOptions


def random_linear(rows, columns, blocks, rank, rng):
    linear = BlockDenseLinear(rows, columns, BlockDenseOptions(blocks=blocks, rank=rank))
    for parameter in linear.parameters():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)))
    return linear


def test_forward_is_the_mathematics_of_the_source(double_precision, rng):
    linear = random_linear(24, 96, 4, 8, rng)
    x, left, right = rng.normal(size=(3, 5, 24)), linear.left.numpy(), linear.right.numpy()
    narrow = [x[..., 6 * k : 6 * k + 6] @ left[k] for k in range(4)]
    theirs = np.concatenate(narrow, axis=-1) @ right + linear.bias.numpy()
    np.testing.assert_allclose(linear(paddle.to_tensor(x)).numpy(), theirs, atol=1e-11)


@pytest.mark.parametrize(("rows", "columns"), [(128, 512), (512, 128)])
def test_start_at_a_low_rank_has_the_spectral_norm_of_a_dense_start(rows, columns):
    linear = BlockDenseLinear(rows, columns, BlockDenseOptions(blocks=4, rank=16), init_std=0.02)
    values = np.linalg.svd(linear.dense_weight(), compute_uv=False)[:16]
    norm = 0.02 * (math.sqrt(rows) + math.sqrt(columns))
    np.testing.assert_allclose(values, norm, rtol=1e-5)
    dense = np.random.default_rng(0).normal(0, 0.02, (rows, columns))
    assert values[0] == pytest.approx(np.linalg.norm(dense, 2), rel=0.03)


def test_start_at_a_high_rank_has_the_spread_of_a_dense_start():
    linear = BlockDenseLinear(128, 512, BlockDenseOptions(blocks=4, rank=64), init_std=0.02)
    weight = linear.dense_weight()
    assert math.sqrt((weight**2).mean()) == pytest.approx(0.02, rel=1e-5)
    assert np.linalg.norm(weight, 2) < 0.02 * (math.sqrt(128) + math.sqrt(512))


def test_fit_leaves_a_weight_of_its_kind_as_it_is(double_precision, rng):
    weight = random_linear(24, 96, 4, 8, rng).dense_weight()
    other = random_linear(24, 96, 4, 8, rng)
    other.fit(weight)
    np.testing.assert_allclose(other.dense_weight(), weight, atol=1e-6 * np.abs(weight).max())


def test_fit_error_is_the_tail_of_the_singular_values_of_each_block(double_precision, rng):
    target, linear = rng.normal(size=(96, 24)), random_linear(96, 24, 4, 8, rng)
    linear.fit(target)
    blocks = target.reshape(4, 24, 24)
    tail = sum((np.linalg.svd(block, compute_uv=False)[2:] ** 2).sum() for block in blocks)
    assert ((linear.dense_weight() - target) ** 2).sum() == pytest.approx(tail, rel=1e-9)


def test_published_shares_of_the_dense_weights():
    # Wei et al. 2024, GPT-2 small: (b, R) = (2, 512) has 63 %, (2, 256) has 32 % of the dense ones.
    for rank, share in ((512, 0.625), (256, 0.3125)):
        counted = cost({"kind": "block_dense", "blocks": 2, "rank": rank}, Shape(768, 3072))
        assert counted.flops_per_token == share * 4 * 768 * 3072


def test_learning_rate_rule_at_published_sizes():
    options = BlockDenseOptions(blocks=2, rank=256, lr_rule="spectral", lr_cap=100.0)
    linear = BlockDenseLinear(768, 3072, options, init_std=0.02)
    norm = math.sqrt(0.02 * (math.sqrt(768) + math.sqrt(3072)))  # of either factor
    left, right = (p.optimize_attr["learning_rate"] for p in (linear.left, linear.right))
    assert left == pytest.approx(0.5 * 2 * math.sqrt(3072 / 256) / norm)
    assert right == pytest.approx(0.5 * math.sqrt(768 / 256) / norm)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 28, "blocks": 4}, r"rank 28 is outside 1..24 for a 24 x 96 matrix"),
        ({"rank": 0, "blocks": 4}, r"rank 0 is outside 1..24"),
        (
            {"rank": 6, "blocks": 4},
            r"blocks 4 does not divide all of 24, .*6; these do: 1, 2, 3, 6",
        ),
    ],
)
def test_a_rank_that_does_not_fit_is_refused(options, said):
    for call in (build, cost):
        with pytest.raises(ValueError, match=said):
            call({"kind": "block_dense", **options}, Shape(24, 96))
