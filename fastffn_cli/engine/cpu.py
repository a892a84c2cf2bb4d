"""Two environment variables that make Paddle's CPU matrix products several times faster.

Separate, and free of numpy and paddle, because both variables are read once, when Paddle's
libraries start: this module has to run first.

* `OMP_NUM_THREADS`: Paddle sets it to 1 when it is unset. We set it to the usable cores.
* `MKL_DEBUG_CPU_TYPE`: the x86-64 wheel of Paddle 3.3 ships an Intel library of 2019 that takes a
  slow path on processors which do not say GenuineIntel. The variable (undocumented, gone from newer
  releases) names the path by hand: 5 = AVX2, 7 = AVX-512. A path whose instructions the processor
  lacks kills the process with SIGILL, so it is set only after reading the processor's flags.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

THREADS_VARIABLE = "OMP_NUM_THREADS"
MKL_VARIABLE = "MKL_DEBUG_CPU_TYPE"
SWITCH_VARIABLE = "FASTFFN_CPU_FAST_MATH"

MKL_AVX2 = 5
MKL_AVX512 = 7
# The library's AVX-512 path is compiled for servers ("SKX"): it uses all of these subsets.
AVX512_FLAGS = frozenset({"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"})
AVX2_FLAGS = frozenset({"avx2", "fma"})
# Hygon's processors are AMD's first Zen under another name, and take the same slow path.
VENDORS = frozenset({"AuthenticAMD", "HygonGenuine"})

CPUINFO_FILE = Path("/proc/cpuinfo")
CGROUP_FILE = Path("/proc/self/cgroup")
CGROUP_DIR = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CpuSetup:
    """What `prepare_environment` did, and why.

    `threads` are those that Paddle's matrix products use, `cores` those the process may use,
    `mkl_cpu_type` the value of `MKL_DEBUG_CPU_TYPE` in effect (None: the library decides).
    `applied` is False when paddle was already imported, so that nothing could be changed.
    """

    threads: int
    cores: int
    mkl_cpu_type: int | None
    reason: str
    applied: bool


@dataclass(frozen=True)
class _Done:
    """The last setup, and which variables are ours: those may be changed again, the user's not."""

    setup: CpuSetup
    wrote_threads: bool
    wrote_mkl: bool


_done: _Done | None = None


def prepare_environment(threads: int | None = None, fast_math: bool = True) -> CpuSetup:
    """Set the thread count and the matrix path for this process, before paddle is imported.

    `threads` (None: all usable cores) beats a variable of the user's, and that beats our choice.
    `fast_math=False` or `FASTFFN_CPU_FAST_MATH=0` leaves the matrix path alone.
    Idempotent; once paddle is imported nothing changes any more, and the answer says so.
    """
    global _done
    if "paddle" in sys.modules:
        return _setup_too_late()
    wrote_threads = _done is not None and _done.wrote_threads
    wrote_mkl = _done is not None and _done.wrote_mkl
    cores = usable_cores()
    count, threads_reason, wrote_threads = _choose_threads(threads, cores, wrote_threads)
    cpu_type, mkl_reason, wrote_mkl = _choose_mkl(fast_math, wrote_mkl)
    setup = CpuSetup(count, cores, cpu_type, f"{threads_reason}; {mkl_reason}", applied=True)
    _done = _Done(setup, wrote_threads, wrote_mkl)
    return setup


