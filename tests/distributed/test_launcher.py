"""Real processes of Paddle's launcher: streams, failures, restarts, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import program_env

pytestmark = pytest.mark.slow

SCENE = Path(__file__).with_name("launch_scene.py")
PATIENCE_S = 60.0
SAVING_S = 5.0  # longer than Paddle's launcher leaves to the others once one has ended


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`begin(restarts, mode, ...)` starts a scene of two workers, whose logs are in `tmp_path`."""
    scenes: list[subprocess.Popen[str]] = []

    def call(restarts: int, *mode: str) -> subprocess.Popen[str]:
        command = [sys.executable, SCENE, tmp_path / "logs", 2, restarts, *mode]
        environment = program_env()
        environment.pop("OMP_NUM_THREADS", None)
        scenes.append(
            subprocess.Popen(
                list(map(str, command)),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return scenes[-1]

    yield call
    for scene in scenes:
        scene.kill()
        scene.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.1)


def begin_and_wait(
    begin: Any, tmp_path: Path, *mode: str
) -> tuple[subprocess.Popen[str], set[int]]:
    """Start a scene, and return it with the processes below it once both workers talk."""
    scene = begin(0, *mode)
    logs = [tmp_path / "logs" / "try-1" / f"rank-{rank}.log" for rank in (0, 1)]
    wait_until(lambda: all(log.exists() and "talk" in log.read_text() for log in logs))
    return scene, {child.pid for child in psutil.Process(scene.pid).children(recursive=True)}


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if is_alive(pid)}


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError):  # it has vanished while we looked
        return False


def test_rank_0_speaks_and_every_rank_has_a_log(begin: Any, tmp_path: Path) -> None:
    scene = begin(0, "done")
    out, err = scene.communicate(timeout=PATIENCE_S)
    assert scene.returncode == 0
    (said,) = map(json.loads, out.splitlines())
    assert said["rank"] == 0
    assert said["variables"]["PADDLE_TRAINERS_NUM"] == "2"
    assert said["variables"]["PADDLE_DISTRI_BACKEND"] == "gloo"
    assert int(said["variables"]["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert "talk of rank 0" in err
    assert "rank 1" not in err
    folder = tmp_path / "logs" / "try-1"
    assert (folder / "rank-1.log").read_text() == "talk of rank 1\n"
    assert json.loads((folder / "rank-1.out").read_text())["rank"] == 1
    assert (folder / "paddle").stat().st_mode & 0o077 == 0, "the environment is nobody's business"


def test_an_error_of_its_own_beats_a_lost_connection(begin: Any) -> None:
    scene = begin(3, "diverged")
    _, err = scene.communicate(timeout=PATIENCE_S)
    assert scene.returncode == 4
    assert "rank 1, training diverged:\nthe loss is not a number\nlower the rate\n" in err
    assert "restart" not in err, "it would diverge again"


def test_a_killed_rank_is_started_again_with_all_others(begin: Any, tmp_path: Path) -> None:
    scene = begin(2, "killed-once")
    out, err = scene.communicate(timeout=PATIENCE_S)
    assert scene.returncode == 0, err
    assert "rank 1: it was killed (signal 9, SIGKILL): all start again in 1 s from step 7" in err
    assert "restart 1 of 2" in err
    assert [json.loads(line)["turn"] for line in out.splitlines()] == ["first", "again"]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["try-1", "try-2"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_lets_every_rank_save(
    begin: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    scene, processes = begin_and_wait(begin, tmp_path, "wait", str(SAVING_S))
    assert len(processes) == 5  # Paddle's launcher, two watchers, two workers
    scene.send_signal(number)
    _, err = scene.communicate(timeout=PATIENCE_S)
    assert scene.returncode == code
    for rank in (0, 1):
        log = (tmp_path / "logs" / "try-1" / f"rank-{rank}.log").read_text()
        assert f"rank {rank} has saved" in log
    assert "every process has ended" in err
    assert not alive(processes)


def test_a_second_ctrl_c_ends_all_at_once(begin: Any, tmp_path: Path) -> None:
    scene, processes = begin_and_wait(begin, tmp_path, "wait", "60")
    scene.send_signal(signal.SIGINT)
    time.sleep(1.0)
    scene.send_signal(signal.SIGINT)
    _, err = scene.communicate(timeout=10)
    assert scene.returncode == 130
    assert "stopped at once\nLogs: " in err
    wait_until(lambda: not alive(processes))


@pytest.mark.parametrize("victim", ["launch", "Paddle's launcher"])
def test_no_process_outlives_a_kill_of_those_above(begin: Any, tmp_path: Path, victim: str) -> None:
    scene, processes = begin_and_wait(begin, tmp_path, "wait", "1")
    (launcher,) = psutil.Process(scene.pid).children()
    os.kill(scene.pid if victim == "launch" else launcher.pid, signal.SIGKILL)
    _, err = scene.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not alive(processes))
    for rank in (0, 1):
        log = (tmp_path / "logs" / "try-1" / f"rank-{rank}.log").read_text()
        assert f"rank {rank} has saved" in log
    if victim != "launch":
        assert scene.returncode == 1
        assert "Paddle's launcher, killed:\nit was killed (signal 9, SIGKILL)" in err
