"""The CUDA kernels, executed on a CPU by cuda_emulation.h: no GPU is needed, and none is tested.

The program is the one that checks them on a GPU, benchmarks/cuda_ffn/main.cu. With CUDA's compiler
at hand the sources are compiled as they would be on a machine with a GPU, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from models.kernels import compiler, cuda_compiler, library
from tests.conftest import ROOT_DIR

pytestmark = pytest.mark.slow

PROGRAM = ROOT_DIR / "benchmarks" / "cuda_ffn" / "main.cu"
EMULATION = Path(__file__).with_name("cuda_emulation.h")
CASES = 18  # 6 sizes x 3 types

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler")


def compile_emulated(sources: Path, folder: Path) -> Path:
    program = folder / "emulated"
    command = [
        *(compiler.find_compiler(), "-x", "c++", "-std=c++17", "-O1", "-Wno-unknown-pragmas"),
        *("-U_FORTIFY_SOURCE", "-fsanitize=alignment,bounds", "-fno-sanitize-recover=all"),
        *("-DFASTFFN_EMULATED", "-include", str(EMULATION), f"-I{sources}"),
        *(str(PROGRAM), "-o", str(program)),
    ]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_emulated(cuda_compiler.SOURCES, tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize("order", ["descending", "shuffled"])
def test_kernels_agree_with_float64_in_any_order_of_the_threads(emulated: Path, order: str) -> None:
    done = subprocess.run(
        [emulated, "check"],
        env=os.environ | {"EMULATION_ORDER": order},
        capture_output=True,
        text=True,
        check=False,
    )

    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| ok |") == CASES


@needs_nvcc
def test_kernels_compile_and_keep_their_registers(tmp_path: Path) -> None:
    command = cuda_compiler.kernel_command(cuda_compiler.find_nvcc(), "sm_80", "bfloat16")

    done = subprocess.run(
        [*command, "-Xptxas", "-v", "-c", "-o", tmp_path / "kernels.o"],
        capture_output=True,
        text=True,
        check=True,
    )

    told = [line for line in done.stderr.splitlines() if "spill" in line]
    assert told
    assert all("0 bytes spill stores, 0 bytes spill loads" in line for line in told)


@needs_nvcc
def test_the_operators_compile_with_paddles_headers(tmp_path: Path) -> None:
    command = cuda_compiler.operators_command(library.installed_paddle(), cuda_compiler.find_nvcc())

    subprocess.run([*command, "-c", "-o", tmp_path / "operators.o"], check=True)


def test_cuda_releases_are_read_from_the_compiler(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "Cuda compilation tools, release 12.6, V12.6.77"\n')
    nvcc.chmod(0o755)

    assert cuda_compiler.cuda_release(nvcc) == "12.6"


def test_another_cuda_than_paddles_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FASTFFN_CACHE_DIR", str(tmp_path / "cache"))

    with pytest.raises(compiler.BuildError, match=r"nvcc is of CUDA 13\.0, Paddle of CUDA 12\.6"):
        cuda_compiler.build(library.installed_paddle(), (9, 0), "12.6")
