"""Building the library of CUDA kernels from `cuda/`, for the GPU that is there."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from models.kernels import compiler
from models.kernels.compiler import BuildError, Paddle

SOURCES = Path(__file__).parent / "cuda"
LIBRARY_NAME = "fastffn_cuda_kernels.so"
# Paddle's name of a type -> that of device.cuh.
TYPES = {"float32": "float", "float16": "Half", "bfloat16": "Bfloat16"}


def find_nvcc() -> Path:
    """Return nvcc: of $CUDA_HOME, or on the PATH; raises `BuildError` without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    wish = str(Path(home) / "bin" / "nvcc") if home else "nvcc"
    found = shutil.which(wish)
    if found is None:
        raise BuildError(f"no CUDA compiler ({wish})")
    return Path(found)


def cuda_release(nvcc: Path) -> str:
    """Return CUDA's version as nvcc tells it, like 12.6; raises `BuildError`."""
    return _ask(nvcc, ["--version"], r"release (\d+\.\d+)")


def cuda_home(nvcc: Path) -> Path:
    """Return the folder of nvcc's CUDA, which a link or script on the PATH does not tell.

    Raises `BuildError`.
    """
    return Path(_ask(nvcc, ["--dryrun", "-E", "-x", "cu", os.devnull], r"#\$ TOP=(\S+)")).resolve()


def _ask(nvcc: Path, options: list[str], pattern: str) -> str:
    try:
        done = subprocess.run(
            [nvcc, *options], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{nvcc} {options[0]} fails: {error}") from error
    found = re.search(pattern, done.stdout + done.stderr)
    if found is None:
        raise BuildError(f"{nvcc} {options[0]} does not tell {pattern}")
    return found[1]


def library_path(paddle: Paddle, capability: tuple[int, int]) -> Path:
    """Return where the library for this Paddle and compute capability lies or would lie."""
    digest = hashlib.sha256()
    parts = [paddle.version, platform.machine(), f"{capability[0]}.{capability[1]}"]
    digest.update("\n".join([*parts, *map(str, paddle.libs)]).encode())
    own = (Path(__file__), Path(compiler.__file__))  # the flags
    for source in (*sorted(SOURCES.iterdir()), *own):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return compiler.cache_folder() / f"cuda-{digest.hexdigest()[:16]}" / LIBRARY_NAME


def build(paddle: Paddle, capability: tuple[int, int], paddle_cuda: str) -> Path:
    """Compile the library unless it is there, and return its path; raises `BuildError`.

    `paddle_cuda` is the version of CUDA that Paddle was built with: nvcc has to be of the same
    major version, or two runtimes would meet in one process.
    """

    def compile_in(folder: Path) -> Path:
        nvcc = find_nvcc()
        release = cuda_release(nvcc)
        if release.split(".")[0] != paddle_cuda.split(".")[0]:
            raise BuildError(f"nvcc is of CUDA {release}, Paddle of CUDA {paddle_cuda}")
        return _compile(paddle, capability, nvcc, folder)

    return compiler.build_once(library_path(paddle, capability), compile_in)


def _compile(paddle: Paddle, capability: tuple[int, int], nvcc: Path, folder: Path) -> Path:
    if sys.platform != "linux":
        raise BuildError(f"the kernels are built on Linux only, this is {sys.platform}")
    architecture = f"sm_{capability[0]}{capability[1]}"
    commands = {f"{name}.o": kernel_command(nvcc, architecture, name) for name in TYPES}
    commands["operators.o"] = operators_command(paddle, nvcc)
    compiler.compile_all(commands, folder)
    libraries = cuda_home(nvcc) / "lib64"
    cuda = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lcudart"]
    linked = [*commands, *compiler.link_flags(paddle), *cuda]
    compiler.run_compiler(
        [compiler.find_compiler(), "-shared", "-o", LIBRARY_NAME, *linked], folder
    )
    return folder / LIBRARY_NAME


def kernel_command(nvcc: Path, architecture: str, dtype: str) -> list[str]:
    """Return the command, but for -c and -o, that compiles the kernels of one type."""
    defined = [f"-DFASTFFN_TYPE={TYPES[dtype]}", f"-DFASTFFN_TABLE={dtype}_kernels"]
    flags = ["-std=c++17", "-O3", f"-arch={architecture}", "-Xcompiler=-fPIC"]
    return [str(nvcc), *flags, *defined, str(SOURCES / "kernels.cu")]


def operators_command(paddle: Paddle, nvcc: Path) -> list[str]:
    """Return the command, but for -c and -o, that compiles the operators for Paddle."""
    include = cuda_home(nvcc) / "include"
    includes = [
        *(paddle.include, paddle.include / "third_party"),
        *(include, include / "cccl"),  # thrust, from CUDA 13 on
    ]
    return [
        *(compiler.find_compiler(), "-std=c++17", "-O2", "-fPIC", "-w"),
        *("-DPADDLE_WITH_CUDA", "-DPADDLE_NO_PYTHON"),
        *(f"-isystem{each}" for each in includes),
        str(SOURCES / "operators.cc"),
    ]
