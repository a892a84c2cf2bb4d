"""Two ranks on two imitated cards, as `python -m paddle.distributed.launch` starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import PROCESS_TIMEOUT_S, ROOT_DIR, program_env

pytestmark = pytest.mark.slow

MEMBER = Path(__file__).parent / "collective_member.py"


@pytest.fixture(scope="module")
def members(
    npu_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What both ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = ["-m", "paddle.distributed.launch", "--devices", "0,1", "--log_dir", folder / "logs"]
    done = subprocess.run(
        [sys.executable, *launch, MEMBER, folder],
        env=program_env({**npu_env, "HOST_NPU_DEVICES": "2", "OMP_NUM_THREADS": "1"}),
        cwd=ROOT_DIR,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_each_rank_has_its_own_card(members: list[dict[str, Any]]) -> None:
    assert [each["ranks"] for each in members] == [2, 2]
    assert [each["device"] for each in members] == ["npu:0", "npu:1"]


def test_reductions(members: list[dict[str, Any]]) -> None:
    for each in members:
        assert each["sums"].keys() == {"float32", "float16", "bfloat16", "int64"}
        assert all(total == [3, 6, 9] for total in each["sums"].values())
        assert each["max"] == [2, 4, 6]
        assert each["large"]
    assert [each["reduce_scattered"] for each in members] == [[3, 6, 9], [6, 12, 18]]


def test_copies(members: list[dict[str, Any]]) -> None:
    for each in members:
        assert each["broadcast"] == [2, 4, 6]
        assert each["gathered"] == [[1, 2, 3], [2, 4, 6]]
    assert [each["sent"] for each in members] == [[2, 4, 6], [1, 2, 3]]


def test_averaged_gradients_are_those_of_one_process(members: list[dict[str, Any]]) -> None:
    rows = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32).astype(np.float64)
    slopes = 1 - np.tanh(rows.sum(axis=1)) ** 2
    expected = (slopes[:, None] * rows).mean(axis=0)
    assert members[0]["gradient"] == members[1]["gradient"]
    np.testing.assert_allclose(members[0]["gradient"], expected, rtol=0, atol=1e-6)
