"""`make bench` runs: every command that it types starts and ends well, shortened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.all import COMMANDS

ROOT = Path(__file__).parent.parent
SHORT = {
    "bench": ("--rounds", "1", "--steps", "1"),
    "prepare_throughput.py": ("--rounds", "1", "--megabytes", "1"),
    "engine_overhead.py": ("--steps", "2"),
    "kinds.py": ("--hidden", "32", "--seq-len", "32", "--rounds", "1", "--steps", "1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_benchmark_runs(name, tmp_path):
    (command,) = [words for words in COMMANDS if name in {Path(word).name for word in words}]
    result = subprocess.run(
        [sys.executable, *command, *SHORT[name]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "ratio" in result.stdout + result.stderr


def test_every_benchmark_command_is_tried():
    assert len(COMMANDS) == len(SHORT)
