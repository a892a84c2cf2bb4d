"""What is freed stays with the process: no page faults for the next allocation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PROCESS_TIMEOUT_S, program_env

# Two blocks are allocated, written and freed twice; the second time's page faults are counted.
TRIAL = """
import ctypes, resource
from fastffn_cli.engine.host_memory import keep_freed_memory

kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def use(size=40 << 20):
    blocks = [libc.malloc(size) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run_trial(variables: dict[str, str]) -> tuple[str, int]:
    finished = subprocess.run(
        [sys.executable, "-c", TRIAL],
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        env=program_env() | variables,
        check=True,
    )
    kept, faults = finished.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_used_again_has_no_page_faults() -> None:
    kept, faults = run_trial({})

    assert kept == "True"
    assert faults < 100  # of 20,480 pages


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=100"}],
    ids=["variable", "tunable"],
)
def test_the_users_own_settings_of_malloc_stay(variables: dict[str, str]) -> None:
    kept, faults = run_trial(variables)

    assert kept == "False"
    assert faults > 10_000
