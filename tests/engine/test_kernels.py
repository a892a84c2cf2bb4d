"""The CPU kernels of a process: compiled at first use, switched off, or missed with a notice."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fastffn_cli.engine.device import Device, use_device
from fastffn_cli.engine.kernels import COMPILING, prepare_kernels
from fastffn_cli.engine.run import read_metrics
from models.kernels import library, low_rank_inner
from tests.conftest import Workplace

NOTICE = "the CPU kernels are not used, training is slower without them: no C++ compiler"
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def kernels_on_again() -> object:
    yield
    library.switch(on=True)
    low_rank_inner.choose_form("auto")


def test_a_cpu_has_kernels_once_they_are_compiled() -> None:
    use_device("cpu")

    assert library.path() in {"portable", "avx2", "avx512"}


def test_a_process_may_do_without_them() -> None:
    use_device("cpu", kernels=False)

    assert library.path() is None


def test_nothing_is_said_of_kernels_that_are_there() -> None:
    said: list[str] = []

    assert prepare_kernels(use_device("cpu"), wanted=True, say=said.append) is None
    assert said == []


def test_other_devices_have_none_and_need_no_word() -> None:
    assert prepare_kernels(Device("npu"), wanted=True, say=pytest.fail) is None


def test_a_fused_feed_forward_that_a_device_has_not_is_told() -> None:
    reason = prepare_kernels(Device("npu"), wanted=True, say=pytest.fail, low_rank_ffn="fused")

    assert reason == "Fused.low_rank_ffn: the kernels are not used: there are none for npu"


def test_the_cuda_kernels_need_a_paddle_for_cuda() -> None:
    reason = prepare_kernels(Device("gpu"), wanted=True, say=pytest.fail, low_rank_ffn="fused")

    assert reason == (
        "Fused.low_rank_ffn: the kernels are not used: this Paddle is not one for CUDA"
    )


def test_chunks_are_used_where_they_are_asked_for() -> None:
    use_device("cpu", low_rank_ffn="chunked")
    assert low_rank_inner.is_chunked()

    use_device("cpu")
    assert not low_rank_inner.is_chunked()


@pytest.mark.slow
def test_chunks_train_as_the_kernel_does(workplace: Workplace) -> None:
    losses = []
    for form in ("chunked", "fused"):
        options = ("-o", f"Fused.low_rank_ffn={form}", "-o", f"Engine.save_load.output_dir={form}")
        done = workplace.run_fastffn(
            *("pretrain", "-c", "tiny.yaml", "-o", "Engine.max_steps=4", *options)
        )
        assert done.returncode == 0, done.stderr
        records = read_metrics(workplace.dir / form / "tiny")
        losses.append([each["loss"] for each in records if each["event"] == "train"])

    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_the_first_run_compiles_them_and_says_so(workplace: Workplace, tmp_path: Path) -> None:
    cache = {"FASTFFN_CACHE_DIR": str(tmp_path / "cache")}

    first = workplace.run_fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", env=cache)
    second = workplace.run_fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", env=cache)

    assert first.returncode == second.returncode == 0, first.stderr
    assert COMPILING in first.stderr
    assert COMPILING not in second.stderr
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 1


@pytest.mark.slow
def test_without_a_compiler_a_run_trains_all_the_same_and_says_why(
    workplace: Workplace, tmp_path: Path
) -> None:
    env = {"FASTFFN_CACHE_DIR": str(tmp_path / "cache"), "CXX": "no-such-compiler"}

    done = workplace.run_fastffn("pretrain", "-c", "tiny.yaml", "-o", "Engine.max_steps=2", env=env)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count(NOTICE) == 1


@pytest.mark.slow
def test_kernels_nobody_wants_are_neither_compiled_nor_missed(
    workplace: Workplace, tmp_path: Path
) -> None:
    env = {"FASTFFN_CACHE_DIR": str(tmp_path / "cache"), "CXX": "no-such-compiler"}
    switched_off = ("-o", "Global.cpu_kernels=False", "-o", "Engine.max_steps=2")

    done = workplace.run_fastffn("pretrain", "-c", "tiny.yaml", *switched_off, env=env)

    assert done.returncode == 0, done.stderr
    assert "CPU kernels" not in done.stderr
    assert not (tmp_path / "cache").exists()
