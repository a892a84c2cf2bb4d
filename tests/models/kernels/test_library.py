"""The library of CPU kernels: built once, loaded on every path of instructions, or absent."""

import os
import subprocess
import sys

import numpy as np
import paddle
import pytest

from models.kernels import compiler, library
from tests.models.kernels.on_path import PATHS, is_at_most

TRIAL = """
import numpy, paddle, sys
from models.kernels import library
print(library.load())
x = numpy.random.default_rng(int(sys.argv[1])).uniform(-87, 88, 100_003).astype("float32")
y = library.run("exponentials", paddle.to_tensor(x)).numpy()
print(numpy.abs(y / numpy.exp(x.astype("float64")) - 1).max())
"""


def run_trial(**environment: str) -> subprocess.CompletedProcess[str]:
    seed = str(np.random.default_rng().integers(1 << 30))
    return subprocess.run(
        [sys.executable, "-c", TRIAL, seed],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize("path", PATHS)
def test_exponentials_agree_with_float64_on_every_path(path):
    finished = run_trial(FASTFFN_KERNELS=path)

    used, error = finished.stdout.split()
    assert is_at_most(used, path)
    assert float(error) < 3e-7


def test_a_library_that_is_built_loads_again_without_a_compiler():
    library.load()

    finished = run_trial(CXX="no-such-compiler")

    assert library.is_built()
    assert finished.returncode == 0


def test_kernels_that_are_switched_off_say_so():
    finished = run_trial(FASTFFN_KERNELS="off")

    assert finished.stderr.splitlines()[-1].endswith("Unavailable: FASTFFN_KERNELS=off")


def test_no_compiler_is_a_reason_and_no_crash(tmp_path):
    finished = run_trial(CXX="no-such-compiler", FASTFFN_CACHE_DIR=str(tmp_path))

    assert "Unavailable: no C++ compiler (no-such-compiler) on the PATH" in finished.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_kernels_serve_float32_on_the_cpu_alone():
    library.load()

    assert library.serves(paddle.ones([2]), None)
    assert not library.serves(paddle.ones([2]), paddle.ones([2], dtype="float64"))


def test_suspended_kernels_serve_nothing():
    library.load()

    with library.suspended():
        assert not library.serves(paddle.ones([2]))
        assert library.path() is None
    assert library.serves(paddle.ones([2]))


def test_files_of_one_instruction_set_share_no_function_with_the_others(tmp_path):
    """A weak symbol would be kept once: perhaps the copy with instructions that are not there."""
    library.load()
    command = [compiler.find_compiler(), *compiler.COMMON_FLAGS, *compiler.X86_PATHS["avx512"]]
    source = compiler.SOURCES / "path.cc"
    out = tmp_path / "path.o"
    subprocess.run(
        [*command, "-DFASTFFN_PATH=avx512", "-Wno-psabi", "-c", "-o", out, source], check=True
    )
    symbols = subprocess.run(["nm", out], capture_output=True, text=True, check=True).stdout

    weak = [line for line in symbols.splitlines() if line.split()[-2] in {"W", "V", "u"}]
    assert not weak
