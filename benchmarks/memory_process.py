"""One process of a job that trains small models and tells what they took, as lines of JSON.

    python -m benchmarks.memory_process tensors|process CASE...

A CASE is a JSON object: `layout` (fields of `Layout`), `model` (fields of `GPTConfig`), `seq_len`.
`tensors` is the peak of Paddle's own count of live bytes over two steps, beyond what was there
before the model; `process` the growth of the process' resident size, of one case in a process.
Building the model does not count: a process of several builds all of it, and keeps its part.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

from fastffn_cli.engine.device import use_device

DEVICE = use_device("cpu")

import numpy as np  # noqa: E402  (paddle and numpy come after the CPU is set up)
import paddle  # noqa: E402
import psutil  # noqa: E402

from fastffn_cli.config.schema_training import OptimizerSection  # noqa: E402
from fastffn_cli.data.dataset import Batch  # noqa: E402
from fastffn_cli.distributed.layout import Layout  # noqa: E402
from fastffn_cli.distributed.parallelism import join  # noqa: E402
from fastffn_cli.engine.model import build_model  # noqa: E402
from fastffn_cli.engine.optimizer import AdamW  # noqa: E402
from fastffn_cli.engine.precision import Precision  # noqa: E402
from fastffn_cli.engine.step import TrainStep  # noqa: E402
from fastffn_cli.tasks.causal_lm import CausalLM  # noqa: E402
from models.gpt import GPTConfig  # noqa: E402
from models.kernels import library  # noqa: E402

WARM_UP = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 4, "num_attention_heads": 4,
    "ffn_hidden_size": 64, "max_position_embeddings": 16,
}  # fmt: skip


def read_case(case: dict[str, Any]) -> tuple[Layout, GPTConfig]:
    """Return layout and model; the latter recomputes as the layout says."""
    layout = Layout(**case["layout"])
    model = GPTConfig(**case["model"], max_position_embeddings=case["seq_len"])
    return layout, layout.model(model)


def train(layout: Layout, config: GPTConfig, seq_len: int, count: str) -> dict[str, int]:
    """Train two steps; return the peak, the optimizer's moments, and whether kernels ran."""
    core = paddle.base.core
    gc.collect()
    before = int(core.host_memory_stat_current_value("Allocated", 0))
    resident = psutil.Process().memory_info().rss
    parallelism = join(layout)
    model = parallelism.place(build_model(config, seed=1))
    model.train()
    optimizer = AdamW(
        model, OptimizerSection(), multi_precision=False, owned=parallelism.share_out(model)
    )
    step = TrainStep(
        CausalLM(model),
        optimizer,
        Precision(),
        micro_batch_size=layout.micro_batch_size,
        grad_clip=1.0,
        parallelism=parallelism,
    )
    rows = layout.micro_batches * layout.micro_batch_size
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, seq_len + 1))
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((rows, seq_len), np.float32))
    gc.collect()
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    DEVICE.reset_peak()
    for _ in range(2):
        step(batch, 1e-3)
    tensors = int(core.host_memory_stat_peak_value("Allocated", 0)) - before
    peak = tensors if count == "tensors" else DEVICE.peak_memory() - resident
    moments = [
        array
        for name, array in optimizer.state().items()
        if name.endswith((".moment1", ".moment2"))
    ]
    return {
        "peak": peak,
        "moments": sum(array.nbytes for array in moments),
        "fused": library.path() is not None,
    }


def main() -> None:
    count, cases = sys.argv[1], [json.loads(text) for text in sys.argv[2:]]
    layouts = [read_case(case)[0] for case in cases]
    train(layouts[0], GPTConfig(**WARM_UP), 16, count)
    for case in cases:
        layout, config = read_case(case)
        answer = train(layout, config, case["seq_len"], count)
        sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
