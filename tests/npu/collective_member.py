"""One rank of test_collectives.py: every collective that training uses, then averaged gradients.

Writes what it got to FOLDER/rank-N.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import distributed

paddle.set_device(f"npu:{os.environ['PADDLE_LOCAL_RANK']}")
distributed.init_parallel_env()
rank, ranks = distributed.get_rank(), distributed.get_world_size()


def mine(dtype: str = "float32") -> paddle.Tensor:
    """Return this rank's values: 1, 2, 3 times rank + 1."""
    return paddle.to_tensor(np.array([1, 2, 3]) * (rank + 1)).astype(dtype)


def all_reduced(dtype: str, operation: int = distributed.ReduceOp.SUM) -> list[float]:
    """Return the reduction over all ranks."""
    values = mine(dtype)
    distributed.all_reduce(values, operation)
    return values.astype("float32").tolist()


def broadcast() -> list[float]:
    """Return rank 1's values."""
    values = mine()
    distributed.broadcast(values, src=1)
    return values.tolist()


def all_gathered() -> list[list[float]]:
    """Return everybody's values."""
    gathered: list[paddle.Tensor] = []
    distributed.all_gather(gathered, mine())
    return [values.tolist() for values in gathered]


def reduce_scattered() -> list[float]:
    """Return this rank's part of a sum."""
    part = paddle.zeros([3])
    distributed.reduce_scatter(part, [mine() * (to + 1) for to in range(ranks)])
    return part.tolist()


def sent_around() -> list[float]:
    """Return what the rank before this one sent."""
    received = paddle.zeros([3])
    if rank == 0:
        distributed.send(mine(), dst=1)
        distributed.recv(received, src=ranks - 1)
    else:
        distributed.recv(received, src=rank - 1)
        distributed.send(mine(), dst=(rank + 1) % ranks)
    return received.tolist()


def large_sum() -> bool:
    """Tell whether a sum of several slots' length is right to the last value."""
    values = paddle.arange(700_001, dtype="float32") * (rank + 1)
    distributed.all_reduce(values)
    factor = sum(range(1, ranks + 1))
    return bool((values == paddle.arange(700_001, dtype="float32") * factor).all().item())


def averaged_gradient() -> list[float]:
    """Return the gradient of a mean over all ranks' rows, each having its own."""
    rows = np.random.default_rng(7).standard_normal((2 * ranks, 3)).astype(np.float32)
    weight = paddle.ones([3])
    weight.stop_gradient = False
    (paddle.to_tensor(rows[2 * rank : 2 * rank + 2]) @ weight).tanh().mean().backward()
    gradient = weight.grad
    distributed.all_reduce(gradient)
    return (gradient / ranks).tolist()


found = {
    "ranks": ranks,
    "device": paddle.get_device(),
    "sums": {dtype: all_reduced(dtype) for dtype in ("float32", "float16", "bfloat16", "int64")},
    "max": all_reduced("float32", distributed.ReduceOp.MAX),
    "broadcast": broadcast(),
    "gathered": all_gathered(),
    "reduce_scattered": reduce_scattered(),
    "sent": sent_around(),
    "large": large_sum(),
    "gradient": averaged_gradient(),
}
distributed.barrier()
Path(sys.argv[1], f"rank-{rank}.json").write_text(json.dumps(found))