def usable_cores() -> int:
    """Count the processors this process may use: its affinity, cut by the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def choose_mkl_cpu_type(vendor: str, flags: Iterable[str]) -> int | None:
    """Return the fastest path that a processor of `vendor` with these flags can execute.

    None on other vendors (Intel's own dispatch is right there) and where the flags do not suffice.
    """
    available = frozenset(flags)
    if vendor not in VENDORS or not available >= AVX2_FLAGS:
        return None
    return MKL_AVX512 if available >= AVX512_FLAGS else MKL_AVX2


def read_processor(file: Path = CPUINFO_FILE) -> tuple[str, frozenset[str]]:
    """Return the vendor and the flags that *every* processor of the machine has."""
    vendor = ""
    flags: frozenset[str] | None = None
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "vendor_id":
            vendor = value.strip()
        elif key.strip() == "flags":
            own = frozenset(value.split())
            flags = own if flags is None else flags & own
    return vendor, flags or frozenset()


def check_matmul(size: int = 384) -> float:
    """Return max |float32 - float64| / max |float64| of one product on the CPU: about 3e-7.

    Shapes [size, size]. Imports paddle; the current device is left alone.
    """
    import numpy as np
    import paddle

    random = np.random.RandomState(1234)
    left = random.standard_normal((size, size)).astype("float32")
    right = random.standard_normal((size, size)).astype("float32")
    exact = left.astype("float64") @ right.astype("float64")
    place = paddle.CPUPlace()
    product = paddle.to_tensor(left, place=place) @ paddle.to_tensor(right, place=place)
    return float(np.abs(product.numpy() - exact).max() / np.abs(exact).max())


def measure_matmul(size: int = 1024, seconds: float = 0.5) -> float:
    """Return GFLOP/s of the fastest of several [size, size] float32 products on the CPU."""
    import paddle

    place = paddle.CPUPlace()
    left = paddle.to_tensor([[1.0]], place=place).expand([size, size]).contiguous()
    fastest = math.inf
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        paddle.matmul(left, left)
        fastest = min(fastest, time.perf_counter() - before)
    return 2 * size**3 / fastest / 1e9


def _choose_threads(wanted: int | None, cores: int, ours: bool) -> tuple[int, str, bool]:
    if wanted is not None:
        os.environ[THREADS_VARIABLE] = str(wanted)
        return wanted, f"{wanted} threads as configured", True
    given = os.environ.get(THREADS_VARIABLE)
    if given is not None and not ours:
        # Paddle reads anything that is not a number as 1; OpenMP allows a list for nested levels.
        return _as_threads(given), f"{THREADS_VARIABLE}={given} is yours", False
    os.environ[THREADS_VARIABLE] = str(cores)
    return cores, f"{cores} threads on {cores} usable cores", True


def _choose_mkl(fast_math: bool, ours: bool) -> tuple[int | None, str, bool]:
    given = os.environ.get(MKL_VARIABLE)
    if given is not None and not ours:
        return _as_cpu_type(given), f"{MKL_VARIABLE}={given} is yours", False
    cpu_type, reason = _mkl_cpu_type_here(fast_math)
    if cpu_type is None:
        os.environ.pop(MKL_VARIABLE, None)
        return None, reason, False
    os.environ[MKL_VARIABLE] = str(cpu_type)
    return cpu_type, reason, True


def _mkl_cpu_type_here(fast_math: bool) -> tuple[int | None, str]:
    if os.environ.get(SWITCH_VARIABLE, "").strip().lower() in {"0", "false", "off", "no"}:
        return None, f"matrix path left alone: {SWITCH_VARIABLE}={os.environ[SWITCH_VARIABLE]}"
    if not fast_math:
        return None, "matrix path left alone: Global.cpu_fast_math is False"
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "AMD64"}:
        return None, "matrix path left alone: not x86-64 Linux"
    try:
        vendor, flags = read_processor()
    except OSError as error:
        return None, f"matrix path left alone: {error}"
    cpu_type = choose_mkl_cpu_type(vendor, flags)
    if cpu_type is None:
        return None, f"matrix path left to the library on {vendor or 'an unnamed processor'}"
    name = "AVX-512" if cpu_type == MKL_AVX512 else "AVX2"
    return cpu_type, f"{name} matrix path chosen for {vendor}"


def _setup_too_late() -> CpuSetup:
    if _done is not None:
        return _done.setup
    given = os.environ.get(MKL_VARIABLE)
    return CpuSetup(
        threads=_as_threads(os.environ.get(THREADS_VARIABLE, "1")),
        cores=usable_cores(),
        mkl_cpu_type=None if given is None else _as_cpu_type(given),
        reason="paddle was imported before, so its thread count and matrix path are fixed",
        applied=False,
    )


def _as_threads(text: str) -> int:
    try:
        return max(1, int(text))
    except ValueError:
        return 1


def _as_cpu_type(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _cpu_quota() -> float | None:
    """Return the smallest processor quota of this process's control groups, in cores."""
    quotas = []
    for directory in control_group_dirs("cpu"):
        quota = _read_quota(directory)
        if quota is not None:
            quotas.append(quota)
    return min(quotas, default=None)


def control_group_dirs(controller: str) -> list[Path]:
    """Return the directories whose limits bind this process, of both generations of cgroups.

    Inside a container the group's path may name the host's tree, which is not mounted: folders that
    do not exist are harmless, because the root of the mount is always among them.
    """
    try:
        lines = CGROUP_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    directories = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        # Generation 1 mounts each controller by its name, generation 2 has one tree without names.
        mount = CGROUP_DIR / controller if controllers else CGROUP_DIR
        group = mount / path.lstrip("/")
        directories.extend(
            [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
        )
    return directories


def _read_quota(directory: Path) -> float | None:
    try:
        limit, period = (directory / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            limit = (directory / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (directory / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        except OSError:
            return None
    if limit == "max" or int(limit) <= 0:
        return None
    return int(limit) / int(period)
