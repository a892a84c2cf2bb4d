"""The CPU set-up: which variables are set, when, and never against the user or the processor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastffn_cli.engine import cpu
from tests.conftest import program_env

AVX512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
AVX2 = {"avx2", "fma"}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process in which nothing was set up and paddle is not imported yet."""
    monkeypatch.setattr(cpu, "_done", None)
    monkeypatch.delitem(sys.modules, "paddle", raising=False)
    for name in (cpu.THREADS_VARIABLE, cpu.MKL_VARIABLE, cpu.SWITCH_VARIABLE):
        monkeypatch.setenv(name, "x")  # so that what the code sets is undone afterwards
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def amd(clean: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The same on an AMD processor with AVX2."""
    clean.setattr(cpu.sys, "platform", "linux")
    clean.setattr(cpu.platform, "machine", lambda: "x86_64")
    clean.setattr(cpu, "read_processor", lambda: ("AuthenticAMD", frozenset(AVX2)))
    return clean


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", AVX2 | AVX512, 7),
        ("AuthenticAMD", AVX2 | AVX512 - {"avx512bw"}, 5),
        ("AuthenticAMD", AVX2, 5),
        ("HygonGenuine", AVX2, 5),
        ("AuthenticAMD", {"avx2"}, None),
        ("AuthenticAMD", {"sse4_2"}, None),
        ("GenuineIntel", AVX2 | AVX512, None),
        ("", AVX2 | AVX512, None),
    ],
)
def test_matrix_path_needs_the_vendor_and_all_instructions(
    vendor: str, flags: set[str], expected: int | None
) -> None:
    assert cpu.choose_mkl_cpu_type(vendor, flags) == expected


def test_only_flags_of_every_processor_count(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    one = "vendor_id\t: AuthenticAMD\nflags\t\t: {}\n\n"
    file.write_text(one.format("fpu avx2 fma avx512f") + one.format("fpu avx2 fma"))
    assert cpu.read_processor(file) == ("AuthenticAMD", frozenset({"fpu", "avx2", "fma"}))


def test_unset_threads_become_all_usable_cores(clean: pytest.MonkeyPatch) -> None:
    clean.setattr(cpu, "usable_cores", lambda: 6)
    setup = cpu.prepare_environment()
    assert (setup.threads, setup.cores, setup.applied) == (6, 6, True)
    assert cpu.os.environ["OMP_NUM_THREADS"] == "6"


def test_threads_of_the_user_stay(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("OMP_NUM_THREADS", "3")
    setup = cpu.prepare_environment()
    assert setup.threads == 3
    assert cpu.os.environ["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS=3 is yours" in setup.reason


def test_configured_threads_beat_the_variable(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("OMP_NUM_THREADS", "3")
    assert cpu.prepare_environment(threads=2).threads == 2
    assert cpu.os.environ["OMP_NUM_THREADS"] == "2"


def test_matrix_path_is_set_where_it_helps(amd: pytest.MonkeyPatch) -> None:
    assert cpu.prepare_environment().mkl_cpu_type == 5
    assert cpu.os.environ["MKL_DEBUG_CPU_TYPE"] == "5"


def test_matrix_path_of_the_user_stays(amd: pytest.MonkeyPatch) -> None:
    amd.setenv("MKL_DEBUG_CPU_TYPE", "4")
    assert cpu.prepare_environment().mkl_cpu_type == 4
    assert cpu.os.environ["MKL_DEBUG_CPU_TYPE"] == "4"


def test_matrix_path_is_left_alone_by_the_environment_switch(amd: pytest.MonkeyPatch) -> None:
    amd.setenv("FASTFFN_CPU_FAST_MATH", "0")
    assert cpu.prepare_environment().mkl_cpu_type is None
    assert "MKL_DEBUG_CPU_TYPE" not in cpu.os.environ


def test_matrix_path_is_left_alone_by_the_configuration(amd: pytest.MonkeyPatch) -> None:
    cpu.prepare_environment()
    assert cpu.prepare_environment(fast_math=False).mkl_cpu_type is None
    assert "MKL_DEBUG_CPU_TYPE" not in cpu.os.environ


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "aarch64")])
def test_matrix_path_is_left_alone_off_x86_linux(
    amd: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    amd.setattr(cpu.sys, "platform", system)
    amd.setattr(cpu.platform, "machine", lambda: machine)
    assert cpu.prepare_environment().mkl_cpu_type is None


def test_second_call_changes_nothing(amd: pytest.MonkeyPatch) -> None:
    assert cpu.prepare_environment() == cpu.prepare_environment()


def test_too_late_is_said(clean: pytest.MonkeyPatch) -> None:
    clean.setitem(sys.modules, "paddle", ModuleType("paddle"))
    setup = cpu.prepare_environment(threads=5)
    assert not setup.applied
    assert setup.threads == 1
    assert "imported before" in setup.reason
    assert "OMP_NUM_THREADS" not in cpu.os.environ


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/box\n", {"box/cpu.max": "250000 100000\n", "cpu.max": "max 100000\n"}, 2),
        ("0::/box\n", {"box/cpu.max": "50000 100000\n"}, 1),
        (
            "3:cpu,cpuacct:/not/mounted\n",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("", {}, 8),
    ],
)
def test_container_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    membership: str,
    files: dict[str, str],
    expected: int,
) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cpu, "CGROUP_FILE", tmp_path / "membership")
    monkeypatch.setattr(cpu, "CGROUP_DIR", tmp_path)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cpu.usable_cores() == expected


def test_setting_up_imports_neither_paddle_nor_numpy() -> None:
    code = (
        "import sys; from fastffn_cli.engine.cpu import prepare_environment;"
        "prepare_environment(); print(sorted({'numpy', 'paddle'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=program_env(), check=True
    )
    assert done.stdout.strip() == "[]"


def test_products_agree_with_float64_under_this_setup() -> None:
    cpu.prepare_environment()
    assert 0 < cpu.check_matmul() < 2e-6
