"""Rows of a table and their gradient, alone and beside the head's."""

import copy

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional

from models.kernels.lookup import look_up

TOLERANCE = 1e-6  # of the largest value: sums in another order


def make_table(rng, vocabulary=50, width=6):
    table = paddle.create_parameter([vocabulary, width], "float32")
    table.set_value(rng.standard_normal((vocabulary, width)).astype("float32"))
    return table


def differentiate(find, table, batches, head):
    """The table's gradient after several backward passes."""
    table.clear_gradient(False)
    for ids in batches:
        x = find(ids, table)
        loss = (x**3).sum()
        if head:
            loss = loss + paddle.matmul(paddle.tanh(x), table, transpose_y=True).square().sum()
        loss.backward()
    assert table.grad.is_dense()
    return table.grad.numpy()


@pytest.mark.parametrize("head", [True, False], ids=["with the head", "alone"])
def test_the_gradient_is_that_of_a_dense_lookup(rng, head):
    table = make_table(rng)
    batches = [paddle.to_tensor(rng.integers(0, 50, (3, 40))) for _ in range(3)]  # ids come twice
    gradient = differentiate(look_up, table, batches, head)
    expected = differentiate(functional.embedding, table, batches, head)
    assert np.abs(gradient - expected).max() < TOLERANCE * np.abs(expected).max()


def test_a_copy_of_a_table_has_a_whole_gradient_as_well(rng):
    table = make_table(rng)
    ids = paddle.to_tensor(rng.integers(0, 50, (2, 5)))
    expected = differentiate(look_up, table, [ids], head=False)
    copied = copy.deepcopy(table)
    assert np.array_equal(differentiate(look_up, copied, [ids], head=False), expected)


def test_the_gradient_is_the_same_to_the_bit_each_time(rng):
    table = make_table(rng)
    ids = paddle.to_tensor(rng.integers(0, 50, (8, 40)))
    first = differentiate(look_up, table, [ids], head=True)
    assert np.array_equal(differentiate(look_up, table, [ids], head=True), first)


def test_the_rows_are_those_asked_for(rng):
    table = make_table(rng)
    ids = rng.integers(0, 50, (3, 4))
    assert np.array_equal(look_up(paddle.to_tensor(ids), table).numpy(), table.numpy()[ids])


def test_a_frozen_table_needs_no_gradient(rng):
    table = make_table(rng)
    table.stop_gradient = True
    assert look_up(paddle.to_tensor([1, 2]), table).stop_gradient


def test_an_optimizer_of_paddle_updates_every_row(rng):
    table, dense = make_table(rng), nn.Embedding(50, 6)
    dense.weight.set_value(table)
    ids = paddle.to_tensor(rng.integers(0, 50, (3, 7)))
    for _ in range(2):
        for find, weight in ((look_up, table), (functional.embedding, dense.weight)):
            find(ids, weight).square().sum().backward()
            adam = paddle.optimizer.AdamW(0.1, parameters=[weight], weight_decay=0.1)
            adam.step()
            weight.clear_gradient(False)
    assert np.allclose(table.numpy(), dense.weight.numpy(), rtol=1e-5, atol=1e-6)
