"""The memory estimate against what a training step really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from fastffn_cli.engine.memory import MemoryEstimate, estimate_memory
from models.gpt import GPTConfig
from tests.conftest import PROCESS_TIMEOUT_S, ROOT_DIR, program_env

pytestmark = pytest.mark.slow

BASE: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 128, "num_layers": 4, "num_attention_heads": 4},
    **{"ffn_hidden_size": 512, "micro_batch_size": 8, "seq_len": 128},
}
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


def measure(kind: str, *names: str) -> list[dict[str, float]]:
    specs = [json.dumps({**BASE, **SHAPES[name]}) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.measure_memory", kind, *specs],
        cwd=ROOT_DIR,
        env=program_env(),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def tensor_peaks() -> dict[str, dict[str, float]]:
    return dict(zip(SHAPES, measure("tensors", *SHAPES), strict=True))


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
    sizes = {
        key: value for key, value in BASE.items() if key not in ("micro_batch_size", "seq_len")
    }
    plain = estimate_memory(GPTConfig(**sizes), 128)
    saving = estimate_memory(GPTConfig(**sizes, use_recompute=True), 128)
    assert plain.total(8) == plain.fixed + 8 * plain.per_sequence
    assert saving.fixed == plain.fixed
    assert saving.per_sequence < 0.5 * plain.per_sequence


def test_the_largest_micro_batch_divides_the_batch_and_fits() -> None:
    estimate = MemoryEstimate(fixed=10, per_sequence=5)
    assert estimate.largest_micro_batch(40, 12, below=12) == 6
    assert estimate.largest_micro_batch(39, 12, below=12) == 4
    assert estimate.largest_micro_batch(40, 12, below=6) == 4
    assert estimate.largest_micro_batch(14, 12, below=12) is None
