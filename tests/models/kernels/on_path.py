"""Python processes whose kernels take one path of instructions: a process keeps what it loaded."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT_DIR

PATHS = ("portable", "avx2", "avx512")  # from the narrowest to the widest


def run_python(path: str, *arguments: str, threads: int | None = None) -> list[str]:
    """Return the words that `python *arguments` prints, with kernels of `path` at the most."""
    env = os.environ | {"FASTFFN_KERNELS": path}
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    finished = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT_DIR,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.split()


def is_at_most(used: str, path: str) -> bool:
    """Say whether a process asked for `path` used it, or a narrower one as this machine has."""
    return PATHS.index(used) <= PATHS.index(path)
