"""The process between Paddle's launcher and a worker: one a rank.

It gives the worker its environment and its log files, tells the launcher's folder how the worker
ended, and stays until all of them have: Paddle's launcher kills what still runs three seconds after
the first process has ended, and a checkpoint takes longer than that. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from fastffn_cli.distributed.failure import (
    PARENT_VARIABLE,
    RANK_VARIABLE,
    STATE_VARIABLE,
    write_state,
)
from fastffn_cli.distributed.lifeline import end_with_parent

LOCAL_RANK_VARIABLE = "PADDLE_LOCAL_RANK"
WORKERS_FILE = "workers.json"
RELEASED_FILE = "released"
POLL_S = 0.1
GRACE_S = 30.0  # as long as Paddle's launcher waits for those it was told to end


class Watcher:
    """One worker's process; told to end when this one is, or when those above it are gone."""

    def __init__(self, state: Path, local_rank: int) -> None:
        described = json.loads((state / WORKERS_FILE).read_text(encoding="utf-8"))
        variables = described["variables"][local_rank]
        self._environment = {**os.environ, **variables, PARENT_VARIABLE: str(os.getpid())}
        self._state = state
        self._logs = Path(described["logs"])
        self._launcher, self._main = os.getppid(), int(described["main"])
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False
        self.rank = int(self._environment[RANK_VARIABLE])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def run(self, command: list[str]) -> int:
        """Run the worker to its end; return its exit code as a shell would."""
        log, out = (self._logs / f"rank-{self.rank}.{suffix}" for suffix in ("log", "out"))
        with log.open("ab") as errors, out.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._report("started", watcher=os.getpid(), worker=self._process.pid)
        if self._asked:  # before there was a worker
            self._process.send_signal(signal.SIGTERM)
        code = self._wait(self._process)
        # Loaders of data that a killed worker has left behind are in its session.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if out.stat().st_size == 0:
            out.unlink()
        self._report("ended", code=code, time=time.time())
        if code != 0:
            self._stay()
        return code if code >= 0 else 128 - code

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        deadline: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_S)
            if deadline is None and self._is_orphaned():
                deadline = time.monotonic() + GRACE_S
                process.send_signal(signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                process.kill()

    def _stay(self) -> None:
        self._asked = False
        while not (self._asked or self._is_orphaned() or (self._state / RELEASED_FILE).exists()):
            time.sleep(POLL_S)

    def _is_orphaned(self) -> bool:
        return os.getppid() != self._launcher or not _exists(self._main)

    def _report(self, event: str, **facts: float) -> None:
        write_state(self._state / f"{event}-{self.rank}.json", {"rank": self.rank, **facts})


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def main() -> None:
    """Watch over the command of `sys.argv`; started by Paddle's launcher."""
    if str(os.getppid()) != os.environ[PARENT_VARIABLE]:
        sys.exit(1)  # the launcher has ended already
    watcher = Watcher(Path(os.environ[STATE_VARIABLE]), int(os.environ[LOCAL_RANK_VARIABLE]))
    sys.exit(watcher.run(sys.argv[1:]))
