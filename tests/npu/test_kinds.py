"""Every kind of feed-forward trains on an npu: the CPU's bits in float32, close to it in halves."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from models.ffn.registry import KINDS
from tests.conftest import PROCESS_TIMEOUT_S, ROOT_DIR, program_env

pytestmark = pytest.mark.slow

VARIANTS = [*KINDS, "all in factors", "recomputed", "in chunks", "in chunks, O1"]
# Of a loss of about 3.7, over three updates.
TOLERANCES = {"float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def found(npu_env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.npu.train_kinds"],
        env=program_env(npu_env),
        cwd=ROOT_DIR,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_has_the_bits_of_the_cpu(found: dict[str, Any], variant: str) -> None:
    expected, losses = found[variant]["losses"]
    assert losses == expected
    assert found[variant]["different"] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_near(found: dict[str, Any], variant: str) -> None:
    expected, _ = found[variant]["losses"]
    for dtype, losses in found[variant]["half"].items():
        assert losses == pytest.approx(expected, abs=TOLERANCES[dtype], rel=0), dtype
        assert losses != expected, dtype
    assert found[variant]["finite"]
