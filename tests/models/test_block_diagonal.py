"""Block-diagonal weights: separate feed-forwards, the start, the fit."""

import math

import numpy as np
import paddle
import pytest
from paddle.nn import functional

from models.ffn import DenseFFN, Shape, build, cost
from models.ffn.block_diagonal import BlockDiagonalLinear, BlockDiagonalOptions


def test_the_layer_is_as_many_separate_feed_forwards_as_blocks(double_precision, rng):
    ffn = build({"kind": "block_diagonal", "blocks": 3}, Shape(24, 96, 0.3))
    for parameter in ffn.parameters():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)))
    x = paddle.to_tensor(rng.normal(size=(5, 24)))
    outputs = []
    for block in range(3):
        alone = DenseFFN(Shape(8, 32))
        for linear, whole in ((alone.linear1, ffn.linear1), (alone.linear2, ffn.linear2)):
            columns = linear.weight.shape[1]
            linear.weight.set_value(whole.weight[block])
            linear.bias.set_value(whole.bias[block * columns : (block + 1) * columns])
        outputs.append(alone(x[:, 8 * block : 8 * block + 8]).numpy())
    np.testing.assert_allclose(ffn(x).numpy(), np.concatenate(outputs, axis=1), atol=1e-11)


def test_hidden_units_in_blocks_give_what_the_linears_give_one_by_one(double_precision, rng):
    ffn = build({"kind": "block_diagonal", "blocks": 3}, Shape(24, 96, 0.3))
    for parameter in ffn.parameters():
        parameter.set_value(paddle.to_tensor(rng.normal(size=parameter.shape)))
    x = paddle.to_tensor(rng.normal(size=(2, 5, 24)))
    one_by_one = ffn.linear2(functional.gelu(ffn.linear1(x), approximate=True))
    np.testing.assert_allclose(ffn(x).numpy(), one_by_one.numpy(), atol=1e-11)


@pytest.mark.parametrize(("rows", "columns"), [(128, 512), (512, 128)])
def test_start_has_the_spread_and_the_spectral_norm_of_a_dense_start(rows, columns):
    paddle.seed(3)
    linear = BlockDiagonalLinear(rows, columns, BlockDiagonalOptions(blocks=4), init_std=0.02)
    weight = linear.dense_weight()
    assert math.sqrt((weight**2).mean()) == pytest.approx(0.02, rel=0.02)
    norm = 0.02 * (math.sqrt(rows) + math.sqrt(columns))
    assert np.linalg.norm(weight, 2) == pytest.approx(norm, rel=0.05)


def test_fit_keeps_the_blocks_on_the_diagonal(double_precision, rng):
    target, linear = rng.normal(size=(24, 96)), BlockDiagonalLinear(24, 96, BlockDiagonalOptions())
    linear.fit(target)
    for block in range(4):
        inside = target[6 * block : 6 * block + 6, 24 * block : 24 * block + 24]
        np.testing.assert_array_equal(linear.weight.numpy()[block], inside)


def test_cost_is_a_share_of_the_dense_one():
    assert (
        cost({"kind": "block_diagonal", "blocks": 4}, Shape(768, 3072)).flops_per_token
        == 768 * 3072
    )


def test_learning_rate_rule_is_the_number_of_blocks():
    options = BlockDiagonalOptions(blocks=8, lr_rule="spectral", lr_cap=100.0)
    weight = BlockDiagonalLinear(64, 256, options).weight
    assert weight.optimize_attr["learning_rate"] == pytest.approx(8.0)
