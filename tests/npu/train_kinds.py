"""Trains a tiny GPT of every kind of feed-forward on the CPU and on the npu; prints JSON.

The program of test_kinds.py: {kind: {"float32": [names of tensors that differ from the CPU's],
"losses": ..., "float16": losses}}.
"""

from __future__ import annotations

import json
import sys
from typing import Literal

import numpy as np

from fastffn_cli.engine.device import use_device

use_device("npu")

import paddle  # noqa: E402

from fastffn_cli.config.schema_training import MixPrecision, OptimizerSection  # noqa: E402
from fastffn_cli.engine.checkpoint import model_tensors  # noqa: E402
from fastffn_cli.engine.device import Device  # noqa: E402
from fastffn_cli.engine.optimizer import AdamW  # noqa: E402
from fastffn_cli.engine.precision import Precision, choose_precision  # noqa: E402
from fastffn_cli.engine.step import TrainStep  # noqa: E402
from fastffn_cli.tasks.causal_lm import CausalLM  # noqa: E402
from models.ffn.registry import KINDS  # noqa: E402
from models.gpt import GPT, GPTConfig  # noqa: E402
from models.kernels import chunked_low_rank_inner, low_rank_inner  # noqa: E402
from tests.engine.runs import random_batch  # noqa: E402

STEPS, ROWS, SEQ_LEN, VOCAB = 3, 4, 8, 40
TOKENS_A_CHUNK = 5  # of 16 in a micro batch
OPTIONS = {
    "dense": {},
    "low_rank": {"rank": 4},
    "narrow": {"width": 20},
    "thin": {"width": 32, "rank": 8},
    "low_rank_activation": {"rank": 4},
    "moe": {"experts": 4},
    "guided": {"inner": "low_rank", "rank": 4},
    "monarch": {"blocks": 2},
    "block_dense": {"blocks": 2, "rank": 8},
    "block_diagonal": {"blocks": 4},
}


def train(spec: dict[str, object], device: str, options: MixPrecision, **settings: object):
    """Return the losses of a few updates, and the weights after them."""
    paddle.set_device(device)
    paddle.seed(5)
    place = Device(*device.split(":")[:1])
    precision = choose_precision(options, place)[0] if options.enable else Precision()
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2}
    model = GPT(
        GPTConfig(
            **sizes, ffn_hidden_size=64, max_position_embeddings=SEQ_LEN, ffn=spec, **settings
        )
    )
    precision.decorate(model)
    model.train()
    optimizer = AdamW(model, OptimizerSection(), multi_precision=precision.multi_precision)
    step = TrainStep(
        CausalLM(model), optimizer, precision, micro_batch_size=ROWS // 2, grad_clip=1.0
    )
    losses = []
    for number in range(STEPS):
        paddle.seed(number)
        losses.append(step(random_batch(number, ROWS, SEQ_LEN, VOCAB), 1e-3).loss)
    return losses, model_tensors(model)


def compare(
    spec: dict[str, object], level: Literal["O1", "O2"] = "O2", **settings: object
) -> dict[str, object]:
    """Train on both devices, and in half precision on the npu."""
    plain = MixPrecision(enable=False)
    expected_losses, expected = train(spec, "cpu", plain, **settings)
    losses, weights = train(spec, "npu:0", plain, **settings)
    different = [name for name in expected if weights[name].tobytes() != expected[name].tobytes()]
    half = {
        dtype: train(spec, "npu:0", MixPrecision(enable=True, dtype=dtype, level=level), **settings)
        for dtype in ("float16", "bfloat16")
    }
    return {
        "different": different,
        "losses": [expected_losses, losses],
        "half": {dtype: result[0] for dtype, result in half.items()},
        "finite": all(
            np.isfinite(array).all() for _, kept in half.values() for array in kept.values()
        ),
    }


assert OPTIONS.keys() == KINDS.keys(), KINDS.keys() ^ OPTIONS.keys()
found = {kind: compare({"kind": kind, **options}) for kind, options in OPTIONS.items()}
found["all in factors"] = compare(
    {"kind": "low_rank", "rank": 4}, attention_rank=4, embedding_rank=8
)
found["recomputed"] = compare(
    {"kind": "low_rank", "rank": 4}, use_recompute=True, recompute_granularity="full"
)
low_rank_inner.choose_form("chunked")
chunked_low_rank_inner.CHUNK_BYTES, chunked_low_rank_inner.SMALLEST_CHUNK = 0, TOKENS_A_CHUNK
found["in chunks"] = compare({"kind": "low_rank", "rank": 4})
found["in chunks, O1"] = compare({"kind": "low_rank", "rank": 4}, level="O1")
json.dump(found, sys.stdout)
