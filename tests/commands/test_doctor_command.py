"""`fastffn doctor`: every problem with a remedy, never a traceback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastffn_cli.engine import cpu
from fastffn_cli.engine.diagnose import Check, check_numpy, diagnose, metadata

pytestmark = pytest.mark.slow
Program = Callable[..., "subprocess.CompletedProcess[str]"]

WITHOUT_PADDLE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "paddle":
            raise ModuleNotFoundError("No module named 'paddle'", name="paddle")

sys.meta_path.insert(0, Absent())
"""


def checks_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert "Traceback" not in done.stderr, done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_this_machine_can_train(run_fastffn: Program) -> None:
    done = run_fastffn("doctor", "--device", "cpu", "--json")
    checks = checks_of(done)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["ok"] is True
    assert all(set(check) == {"name", "status", "detail", "remedy"} for check in checks.values())
    assert "loss 4." in checks["training"]["detail"]
    assert "GFLOP/s" in checks["matrix product"]["detail"]
    assert "silently ignores AMP" in checks["mixed precision"]["detail"]
    assert done.stderr == ""


def test_absent_device_is_a_problem_with_a_remedy(run_fastffn: Program) -> None:
    done = run_fastffn("doctor", "--device", "npu")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no plugin registers 'npu'" in done.stdout
    assert '-> pip install "fastffn[npu]"' in done.stdout
    assert "npu-smi is not on the PATH" in done.stdout
    assert "problems to solve before training" in done.stdout


def test_missing_paddle_leaves_the_other_checks(run_fastffn: Program, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PADDLE)
    root = Path(__file__).parents[2]
    done = run_fastffn("doctor", "--json", env={"PYTHONPATH": f"{tmp_path}:{root}"})
    checks = checks_of(done)
    assert done.returncode == 2
    assert checks["paddle"]["status"] == "problem"
    assert all(f"fastffn[{extra}]" in checks["paddle"]["remedy"] for extra in ("cpu", "gpu", "npu"))
    assert checks["python"]["status"] == "ok"
    assert "threads" in checks["cpu"]["detail"] or "thread" in checks["cpu"]["detail"]


def test_broken_plugin_is_named_as_the_suspect(run_fastffn: Program, tmp_path: Path) -> None:
    (tmp_path / "libpaddle-custom-npu.so").write_text("no library")
    env = {"CUSTOM_DEVICE_ROOT": str(tmp_path)}
    done = run_fastffn("doctor", "--device", "npu", "--json", env=env)
    checks = checks_of(done)
    paddle = checks["paddle"]
    assert done.returncode == 2
    assert paddle["status"] == "problem"
    assert f"CUSTOM_DEVICE_ROOT={tmp_path}" in paddle["remedy"]
    # What a plugin needs is looked at all the same: its absence may be the cause.
    assert checks["cann"]["status"] == "problem"


def test_forced_matrix_path_that_would_kill_is_found_first(run_fastffn: Program) -> None:
    if cpu.read_processor()[1] >= cpu.AVX512_FLAGS:
        pytest.skip("this processor has AVX-512")
    done = run_fastffn("doctor", "--device", "cpu", "--json", env={"MKL_DEBUG_CPU_TYPE": "7"})
    checks = checks_of(done)
    assert done.returncode == 2
    assert checks["cpu"]["status"] == "problem"
    assert checks["cpu"]["remedy"] == "unset MKL_DEBUG_CPU_TYPE"
    assert checks["training"]["status"] == "ok"


def test_a_working_npu_may_train_although_its_driver_is_not_seen(
    run_fastffn: Program, npu_env: dict[str, str]
) -> None:
    env = {**npu_env, "HOST_NPU_DEVICES": "2"}
    done = run_fastffn("doctor", "--device", "npu", "--json", env=env)
    checks = checks_of(done)
    assert done.returncode == 0, done.stdout
    assert checks["plugin"]["detail"] == "npu (2 visible)"
    assert checks["device"]["detail"] == "npu:0 (others: npu:1, cpu)"
    assert checks["mixed precision"]["detail"] == "float16, bfloat16"
    assert "steps of a tiny low-rank GPT on npu:0" in checks["training"]["detail"]
    for name in ("npu driver", "cann", "npu versions"):
        assert checks[name]["status"] == "note"
        assert checks[name]["remedy"]


def test_an_npu_that_fails_is_a_problem_not_a_traceback(
    run_fastffn: Program, npu_env: dict[str, str]
) -> None:
    env = {**npu_env, "HOST_NPU_MEMORY_MIB": "0"}
    done = run_fastffn("doctor", "--device", "npu", "--json", env=env)
    checks = checks_of(done)
    assert done.returncode == 2
    assert "a tiny model fails on npu:0" in checks["training"]["detail"]
    assert "--device cpu" in checks["training"]["remedy"]
    assert checks["npu driver"]["status"] == "problem"
    assert "set_env.sh" in checks["cann"]["remedy"]


@pytest.mark.parametrize(
    ("version", "status"), [("1.26.4", "ok"), ("2.3.5", "ok"), ("2.4.0", "problem")]
)
def test_numpy_bound(monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: version)
    check = check_numpy()
    assert check.status == status
    if status == "problem":
        assert check.remedy == 'pip install "numpy>=1.26,<2.4"'


def test_check_that_breaks_becomes_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> Check:
        raise RuntimeError("no such file\nsecond line")

    monkeypatch.setattr("fastffn_cli.engine.diagnose.check_disk", explode)
    disk = next(check for check in diagnose("cpu") if check.name == "disk")
    assert disk.status == "problem"
    assert "RuntimeError: no such file" in disk.detail
    assert disk.remedy
