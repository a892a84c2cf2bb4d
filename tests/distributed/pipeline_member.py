"""Trains small models through a pipeline, as one process of a job; and whole, for comparison.

    python -m tests.distributed.pipeline_member '[{"pp": 2, ...}, ...]' FOLDER

writes what each case did into FOLDER/CASE-RANK.npz.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from fastffn_cli.config.load import default_config
from fastffn_cli.data.dataset import Batch
from fastffn_cli.distributed.gradients import squared_norm, sum_gradients
from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.mesh import Mesh
from fastffn_cli.distributed.pipeline import Pipeline
from fastffn_cli.distributed.pipeline_stage import Stage
from fastffn_cli.distributed.tensor_parallel import split
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.step import micro_batches
from fastffn_cli.tasks.causal_lm import CausalLM
from models import ffn
from models.gpt import GPT, GPTConfig

ROWS, SEQ_LEN, VOCAB, STEPS, RATE, CLIP = 20, 8, 23, 5, 1e-3, 0.5
CONFIG = GPTConfig(
    vocab_size=VOCAB, hidden_size=16, num_layers=4, num_attention_heads=2, ffn_hidden_size=32,
    max_position_embeddings=SEQ_LEN, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    initializer_range=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A layout, the pieces of a step on each process that reads, and the model's switches.

    After `merge_after` steps the cheap feed-forwards are made dense.
    """

    pp: int = 1
    dp: int = 1
    mp: int = 1
    sequence: bool = False
    pieces: int = 1
    model: Mapping[str, Any] = field(default_factory=dict)
    merge_after: int | None = None


def global_batch(step: int) -> Batch:
    """Random tokens, of which some are hidden from attention and some do not count."""
    random = np.random.default_rng(100 + step)
    ids = random.integers(0, VOCAB, (ROWS, SEQ_LEN + 1))
    mask = (random.random((ROWS, SEQ_LEN)) < 0.8).astype(np.float32)
    return Batch(ids[:, :-1], ids[:, 1:], mask)


def train_stage(case: Case, rank: int) -> dict[str, np.ndarray]:
    """Train this process's stage for `STEPS` updates; return what happened, by name.

    Losses, gradients and norms of all steps, an evaluation, weights at the end, and `copied`.
    """
    mesh = Mesh(Layout(pp=case.pp, dp=case.dp, mp=case.mp), rank)
    model = new_model(case)
    partition = split(model, mesh.mp, sequence=case.sequence)
    task = CausalLM(Stage(model, mesh.pp))
    pipeline = Pipeline(mesh.pp, task, Precision(), slices=case.mp if case.sequence else 1)
    rows = ROWS // case.dp
    mine = slice(rows * mesh.dp.index, rows * (mesh.dp.index + 1))

    def accumulate(batch: Batch, optimizer: AdamW) -> tuple[float, float]:
        part = batch.slice(mine.start, mine.stop)
        pieces = micro_batches(part, math.ceil(part.size / case.pieces))
        loss = pipeline.accumulate_gradients(pieces, task.weight(batch))
        held = optimizer.parameters
        sum_gradients(list(held.values()), mesh.dp)
        sum_gradients([held[name] for name in held if name in partition.summed], mesh.mp)
        own = {
            name: parameter
            for name, parameter in optimizer.parameters.items()
            if name not in task.model.copied
        }
        (square,) = mesh.pp.totals(partition.squared_norm(own))
        return mesh.dp.totals(loss)[0], math.sqrt(square)

    record = train(case, task, accumulate)
    record = {name: partition.whole(name.split(":")[-1], array) for name, array in record.items()}
    batches = list(micro_batches(global_batch(STEPS), 8))
    task.model.eval()
    record["evaluation"] = mean_losses(pipeline.evaluate(batches), batches)
    record["copied"] = np.array(sorted(task.model.copied))
    return record


def train_whole(case: Case) -> dict[str, np.ndarray]:
    """Do the same with the whole model in this process."""
    task = CausalLM(new_model(case))
    # Only experts care how a step is cut: their auxiliary loss is one of the micro batch's means.
    pieces = case.pieces if case.model.get("ffn", {}).get("kind") == "moe" else 1

    def accumulate(batch: Batch, optimizer: AdamW) -> tuple[float, float]:
        total = 0.0
        for micro in micro_batches(batch, math.ceil(batch.size / pieces)):
            loss = task.loss(micro) / task.weight(batch)
            total += float(loss)
            penalty = task.penalty(micro)
            (loss if penalty is None else loss + penalty / task.weight(batch)).backward()
        return total, math.sqrt(squared_norm(optimizer.parameters.values()))

    record = train(case, task, accumulate)
    task.model.eval()
    batches = list(micro_batches(global_batch(STEPS), 8))
    with paddle.no_grad():
        record["evaluation"] = mean_losses([float(task.loss(batch)) for batch in batches], batches)
    return record


def mean_losses(sums: Sequence[float], batches: Sequence[Batch]) -> np.ndarray:
    """The loss of each batch for a token."""
    return np.array([total / batch.num_valid for total, batch in zip(sums, batches, strict=True)])


def train(case: Case, task: CausalLM, accumulate: Any) -> dict[str, np.ndarray]:
    """Run clipped AdamW updates from the gradients, losses and norms that `accumulate` makes."""
    record: dict[str, np.ndarray] = {}
    optimizer = new_optimizer(task.model)
    for step in range(STEPS):
        task.begin_step(step / STEPS, step)
        loss, norm = accumulate(global_batch(step), optimizer)
        record[f"loss {step}"], record[f"norm {step}"] = np.array(loss), np.array(norm)
        for name, parameter in optimizer.parameters.items():
            if parameter.grad is not None:
                record[f"gradient {step}:{name}"] = parameter.grad.numpy()
        for parameter in optimizer.parameters.values():
            if norm > CLIP and parameter.grad is not None:
                paddle.assign(parameter.grad * (CLIP / norm), parameter.grad)
        optimizer.step(RATE)
        optimizer.clear_gradients()
        if case.merge_after == step + 1:
            ffn.merge(task.model)
            optimizer = new_optimizer(task.model)
    for name, parameter in task.model.named_parameters():
        record[f"weight:{name}"] = parameter.numpy()
    return record


def new_model(case: Case) -> GPT:
    """The whole model of a case, with the same weights in every process."""
    paddle.seed(5)
    return GPT(replace(CONFIG, **case.model))


def new_optimizer(model: GPT) -> AdamW:
    """AdamW with an epsilon far above rounding.

    The usual one of 1e-8 makes steps of the size of the learning rate out of gradients that are
    rounding alone, and one process that cuts its batch in another way is 4e-6 off by the third.
    """
    options = default_config().config.Optimizer.model_copy(update={"adam_epsilon": 1e-4})
    return AdamW(model, options, multi_precision=False)


def main() -> None:
    """Run the cases of the command line."""
    dist.init_parallel_env()
    folder = Path(sys.argv[2])
    for number, case in enumerate(json.loads(sys.argv[1])):
        record = train_stage(Case(**case), dist.get_rank())
        np.savez(folder / f"{number}-{dist.get_rank()}.npz", **record)


if __name__ == "__main__":
    main()
