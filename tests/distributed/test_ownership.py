"""Who updates what."""

from __future__ import annotations

import paddle
import pytest

from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.distributed.gradients import buckets, flatten, unflatten
from fastffn_cli.distributed.ownership import assign_owners
from fastffn_cli.engine.optimizer import AdamW


def test_parameters_are_dealt_out_evenly_and_wholly() -> None:
    sizes = {f"p{index}": size for index, size in enumerate([100, 60, 50, 30, 20, 10, 5, 5])}
    owner = assign_owners(sizes, 3)
    loads = [sum(sizes[name] for name in sizes if owner[name] == index) for index in range(3)]
    assert owner.keys() == sizes.keys()
    assert sum(loads) == sum(sizes.values())
    assert max(loads) - min(loads) <= 10
    assert assign_owners(sizes, 3) == owner


def test_an_optimizer_updates_and_keeps_what_it_owns_and_clears_all_gradients() -> None:
    paddle.seed(0)
    model = paddle.nn.Linear(3, 2)
    optimizer = AdamW(model, OptimizerSection(), multi_precision=False, owned={"bias"})
    before = {name: each.numpy().copy() for name, each in model.named_parameters()}
    model(paddle.ones([1, 3])).sum().backward()
    optimizer.step(1e-2)
    optimizer.clear_gradients()

    assert (model.weight.numpy() == before["weight"]).all()
    assert (model.bias.numpy() != before["bias"]).all()
    assert {name.rpartition(".")[0] for name in optimizer.state()} == {"bias"}
    assert model.weight.grad is None
    assert model.bias.grad is None


def test_buckets_hold_every_tensor_once_and_are_bounded() -> None:
    tensors = [paddle.full([size], float(size)) for size in (3, 9, 2, 2, 20, 1)]
    tensors.append(paddle.ones([4], "float64"))
    found = list(buckets(tensors, limit=10))
    assert [[tensor.size for tensor in bucket] for bucket in found] == [
        [3], [9], [2, 2], [20], [1], [4],
    ]  # fmt: skip


@pytest.mark.parametrize("shapes", [[[2, 3], [4]], [[1]], [[5, 1], [2, 2], [3]]])
def test_what_is_joined_is_cut_again(shapes: list[list[int]]) -> None:
    tensors = [paddle.normal(shape=shape) for shape in shapes]
    for before, after in zip(tensors, unflatten(flatten(tensors), tensors), strict=True):
        assert (before.numpy() == after.numpy()).all()
