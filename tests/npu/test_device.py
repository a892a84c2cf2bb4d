"""The imitation itself: memory that the host may not touch, and a generator of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import PROCESS_TIMEOUT_S, ROOT_DIR, Workplace, program_env

pytestmark = pytest.mark.slow


def run_python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=program_env(env),
        cwd=ROOT_DIR,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )


def test_the_host_crashes_on_a_device_pointer(npu_env: dict[str, str]) -> None:
    code = (
        "import ctypes, paddle\n"
        "paddle.set_device('npu')\n"
        "tensor = paddle.ones([8])\n"
        "print(tensor.numpy().sum(), flush=True)\n"
        "ctypes.string_at(tensor.data_ptr(), 4)\n"
    )
    done = run_python("-c", code, env=npu_env)
    assert done.stdout.startswith("8.0\n")
    assert done.returncode == -signal.SIGSEGV


@pytest.fixture(scope="module")
def answers(npu_env: dict[str, str]) -> dict[str, Any]:
    done = run_python("-m", "tests.npu.device_answers", env=npu_env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_random_numbers_come_from_the_devices_own_generator(answers: dict[str, Any]) -> None:
    expected, drawn = answers["on the cpu"]
    assert drawn == expected
    assert answers["second"] != answers["first"]
    assert answers["again"] == answers["first"]


def test_recomputation_drops_what_the_forward_pass_dropped(answers: dict[str, Any]) -> None:
    assert 0.0 in answers["plain"]
    assert answers["recomputed"] == answers["plain"]


def test_views_are_read_and_written_in_place(answers: dict[str, Any]) -> None:
    assert answers["views"] == [[1.0, 5.0, 9.0], [2.0, -1.0, -1.0]]


def test_a_full_device_is_told_as_out_of_memory(
    npu_env: dict[str, str], workplace: Workplace
) -> None:
    done = workplace.run_fastffn(
        *("pretrain", "-c", "tiny.yaml", "--device", "npu"),
        env={**npu_env, "HOST_NPU_MEMORY_MIB": "1"},
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "out of memory" in done.stderr
    assert "-o Data.batch_size.micro_batch_size=2" in done.stderr
