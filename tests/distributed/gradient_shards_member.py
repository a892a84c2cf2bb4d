"""Trains a small model with gradients that only owners keep, as one process of a job.

    python -m tests.distributed.gradient_shards_member DP SHARDING '{"use_recompute": true}'

prints, as JSON, how far the gradients of two steps are from the whole batch's, which were kept
between micro batches, and the largest difference of the weights at the end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import paddle
import paddle.distributed as dist

from fastffn_cli.distributed.gradient_shards import reduce_to_owners
from fastffn_cli.distributed.gradients import sum_gradients
from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.mesh import Mesh
from fastffn_cli.distributed.ownership import assign_owners, share_weights
from fastffn_cli.engine.step import micro_batches
from fastffn_cli.tasks.causal_lm import CausalLM
from tests.distributed.pipeline_member import (
    RATE,
    ROWS,
    Case,
    global_batch,
    new_model,
    new_optimizer,
)


def train(mesh: Mesh, case: Case) -> dict[str, Any]:
    """Two updates beside those of the whole model in one process."""
    model, whole = new_model(case), new_model(case)
    parameters, expected = dict(model.named_parameters()), dict(whole.named_parameters())
    sizes = {name: parameter.size for name, parameter in parameters.items()}
    owner = assign_owners(sizes, mesh.sharding.size)
    mine = {name for name, index in owner.items() if index == mesh.sharding.index}
    reduce_to_owners(parameters, owner, mesh.sharding)
    optimizers = [new_optimizer(model), new_optimizer(whole)]
    task, whole_task = CausalLM(model), CausalLM(whole)
    rows, worst, kept_right = ROWS // mesh.data.size, 0.0, True
    for step in range(2):
        batch = global_batch(step)
        valid = task.weight(batch)
        (whole_task.loss(batch) / valid).backward()
        first = mesh.data.index * rows
        for micro in micro_batches(batch.slice(first, first + rows), 2):
            (task.loss(micro) / valid).backward()
            kept = {name for name, each in parameters.items() if each.grad is not None}
            kept_right = kept_right and kept == mine
        sum_gradients([parameters[name] for name in sorted(mine)], mesh.dp)
        worst = max(worst, *(distance(parameters[n].grad, expected[n].grad) for n in mine))
        for optimizer in optimizers:
            optimizer.step(RATE)
            optimizer.clear_gradients()
        share_weights(parameters, owner, mesh.sharding)
    weights = max(distance(parameters[name], expected[name]) for name in parameters)
    return {"gradients": worst, "weights": weights, "kept_right": kept_right, "kept": len(mine)}


def distance(one: paddle.Tensor, other: paddle.Tensor) -> float:
    """The largest difference of two tensors' entries."""
    return float((one - other).abs().max())


def main() -> None:
    """Run what the command line says."""
    dist.init_parallel_env()
    dp, sharding, *models = (json.loads(argument) for argument in sys.argv[1:])
    mesh = Mesh(Layout(dp=dp, sharding_degree=sharding), dist.get_rank())
    print(json.dumps([train(mesh, Case(model=model)) for model in models]))


if __name__ == "__main__":
    main()
