"""Contestants: processes that train when they are asked and sleep in between.

Each has its own OpenMP runtime with its own defaults. An idle runtime keeps its threads spinning
for a moment (Intel's for 0.2 s), which would take the cores from whoever comes next: therefore the
pause before every turn. Nobody's settings are changed for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
PAUSE_S = 0.4
WARM_UP = 2
# What another process's choice must not decide here.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "KMP_BLOCKTIME", "OMP_WAIT_POLICY",
)  # fmt: skip


class Work(Protocol):
    """What the contestants of a comparison all do."""

    def as_json(self) -> str:
        """Return what its module reads as its first argument."""


@dataclass(frozen=True)
class Turn:
    """Seconds and loss of each update that was made."""

    seconds: list[float]
    losses: list[float]

    @property
    def step_s(self) -> float:
        """Mean seconds of an update."""
        return math.fsum(self.seconds) / len(self.seconds)


class Contestant:
    """A process that runs `benchmarks.rivals.MODULE` on a workload, warmed up when it is made."""

    def __init__(
        self, name: str, module: str, workload: Work, *words: str, env: Mapping[str, str] = {}
    ) -> None:
        self.name = name
        self.workload: Any = workload
        clean = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore:No ccache found", "-m", f"benchmarks.rivals.{module}",
             workload.as_json(), *words],
            cwd=ROOT, env={**clean, **env}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.versions: dict[str, str] = self._answer()
        self.first = self.train(WARM_UP)

    def train(self, steps: int) -> Turn:
        """Let it make some updates."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return Turn(**self._answer())

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}")
        return json.loads(line)


def take_turns(
    contestants: Sequence[Contestant], *, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Return each contestant's mean seconds of an update in every round.

    Each round begins with another contestant, so that nobody always follows the same one.
    """
    times: dict[str, list[float]] = {each.name: [] for each in contestants}
    for number in range(rounds):
        first = number % len(contestants)
        for each in [*contestants[first:], *contestants[:first]]:
            time.sleep(PAUSE_S)
            times[each.name].append(each.train(steps).step_s)
    return times


def ratio(theirs: list[float], ours: list[float]) -> list[float]:
    """Return their seconds over ours, round by round."""
    return [one / other for one, other in zip(theirs, ours, strict=True)]


def check_alike(contestants: Sequence[Contestant], tolerance: float = 1e-3) -> float:
    """Return by how much the losses of the first updates differ at most from the first one's.

    Raises `ValueError` above the tolerance: then they do not train the same model.
    """
    reference = contestants[0]
    worst = 0.0
    for each in contestants[1:]:
        pairs = list(zip(reference.first.losses, each.first.losses, strict=True))
        difference = max(abs(one - other) for one, other in pairs)
        if not difference <= tolerance:
            raise ValueError(
                f"{each.name} does not train what {reference.name} trains: losses {pairs}"
            )
        worst = max(worst, difference)
    return worst


def serve(step: Callable[[], float], versions: Mapping[str, str]) -> None:
    """Make as many updates as each line of stdin says; `step` makes one and returns its loss.

    Whatever else is printed in this process goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        _write(answers, dict(versions))
        for line in sys.stdin:
            seconds, losses = [], []
            for _ in range(int(line)):
                begun = time.perf_counter()
                losses.append(step())
                seconds.append(time.perf_counter() - begun)
            _write(answers, {"seconds": seconds, "losses": losses})


def _write(answers: Any, value: Any) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
