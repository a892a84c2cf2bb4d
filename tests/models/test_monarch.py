"""Monarch weights: the source's mathematics, the start, the projection."""

import math

import numpy as np
import paddle
import pytest

from models.ffn import Shape, cost
from models.ffn.monarch import MonarchLinear, MonarchOptions

# in, out, blocks: even grids, grids that b² does not divide, pairs of blocks without a link.
SIZES = [(32, 128, 4), (128, 32, 4), (24, 96, 4), (96, 24, 6), (8, 32, 8), (32, 32, 1)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def random_linear(size, rng):
    rows, columns, blocks = size
    linear = MonarchLinear(rows, columns, MonarchOptions(blocks=blocks))
    for parameter in linear.parameters():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)))
    return linear


def block_shuffle(x, blkdiag1, blkdiag2):
    """The einsum form of StructuredFFN's BlockShuffle; its blocks are [out, in]."""
    (k, _, p), (l, s, r) = blkdiag1.shape, blkdiag2.shape  # noqa: E741
    out1 = np.einsum("kqp,bkp->bkq", blkdiag1, x.reshape(-1, k, p))
    out1 = out1.reshape(-1, r, l).transpose(0, 2, 1)  # b (r l) -> b l r
    return np.einsum("lsr,blr->bsl", blkdiag2, out1).reshape(-1, s * l)


@each_size
def test_forward_is_the_mathematics_of_block_shuffle(double_precision, rng, size):
    linear = random_linear(size, rng)
    x = rng.normal(size=(5, size[0]))
    theirs = block_shuffle(
        x, linear.left.numpy().transpose(0, 2, 1), linear.right.numpy().transpose(0, 2, 1)
    )
    ours = linear(paddle.to_tensor(x)).numpy() - linear.bias.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-11 * np.abs(theirs).max())


@each_size
def test_dense_weight_is_the_product_with_permutation_matrices(double_precision, rng, size):
    linear = random_linear(size, rng)
    rows, columns, b = size

    def block_diagonal(blocks):
        _, height, width = blocks.shape
        matrix = np.zeros((b * height, b * width))
        for index, block in enumerate(blocks):
            matrix[index * height :, index * width :][:height, :width] = block
        return matrix

    def shuffle(length):
        """Row m has its 1 in column (m mod b)·length/b + m // b: the transposed grid."""
        m = np.arange(length)
        matrix = np.zeros((length, length))
        matrix[m, m % b * (length // b) + m // b] = 1
        return matrix

    between = shuffle(min(rows, columns))
    product = block_diagonal(linear.left.numpy()) @ between
    product = product @ block_diagonal(linear.right.numpy()) @ shuffle(columns).T
    np.testing.assert_allclose(linear.dense_weight(), product, atol=1e-12 * np.abs(product).max())


@each_size
def test_start_has_the_spread_of_a_dense_start_in_equal_singular_values(size):
    paddle.seed(3)
    rows, columns, blocks = size
    linear = MonarchLinear(rows, columns, MonarchOptions(blocks=blocks), init_std=0.02)
    weight = linear.dense_weight()
    assert math.sqrt((weight**2).mean()) == pytest.approx(0.02, rel=1e-5)
    values = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(values, 0.02 * math.sqrt(max(rows, columns)), rtol=1e-5)
    assert values[0] < 0.02 * (math.sqrt(rows) + math.sqrt(columns))


def test_an_output_depends_on_every_input():
    linear = MonarchLinear(32, 128, MonarchOptions(blocks=4))
    assert (linear.dense_weight() != 0).all()


def test_rank_between_two_blocks_is_the_width_over_the_blocks_squared(double_precision, rng):
    weight = random_linear((32, 128, 4), rng).dense_weight()
    for source in range(4):
        for target in range(4):
            part = weight[source * 8 : source * 8 + 8, target::4]
            assert np.linalg.matrix_rank(part) == 32 // 4**2


@each_size
def test_projection_leaves_a_monarch_weight_as_it_is(double_precision, rng, size):
    weight = random_linear(size, rng).dense_weight()
    other = random_linear(size, rng)
    other.fit(weight)
    np.testing.assert_allclose(other.dense_weight(), weight, atol=1e-6 * np.abs(weight).max())


@each_size
def test_projection_cannot_be_improved_by_moving_a_factor(double_precision, rng, size):
    rows, columns, _ = size
    target, linear = rng.normal(size=(rows, columns)), random_linear(size, rng)
    linear.bias.set_value(paddle.zeros_like(linear.bias))
    linear.fit(target)
    best = np.linalg.norm(linear.dense_weight() - target)
    error = linear(paddle.eye(rows, dtype="float64")) - paddle.to_tensor(target)
    (error**2).sum().backward()
    for factor in (linear.left, linear.right):
        assert np.abs(factor.grad.numpy()).max() <= 1e-7 * np.abs(target).sum()
    # Other stationary points are farther away: alternating least squares does not get below.
    linear.left.set_value(paddle.to_tensor(rng.normal(size=linear.left.shape)))
    assert np.linalg.norm(linear.dense_weight() - target) > best


def test_projection_error_is_the_tail_of_the_singular_values(double_precision, rng):
    target, linear = rng.normal(size=(32, 128)), random_linear((32, 128, 4), rng)
    linear.fit(target)
    tail = 0.0
    for source in range(4):
        for out in range(4):
            part = target[source * 8 : source * 8 + 8, out::4]
            tail += (np.linalg.svd(part, compute_uv=False)[2:] ** 2).sum()
    assert ((linear.dense_weight() - target) ** 2).sum() == pytest.approx(tail, rel=1e-9)


def test_one_block_can_be_any_matrix(double_precision, rng):
    target, linear = rng.normal(size=(32, 128)), random_linear((32, 128, 1), rng)
    linear.fit(target)
    np.testing.assert_allclose(linear.dense_weight(), target, atol=1e-8)


@pytest.mark.parametrize(("blocks", "share"), [(2, 0.625), (4, 0.3125)])
def test_published_shares_of_the_dense_weights(blocks, share):
    # Wei et al. 2024: 63 % with two blocks, 32 % with four, at F = 4D.
    counted = cost({"kind": "monarch", "blocks": blocks}, Shape(768, 3072))
    assert counted.flops_per_token == share * 4 * 768 * 3072
    assert counted.flops_per_token == 20 * 768**2 // blocks


def test_learning_rate_rule_at_published_sizes():
    options = MonarchOptions(blocks=4, lr_rule="spectral", lr_cap=100.0)
    linear = MonarchLinear(768, 3072, options, init_std=0.02)
    norm = math.sqrt(0.02 * math.sqrt(3072))  # of either factor
    # ½·b·√(out/h)/‖right‖ and ½·b·√(in/h)/‖left‖
    assert linear.left.optimize_attr["learning_rate"] == pytest.approx(0.5 * 4 * 2 / norm)
    assert linear.right.optimize_attr["learning_rate"] == pytest.approx(0.5 * 4 / norm)
