"""What this machine can do for training, as a list of checks: the logic of `doctor`.

Every check works without the ones before it, so that a machine without paddle, or with a broken
one, still gets the whole list. A check that fails unexpectedly becomes a problem, not a traceback.
"""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fastffn_cli.engine import cpu
from fastffn_cli.engine.paddle_build import first_line, import_paddle
from fastffn_cli.errors import FastFFNError

Status = Literal["ok", "note", "problem"]

OLDEST_PYTHON = (3, 10)
REQUIRED_PACKAGES = (
    "typer",
    "rich",
    "pyyaml",
    "pydantic",
    "safetensors",
    "tokenizers",
    "matplotlib",
    "psutil",
)
PADDLE_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu")
NPU_PACKAGE = "paddle-custom-npu"
ASCEND_NAMES = ("npu", "ascend")
NUMPY_BELOW = (2, 4)
LOW_DISK = 2**30
LOW_MEMORY = 2 * 2**30
LARGEST_MATMUL_ERROR = 1e-5
INCOMPLETE_REMEDY = "Solve the problems above first, or reinstall fastffn"


@dataclass(frozen=True)
class Check:
    """One finding. `remedy` is what to type or do; every problem has one.

    `note` is worth knowing and stops nothing; `problem` stops training.
    """

    name: str
    status: Status
    detail: str
    remedy: str | None = None


def diagnose(device_name: str = "auto") -> Iterator[Check]:
    """Yield all checks, the quick ones first; the last ones train a tiny model on the device."""
    setup = cpu.prepare_environment()
    for name, check in (
        ("python", check_python),
        ("packages", check_packages),
        ("numpy", check_numpy),
        ("text encoding", check_encoding),
        ("cpu", lambda: check_cpu(setup)),
        ("memory", check_memory),
        ("disk", check_disk),
        ("c++ compiler", check_compiler),
    ):
        yield _guarded(name, check)
    # A forced path that the processor cannot execute would kill this process at the first product.
    if forced_path_is_illegal():
        del os.environ[cpu.MKL_VARIABLE]
    yield _guarded("paddle", check_paddle)
    works = False
    if "paddle" in sys.modules:
        yield _guarded("matrix product", lambda: check_matrix_product(setup))
        for found in _check_on_device(device_name):
            works = (found.name, found.status) == ("training", "ok")
            yield found
    if concerns_ascend(device_name):
        yield from _check_ascend(works)


def concerns_ascend(device_name: str) -> bool:
    """Whether the driver and CANN matter: the device is asked for, or its plugin is installed."""
    if device_name.partition(":")[0].strip().lower() in ASCEND_NAMES:
        return True
    try:
        return device_name == "auto" and bool(metadata.version(NPU_PACKAGE))
    except metadata.PackageNotFoundError:
        return False


def check_python() -> Check:
    """Python's version against the oldest one that fastffn runs on."""
    detail = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info >= OLDEST_PYTHON:
        return Check("python", "ok", detail)
    return Check("python", "problem", detail, "Install Python 3.10 or newer")


def check_packages() -> Check:
    """The packages that the base installation brings."""
    found, missing = [], []
    for package in REQUIRED_PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Check("packages", "problem", f"missing: {', '.join(missing)}", remedy)
    return Check("packages", "ok", ", ".join(found))


def check_numpy() -> Check:
    """The numpy bound: 2.4 breaks Paddle 3.3.1's GradScaler at its first overflow."""
    remedy = 'pip install "numpy>=1.26,<2.4"'
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return Check("numpy", "problem", "not installed", remedy)
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= NUMPY_BELOW:
        detail = f"{version}: float16 training fails at the first overflow with numpy 2.4 and newer"
        return Check("numpy", "problem", detail, remedy)
    return Check("numpy", "ok", version)


def check_encoding() -> Check:
    """UTF-8 for files and for the terminal."""
    preferred = locale.getpreferredencoding(False)
    terminal = getattr(sys.stdout, "encoding", None) or "none"
    detail = f"files {preferred}, stdout {terminal}"
    if all(name.lower().replace("-", "") == "utf8" for name in (preferred, terminal)):
        return Check("text encoding", "ok", detail)
    remedy = "export PYTHONUTF8=1   (or LANG=C.UTF-8): generated text may not print otherwise"
    return Check("text encoding", "note", detail, remedy)


