"""The memory estimate against what a training step really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from fastffn_cli.engine.memory import MemoryEstimate, estimate_memory
from models.gpt import GPTConfig
from models.kernels.linear_cross_entropy import KERNEL_ROWS
from tests.conftest import PROCESS_TIMEOUT_S, ROOT_DIR, program_env

pytestmark = pytest.mark.slow

BASE: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 128, "num_layers": 4, "num_attention_heads": 4},
    **{"ffn_hidden_size": 512, "micro_batch_size": 8, "seq_len": 128},
}
SIZES = {key: BASE[key] for key in BASE if key not in ("micro_batch_size", "seq_len")}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LONG = {"seq_len": 512, "micro_batch_size": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {},
    "no dropout": NO_DROPOUT,
    "low rank": {"ffn": {"kind": "low_rank", "rank": 8}},
    "low rank, long": {"ffn": {"kind": "low_rank", "rank": 8}, **LONG, **NO_DROPOUT},
    "all in factors": {
        **{"ffn": {"kind": "low_rank", "rank": 8}, "attention_rank": 32, "embedding_rank": 32},
        **{"vocab_size": 16000, "num_layers": 2},
    },
    "attention in factors": {"attention_rank": 64, **NO_DROPOUT},
    "long": LONG,
    "large vocabulary": {"vocab_size": 16000, "num_layers": 1},
    "wide": {"hidden_size": 256, "ffn_hidden_size": 1024, "num_layers": 2},
    "many heads": {"num_attention_heads": 16, **NO_DROPOUT},
    "recompute full": {"use_recompute": True},
    "recompute full_attn": {"use_recompute": True, "recompute_granularity": "full_attn"},
    "recompute core_attn": {"use_recompute": True, "recompute_granularity": "core_attn", **LONG},
    "mostly weights": {"hidden_size": 384, "ffn_hidden_size": 1536, "micro_batch_size": 1},
}
TENSOR_TOLERANCE = 0.2
PROCESS_TOLERANCE = 0.35


def measure(kind: str, *names: str, kernels: str = "on") -> list[dict[str, float]]:
    specs = [json.dumps({**BASE, **SHAPES[name]}) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.measure_memory", kind, *specs],
        cwd=ROOT_DIR,
        env=program_env({"FASTFFN_KERNELS": kernels}),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module", params=["on", "off"])
def tensor_peaks(request: pytest.FixtureRequest) -> dict[str, dict[str, float]]:
    """Peaks with our operators, and with Paddle's alone."""
    measured = measure("tensors", *SHAPES, kernels=request.param)
    return dict(zip(SHAPES, measured, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_is_within_20_percent_of_the_peak_of_live_tensors(
    tensor_peaks: dict[str, dict[str, float]], name: str
) -> None:
    peak = tensor_peaks[name]
    assert peak["estimated"] == pytest.approx(peak["measured"], rel=TENSOR_TOLERANCE)


@pytest.mark.parametrize("name", ["low rank", "long"])
def test_on_a_cpu_the_estimate_is_near_the_growth_of_the_process(name: str) -> None:
    (peak,) = measure("process", name)
    assert peak["estimated"] == pytest.approx(peak["measured"], rel=PROCESS_TOLERANCE)


def test_the_parts_add_up_and_recompute_saves() -> None:
    plain = estimate_memory(GPTConfig(**SIZES), 128)
    saving = estimate_memory(GPTConfig(**SIZES, use_recompute=True), 128)
    assert plain.total(8) == plain.fixed + plain.activations(8)
    assert saving.fixed == plain.fixed
    assert saving.activations(1) < 0.5 * plain.activations(1)


def test_logits_are_there_for_a_chunk_of_the_tokens_alone() -> None:
    estimate = MemoryEstimate(fixed=7, kept=10, working=5, head=1, logits=100, chunk=150)
    assert estimate.total(1) == 7 + 10 + 1 + 100
    assert estimate.total(4) == 7 + 4 * 10 + 4 * 1 + 150
    assert estimate.total(40) == 7 + 40 * 10 + 40 * 5  # a layer's backward pass takes more

    config = GPTConfig(**SIZES | {"vocab_size": 50304})
    assert estimate_memory(config, 1024, fused=True).chunk == KERNEL_ROWS * 50304 * 4


def test_the_largest_micro_batch_divides_the_batch_and_fits() -> None:
    estimate = MemoryEstimate(fixed=10, kept=5)
    assert estimate.largest_micro_batch(40, 12, below=12) == 6
    assert estimate.largest_micro_batch(39, 12, below=12) == 4
    assert estimate.largest_micro_batch(40, 12, below=6) == 4
    assert estimate.largest_micro_batch(14, 12, below=12) is None
