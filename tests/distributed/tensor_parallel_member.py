"""Computes with models that are split, as one process of a job; and whole ones, for comparison.

    python -m tests.distributed.tensor_parallel_member train '[{"mp": 2, ...}, ...]' FOLDER

writes what each case did into FOLDER/CASE-RANK.npz; the other commands answer on stdout.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor

from fastffn_cli.distributed.gradients import sum_gradients
from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.mesh import Axis, Mesh
from fastffn_cli.distributed.tensor_parallel import join, split
from fastffn_cli.engine.step import micro_batches
from fastffn_cli.tasks.causal_lm import CausalLM
from models.ffn import merge
from models.gpt import GPT, GPTConfig
from tests.distributed.pipeline_member import (
    CONFIG,
    ROWS,
    STEPS,
    VOCAB,
    Case,
    global_batch,
    new_model,
    new_optimizer,
)

RATE = 1e-3
TCP_BYTES_RECEIVED = 128  # where Linux' `struct tcp_info` has tcpi_bytes_received


def train(case: Case, mesh: Mesh) -> dict[str, np.ndarray]:
    """Train for `STEPS` updates; return losses, norms and, whole, gradients and moments.

    On a mesh of one process nothing is split.
    """
    model = new_model(case)
    partition = split(model, mesh.mp, sequence=case.sequence)
    task, optimizer = CausalLM(model), new_optimizer(model)
    rows = ROWS // mesh.dp.size
    record: dict[str, np.ndarray] = {}
    for step in range(STEPS):
        batch = global_batch(step)
        mine = batch.slice(rows * mesh.dp.index, rows * (mesh.dp.index + 1))
        total = 0.0
        for micro in micro_batches(mine, math.ceil(rows / case.pieces)):
            loss = task.loss(micro) / task.weight(batch)
            loss.backward()
            total += float(loss)
        sum_gradients(list(optimizer.parameters.values()), mesh.dp)
        sum_gradients([optimizer.parameters[name] for name in sorted(partition.summed)], mesh.mp)
        (record[f"loss {step}"],) = (np.array(value) for value in mesh.dp.totals(total))
        record[f"norm {step}"] = np.array(math.sqrt(partition.squared_norm(optimizer.parameters)))
        if step in (0, STEPS - 1):
            for name, parameter in optimizer.parameters.items():
                record[f"gradient {step} {name}"] = partition.whole(name, parameter.grad.numpy())
        optimizer.step(RATE)
        optimizer.clear_gradients()
    for name, array in optimizer.state().items():
        record[f"state {name}"] = partition.whole(name, array)
    return record


def run_cases(axis: Axis) -> None:
    """`train CASES FOLDER`."""
    folder = Path(sys.argv[3])
    for number, case in enumerate(Case(**each) for each in json.loads(sys.argv[2])):
        mesh = Mesh(Layout(dp=case.dp, mp=case.mp), dist.get_rank())
        np.savez(folder / f"{number}-{dist.get_rank()}.npz", **train(case, mesh))


def measure_traffic(axis: Axis) -> None:
    """`traffic CASES`: bytes received in a step of each model, and by its feed-forward alone.

    A case is a model and whether time is divided.
    What a step of 18 sequences has above one of 2 is that of 16: the headers of messages, whose
    number is nearly the same, drop out.
    """
    answers = []
    for model, sequence in json.loads(sys.argv[2]):
        gpt = GPT(GPTConfig(**model))
        split(gpt, axis, sequence=sequence)
        length, width = gpt.config.max_position_embeddings, gpt.config.hidden_size
        steps = length // axis.size if sequence else length

        def step(rows: int, gpt: GPT = gpt, length: int = length) -> None:
            gpt(paddle.zeros([rows, length], "int64")).mean().backward()

        def feed_forward(
            rows: int, gpt: GPT = gpt, shape: tuple[int, int] = (steps, width)
        ) -> None:
            x = paddle.ones([rows, *shape])
            x.stop_gradient = False
            gpt.layers[0].ffn(x).mean().backward()

        answers.append([_slope(work, axis) for work in (step, feed_forward)])
    print(json.dumps(answers))


def _slope(work: Callable[[int], None], axis: Axis) -> int:
    counts = []
    for rows in (2, 18):
        work(rows)  # connections are made
        before = _received(axis)
        work(rows)
        counts.append(_received(axis) - before)
    return counts[1] - counts[0]


def _received(axis: Axis) -> int:
    """Bytes that all of this process's TCP connections have received, once they are at rest."""
    axis.highest(0)
    time.sleep(0.1)
    total = 0
    for file in Path("/proc/self/fd").iterdir():
        try:
            if not str(file.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # the listing's own file is closed, other sockets are not TCP's
            continue
        total += struct.unpack_from("Q", info, TCP_BYTES_RECEIVED)[0]
    return total


def drop_out(axis: Axis) -> None:
    """`dropout`: what attention and hidden dropout do in heads that are all alike.

    The answer holds the heads' outputs in training and in evaluation, and what goes into the last
    norm; and, without and with divided time, what hidden dropout makes of ones, random numbers
    behind it, and the gradients of the whole model with each granularity of recomputing.
    """
    dropping = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model = new_model(Case(model=dropping))
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.self_attn.out_proj.register_forward_pre_hook(
            lambda layer, inputs: seen.append(inputs[0])
        )
    model.norm.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    split(model, axis)
    for layer in model.layers:
        for parameter in layer.self_attn.qkv_proj.parameters():
            head = paddle.split(parameter, layer.self_attn.heads, axis=-1)[0] * 0 + 0.01
            parameter.set_value(paddle.concat([head] * layer.self_attn.heads, axis=-1))
    ids = paddle.to_tensor(global_batch(0).tokens_BS)
    paddle.seed(11)
    model(ids)
    model.eval()
    model(ids)
    record = {f"seen {index}": each.numpy() for index, each in enumerate(seen)}
    recomputing = [
        {"use_recompute": True, "recompute_granularity": granularity}
        for granularity in ("full", "full_attn", "core_attn")
    ]
    for sequence in (False, True):
        model = new_model(Case(model=dropping))
        split(model, axis, sequence=sequence)
        for index, drop in enumerate(
            (model.dropout, model.layers[0].dropout1, model.layers[0].dropout2)
        ):
            record[f"hidden {sequence} {index}"] = drop(paddle.ones([2, 4, 16])).numpy()
        record[f"after {sequence}"] = paddle.rand([4]).numpy()
        for index, how in enumerate(({}, *recomputing)):
            gradients = _gradients(replace(CONFIG, **dropping, **how), ids, axis, sequence)
            record[f"gradients {sequence} {index}"] = gradients
    np.savez(Path(sys.argv[2]) / f"{dist.get_rank()}.npz", **record)


def _gradients(config: GPTConfig, ids: Tensor, axis: Axis, sequence: bool) -> np.ndarray:
    paddle.seed(5)
    model = GPT(config)
    partition = split(model, axis, sequence=sequence)
    paddle.seed(12)
    for _ in range(2):  # micro batches
        model(ids).square().mean().backward()
    return np.concatenate(
        [
            partition.whole(name, parameter.grad.numpy()).reshape(-1)
            for name, parameter in model.named_parameters()
        ]
    )


def generate(axis: Axis) -> None:
    """`generate MODELS`: the largest difference between logits of split and whole models.

    Each answer has that of one call for all tokens, that of a call a token with a cache, and the
    same of models that are joined, made dense and split again.
    """
    tokens = np.random.default_rng(3).integers(0, VOCAB, (4, CONFIG.max_position_embeddings))
    answers = []
    for changes in json.loads(sys.argv[2]):
        whole, part = (new_model(Case(model=changes)) for _ in range(2))
        partition = split(part, axis)
        answer = _differences(whole, part, paddle.to_tensor(tokens))
        join(part, partition)
        for model in (whole, part):
            merge(model)
        split(part, axis)
        answers.append(answer + _differences(whole, part, paddle.to_tensor(tokens)))
    print(json.dumps(answers))


def _differences(whole: GPT, part: GPT, ids_BT: Tensor) -> list[float]:
    pairs = zip(_evaluate(part, ids_BT), _evaluate(whole, ids_BT), strict=True)
    return [float((mine - its).abs().max()) for mine, its in pairs]


def _evaluate(model: GPT, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    model.eval()
    with paddle.no_grad():
        cache = model.new_cache(*ids_BT.shape)
        steps = [model(ids_BT[:, t : t + 1], cache=cache) for t in range(ids_BT.shape[1])]
        return model(ids_BT), paddle.concat(steps, axis=1)


COMMANDS: Mapping[str, Callable[[Axis], Any]] = {
    "train": run_cases,
    "traffic": measure_traffic,
    "dropout": drop_out,
    "generate": generate,
}

if __name__ == "__main__":
    dist.init_parallel_env()
    COMMANDS[sys.argv[1]](Mesh(Layout(mp=dist.get_world_size()), dist.get_rank()).mp)
