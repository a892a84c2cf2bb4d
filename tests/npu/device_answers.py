"""Asks the imitated npu what a card would be asked; prints JSON. The program of test_device.py."""

from __future__ import annotations

import json
import sys

import paddle
from paddle.distributed.fleet.utils import recompute

paddle.set_device("npu:0")


def dropped() -> list[float]:
    """Return ones after dropout: a picture of the generator's state."""
    return paddle.nn.functional.dropout(paddle.ones([64]), 0.5).tolist()


def gradient_of_dropout(*, recomputed: bool) -> list[float]:
    """Return the gradient of ones through a layer with dropout."""
    paddle.seed(3)
    x = paddle.ones([64])
    x.stop_gradient = False

    def layer(values: paddle.Tensor) -> paddle.Tensor:
        return paddle.nn.functional.dropout(values * values, 0.5)

    y = recompute(layer, x) if recomputed else layer(x)
    paddle.rand([5])  # the backward pass must not go on from here
    y.sum().backward()
    return x.grad.tolist()


def views() -> list[list[float]]:
    """Return a transposed slice that was written to."""
    table = paddle.arange(12, dtype="float32").reshape([3, 4])
    table[1:, ::2] = -1.0
    return table.T[1:3].contiguous().tolist()


def drawn_on_cpu() -> list[float]:
    """Return what the CPU's generator gives next."""
    paddle.set_device("cpu")
    values = paddle.rand([8]).tolist()
    paddle.set_device("npu:0")
    return values


paddle.seed(1)
expected_on_cpu = drawn_on_cpu()
paddle.seed(1)
state = paddle.get_rng_state("npu:0")
first, second = dropped(), dropped()
on_cpu = drawn_on_cpu()
paddle.set_rng_state(state, "npu:0")
json.dump(
    {
        "first": first,
        "second": second,
        "again": dropped(),
        "on the cpu": [expected_on_cpu, on_cpu],
        "plain": gradient_of_dropout(recomputed=False),
        "recomputed": gradient_of_dropout(recomputed=True),
        "views": views(),
    },
    sys.stdout,
)
