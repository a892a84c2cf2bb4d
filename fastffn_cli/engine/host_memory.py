"""How much memory the machine has, what is free, and the most this process has used.

Separate from the devices because a container's limit, not the machine's memory, is what ends a run,
and finding it takes some reading. All figures are bytes. Imports neither paddle nor numpy.
"""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from pathlib import Path

import psutil

from fastffn_cli.engine.cpu import control_group_dirs

STATUS_FILE = Path("/proc/self/status")
CLEAR_REFS_FILE = Path("/proc/self/clear_refs")
# proc(5): writing 5 sets the peak resident size (VmHWM) back to the current one.
RESET_PEAK = "5"
# mallopt(3): how much free memory at the end of the heap makes glibc give it back (-1: none does),
# and how many blocks may have a mapping of their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# The same by the user's hand, see mallopt(3) and the tunables of glibc.
MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def total_memory() -> int:
    """Return the machine's memory, or the container's limit where that is smaller."""
    limits = [limit for limit, _ in _control_group_limits()]
    return min([psutil.virtual_memory().total, *limits])


def free_memory() -> int:
    """Return what can be allocated without swapping, within the container's and `ulimit -v`."""
    room = [max(0, limit - used) for limit, used in _control_group_limits()]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`
    if address_space != resource.RLIM_INFINITY:
        room.append(max(0, address_space - int(psutil.Process().memory_info().vms)))
    return min([psutil.virtual_memory().available, *room])


def peak_memory() -> int:
    """Return the largest resident size of this process since `reset_peak`, else since its start.

    Covers everything in the process, Paddle's own libraries (about 0.3 GB) included.
    """
    if _sampler is not None:
        return _sampler.peak()
    peak = _kernel_peak()
    if peak is not None:
        return peak
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Start a new measurement of `peak_memory`.

    The kernel's own counter is reset where it lets us; elsewhere a thread samples the resident size
    every 5 ms from now on.
    """
    global _sampler
    if _sampler is None and _kernel_peak() is not None:
        try:
            CLEAR_REFS_FILE.write_text(RESET_PEAK, encoding="ascii")
            return
        except OSError:
            pass  # a container without write access to its own /proc: sample instead
    if _sampler is None:
        _sampler = PeakSampler()
    _sampler.reset()


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is allocated next; tell whether it does.

    Paddle allocates every CPU tensor by malloc, and glibc gives blocks of a few MiB back to the
    kernel when they are freed: each operator's output then costs a page fault every 4 KiB, a tenth
    to a quarter of a step. The process stays as large as it ever was. Nothing is changed where the
    user has set glibc's own variables, or on another C library.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or any(name in os.environ for name in MALLOC_VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1)) and bool(mallopt(M_MMAP_MAX, 0))


class PeakSampler:
    """The largest resident size of this process, seen by a thread that looks every `period_s`."""

    def __init__(self, period_s: float = 0.005) -> None:
        self._process = psutil.Process()
        self._period_s = period_s
        self._peak = 0
        threading.Thread(target=self._watch, name="peak-memory", daemon=True).start()

    def reset(self) -> None:
        """Forget what was seen so far."""
        self._peak = int(self._process.memory_info().rss)

    def peak(self) -> int:
        """Return the largest size seen since `reset`."""
        return max(self._peak, int(self._process.memory_info().rss))

    def _watch(self) -> None:
        while True:
            self._peak = self.peak()
            time.sleep(self._period_s)


_sampler: PeakSampler | None = None


def _kernel_peak() -> int | None:
    """Read VmHWM, the kernel's own peak of the resident size (Linux)."""
    try:
        lines = STATUS_FILE.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group_limits() -> list[tuple[int, int]]:
    """Return (limit, used) of every control group that limits this process."""
    limits = []
    for directory in control_group_dirs("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _read_count(directory / limit_name)
            used = _read_count(directory / used_name)
            if limit is not None and used is not None:
                limits.append((limit, max(0, used - _reclaimable(directory))))
    return limits


def _reclaimable(directory: Path) -> int:
    """Return the group's file cache that the kernel drops before it refuses memory."""
    try:
        lines = (directory / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(maxsplit=1) for line in lines)
    return int(fields.get("total_inactive_file", fields.get("inactive_file", "0")))


def _read_count(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit
