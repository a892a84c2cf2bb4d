"""A process that trains a model for two steps and prints estimated and measured peaks as JSON.

Run by test_memory.py: `python -m tests.engine.measure_memory tensors|process SPEC...`, with one
JSON object of sizes per SPEC. `tensors` reads Paddle's own count of live bytes, `process` the
resident size of the process beyond what it had after a warm-up.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

from fastffn_cli.engine.device import Device, use_device

DEVICE: Device = use_device("cpu")

import numpy as np  # noqa: E402  (paddle and numpy come after the CPU is set up)
import paddle  # noqa: E402
import psutil  # noqa: E402

from fastffn_cli.config.schema_training import OptimizerSection  # noqa: E402
from fastffn_cli.data.dataset import Batch  # noqa: E402
from fastffn_cli.engine.memory import estimate_memory  # noqa: E402
from fastffn_cli.engine.optimizer import AdamW  # noqa: E402
from fastffn_cli.engine.precision import Precision  # noqa: E402
from fastffn_cli.engine.step import TrainStep  # noqa: E402
from fastffn_cli.tasks.causal_lm import CausalLM  # noqa: E402
from models.gpt import GPT, GPTConfig  # noqa: E402
from models.kernels import library  # noqa: E402


def train_two_steps(config: GPTConfig, micro_batch_size: int, seq_len: int) -> None:
    model = GPT(config)
    model.train()
    step = TrainStep(
        CausalLM(model),
        AdamW(model, OptimizerSection(), multi_precision=False),
        Precision(),
        micro_batch_size=micro_batch_size,
        grad_clip=1.0,
    )
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (micro_batch_size, seq_len + 1))
    mask = np.ones((micro_batch_size, seq_len), np.float32)
    for _ in range(2):
        step(Batch(ids[:, :-1], ids[:, 1:], mask), 1e-3)


def count_tensors(run: Any) -> int:
    core = paddle.base.core
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    before = core.host_memory_stat_current_value("Allocated", 0)
    run()
    return int(core.host_memory_stat_peak_value("Allocated", 0) - before)


def count_process(run: Any) -> int:
    before = psutil.Process().memory_info().rss
    DEVICE.reset_peak()
    run()
    return DEVICE.peak_memory() - before


def main() -> None:
    kind, specs = sys.argv[1], [json.loads(text) for text in sys.argv[2:]]
    warm = GPTConfig(
        **{"vocab_size": 64, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2},
        **{"ffn_hidden_size": 64, "max_position_embeddings": 16},
    )
    train_two_steps(warm, 2, 16)
    for spec in specs:
        micro_batch_size, seq_len = spec.pop("micro_batch_size"), spec.pop("seq_len")
        config = GPTConfig(**spec, max_position_embeddings=seq_len)
        gc.collect()
        count = count_tensors if kind == "tensors" else count_process

        def run(
            config: GPTConfig = config, size: int = micro_batch_size, length: int = seq_len
        ) -> None:
            train_two_steps(config, size, length)

        estimate = estimate_memory(
            config, seq_len, on_host=kind == "process", fused=library.path() is not None
        )
        print(json.dumps({"measured": count(run), "estimated": estimate.total(micro_batch_size)}))


if __name__ == "__main__":
    main()