def check_cpu(setup: cpu.CpuSetup) -> Check:
    """Threads and matrix path, and whether somebody's variable stands in the way."""
    threads = f"{setup.threads} thread{'s' if setup.threads != 1 else ''}"
    path = {5: "AVX2", 7: "AVX-512"}.get(setup.mkl_cpu_type or 0, "the library's own choice")
    detail = f"{threads} on {setup.cores} usable cores, matrix path: {path} ({setup.reason})"
    if forced_path_is_illegal():
        detail = (
            f"{cpu.MKL_VARIABLE}={os.environ[cpu.MKL_VARIABLE]} asks for instructions this "
            "processor does not have: Paddle would die with 'Illegal instruction'"
        )
        return Check("cpu", "problem", detail, f"unset {cpu.MKL_VARIABLE}")
    if setup.threads < setup.cores:
        remedy = f"unset {cpu.THREADS_VARIABLE}   uses all {setup.cores}"
        return Check("cpu", "note", detail, remedy)
    return Check("cpu", "ok", detail)


def forced_path_is_illegal() -> bool:
    """Whether `MKL_DEBUG_CPU_TYPE` names a matrix path that would kill the process (SIGILL)."""
    needed = {"5": cpu.AVX2_FLAGS, "7": cpu.AVX512_FLAGS}.get(os.environ.get(cpu.MKL_VARIABLE, ""))
    try:
        return needed is not None and not cpu.read_processor()[1] >= needed
    except OSError:
        return False


def check_memory() -> Check:
    """Memory of the machine or the container."""
    from fastffn_cli.engine import host_memory  # needs psutil, which may be what is missing

    free, total = host_memory.free_memory(), host_memory.total_memory()
    detail = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free < LOW_MEMORY:
        return Check("memory", "note", detail, "Close other programs, or train a small model")
    return Check("memory", "ok", detail)


def check_disk() -> Check:
    """Room for checkpoints where the program was started."""
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "note", f"{folder} is read-only", "cd to a folder you may write to")
    if free < LOW_DISK:
        remedy = "Make room, or point -o Engine.save_load.output_dir=... to another disk"
        return Check("disk", "note", detail, remedy)
    return Check("disk", "ok", detail)


def check_compiler() -> Check:
    """A C++ compiler, which the CPU kernels are compiled by; nothing needs one to train."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler:
        return Check("c++ compiler", "ok", compiler)
    remedy = "apt install g++   (training on the CPU is slower without)"
    return Check("c++ compiler", "note", "none: compiled kernels are not available", remedy)


def check_paddle() -> Check:
    """Paddle's build and version, and that it imports."""
    installed = []
    for package in PADDLE_PACKAGES:
        try:
            installed.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    try:
        import_paddle()
    except FastFFNError as error:
        return Check("paddle", "problem", error.message, error.hint)
    import paddle

    if len(installed) > 1:
        detail = f"two builds are installed over each other: {', '.join(installed)}"
        remedy = f"pip uninstall {' '.join(PADDLE_PACKAGES)}   then install one of them"
        return Check("paddle", "problem", detail, remedy)
    build = f"CUDA {paddle.version.cuda()}" if paddle.is_compiled_with_cuda() else "CPU build"
    return Check("paddle", "ok", f"{''.join(installed) or paddle.__version__}, {build}")


def check_matrix_product(setup: cpu.CpuSetup) -> Check:
    """One product against float64, and how fast products are with this set-up."""
    error, speed = cpu.check_matmul(), cpu.measure_matmul()
    detail = f"{speed:.0f} GFLOP/s float32, error {error:.1e} against float64"
    if error > LARGEST_MATMUL_ERROR:
        remedy = f"export {cpu.SWITCH_VARIABLE}=0   leaves the matrix path to the library"
        return Check("matrix product", "problem", f"wrong: {detail}", remedy)
    if not setup.applied:
        return Check("matrix product", "note", detail, setup.reason)
    return Check("matrix product", "ok", detail)


def _check_on_device(device_name: str) -> Iterator[Check]:
    try:
        from fastffn_cli.engine import device_checks
        from fastffn_cli.engine.device import custom_device_types, use_device
    except ImportError as error:  # a package is missing that `packages` has named
        yield Check("device", "problem", f"not checked: {first_line(error)}", INCOMPLETE_REMEDY)
        return
    if custom_device_types():
        yield _guarded("plugin", device_checks.check_plugin)
    try:
        device = use_device(device_name)
    except FastFFNError as error:
        yield Check("device", "problem", error.message, error.hint)
        return
    yield _guarded("device", lambda: device_checks.check_device(device))
    if device.type == "cpu":
        yield _guarded("cpu kernels", device_checks.check_kernels)
    yield _guarded("mixed precision", lambda: device_checks.check_precision(device))
    yield _guarded("training", lambda: device_checks.check_training(device))


def _check_ascend(works: bool) -> Iterator[Check]:
    try:
        from fastffn_cli.engine.ascend import check_ascend

        yield from check_ascend(works=works)
    except Exception as error:
        yield _failed("npu", error)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        return _failed(name, error)


def _failed(name: str, error: Exception) -> Check:
    return Check(
        name,
        "problem",
        f"the check itself failed: {type(error).__name__}: {first_line(error)}",
        "If the cause is not on your side, please report it with the output of "
        "fastffn doctor --json",
    )
