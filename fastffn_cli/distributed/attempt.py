"""One try of a launch: processes started, followed, and all of them ended.

Linux does the rest where this process is killed: Paddle's launcher is told by the kernel, tells the
watchers, and they the workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastffn_cli import ui
from fastffn_cli.distributed.failure import (
    PARENT_VARIABLE,
    STATE_VARIABLE,
    read_state,
    write_state,
)
from fastffn_cli.distributed.launch_plan import LaunchPlan
from fastffn_cli.distributed.watcher import RELEASED_FILE, WORKERS_FILE
from fastffn_cli.engine.interrupt import StopRequest
from fastffn_cli.engine.own_process import own_process

LAUNCHER = "from fastffn_cli.distributed.paddle_launcher import main; main()"
WATCHER = "from fastffn_cli.distributed.watcher import main; main()"
LAUNCHER_LOG = "launcher.log"
POLL_S = 0.1
SETTLE_S = 2.0  # in which the cause of a failure shows itself, after its first consequence
GRACE_S = 10.0  # for the others, once one has failed
SAVE_S = 300.0  # for the others, once one has saved and ended
LAUNCHER_S = 15.0  # Paddle's launcher looks at its processes every two seconds
WAITING_S = 30.0
# What Paddle's launcher or its plugins read from the environment instead of their arguments.
STRANGE = ("PADDLE_", "DISTRIBUTED_TRAINER_ENDPOINTS", "TRAINING_ROLE", "POD_IP")


@dataclass(frozen=True)
class Worker:
    """A worker that was started; `code` is how it ended (negative: a signal), None while it runs.

    `at` is when it ended, in seconds since the epoch, `asked` whether that was after we asked.
    """

    rank: int
    watcher: int
    worker: int
    code: int | None = None
    at: float | None = None
    asked: bool = False


@dataclass(frozen=True)
class Attempt:
    """How a try ended: each worker's end, and that of Paddle's launcher.

    `stopped`: somebody asked, with Ctrl-C or SIGTERM. `abandoned`: Paddle's launcher was gone while
    workers ran, and they were told to end for that.
    """

    folder: Path
    workers: tuple[Worker, ...]
    launcher_code: int
    stopped: bool
    abandoned: bool

    @property
    def state(self) -> Path:
        """Where the records are."""
        return state_folder(self.folder)

    def log(self, rank: int | str) -> Path:
        """The file with all that a rank, or Paddle's launcher, said."""
        return self.folder / (f"rank-{rank}.log" if isinstance(rank, int) else LAUNCHER_LOG)


def state_folder(folder: Path) -> Path:
    """The folder in which the processes of a try tell how they are."""
    return folder / "state"


def run_attempt(
    plan: LaunchPlan,
    command: Sequence[str],
    folder: Path,
    stop: StopRequest,
    *,
    variables: Mapping[str, str],
) -> Attempt:
    """Run `command` once a rank of this machine, with logs in `folder`, until all have ended.

    `variables` are added to every worker's environment. What rank 0 says goes on to this process's
    own streams. When one fails, or `stop` is filled, the others are asked to end, and killed in the
    end.
    """
    running = _Running(plan, folder)
    with _started(plan, command, folder, variables) as launcher, running.ended(launcher):
        while not running.is_over(launcher):
            running.look()
            running.act(launcher, stop)
            time.sleep(POLL_S)
        running.look()
    return Attempt(
        folder,
        running.workers,
        launcher.returncode,
        stopped=stop.exit_code is not None,
        abandoned=running.abandoned,
    )


class _Running:
    """What is known of the workers, and what has to be done with them."""

    def __init__(self, plan: LaunchPlan, folder: Path) -> None:
        self._plan = plan
        self._state = state_folder(folder)
        self._known: dict[int, Worker] = {}
        self._began = time.monotonic()
        self._said_waiting = False
        self._asked = False
        self._deadline: float | None = None
        self._failed_at: float | None = None
        self._gone_at: float | None = None
        self._streams = (
            _Stream(folder / "rank-0.log", to_stdout=False),
            _Stream(folder / "rank-0.out", to_stdout=True),
        )
        self.abandoned = False

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(self._known[rank] for rank in sorted(self._known))

    @property
    def _alive(self) -> list[Worker]:
        return [worker for worker in self._known.values() if worker.code is None]

    def look(self) -> None:
        """Read what is new: who has started, who has ended, what rank 0 says."""
        for process in self._plan.processes:
            known = self._known.get(process.rank)
            if known is None:
                started = read_state(self._state / f"started-{process.rank}.json")
                if started is not None:
                    known = self._known[process.rank] = Worker(**started)
            if known is not None and known.code is None:
                self._look_for_end(known)
        for stream in self._streams:
            stream.pass_on()

    def _look_for_end(self, worker: Worker) -> None:
        gone = not _is_running(worker.watcher)  # before looking for its last words
        ended = read_state(self._state / f"ended-{worker.rank}.json")
        if ended is None and gone:  # somebody has killed the watcher, and the kernel the worker
            ended = {"code": -signal.SIGKILL, "time": time.time()}
        if ended is not None:
            self._known[worker.rank] = replace(
                worker, code=ended["code"], at=ended["time"], asked=self._asked
            )

    def act(self, launcher: subprocess.Popen[bytes], stop: StopRequest) -> None:
        """Ask workers to end, kill those that do not, and let Paddle's launcher go at the end."""
        now = time.monotonic()
        if stop.exit_code is not None and not self._asked:
            self._ask(launcher)
        failed = any(worker.code not in (None, 0) for worker in self._known.values())
        if failed and self._failed_at is None:
            self._failed_at = now
        if self._failed_at is not None and not self._asked and now > self._failed_at + SETTLE_S:
            self._ask(launcher)
        if self._asked and self._deadline is None and (failed or self._has_ended_one()):
            self._deadline = now + (GRACE_S if stop.exit_code is None else SAVE_S)
        if self._deadline is not None and now > self._deadline:
            for worker in self._alive:
                _kill(worker.worker)
        if (failed or self._asked) and self._known and not self._alive:
            self._release(launcher, now)
        if not self._known and not self._said_waiting and now > self._began + WAITING_S:
            self._said_waiting = True
            if self._plan.master is not None:
                ui.notice(f"waiting for {self._plan.node_count} machines at {self._plan.master}")

    def _has_ended_one(self) -> bool:
        return any(worker.code is not None for worker in self._known.values())

    def _ask(self, launcher: subprocess.Popen[bytes]) -> None:
        """SIGTERM to every worker: training finishes its step and saves."""
        self._asked = True
        for worker in self._alive:
            _send(worker.watcher, signal.SIGTERM)
        if len(self._known) < len(self._plan.processes):  # some are not there yet
            launcher.terminate()

    def _release(self, launcher: subprocess.Popen[bytes], now: float) -> None:
        """All have ended: the watchers may, and Paddle's launcher, which notices, does."""
        if self._gone_at is None:
            self._gone_at = now
            (self._state / RELEASED_FILE).touch()
        elif now > self._gone_at + LAUNCHER_S:
            launcher.kill()

    def is_over(self, launcher: subprocess.Popen[bytes]) -> bool:
        """Whether Paddle's launcher has ended, and every worker too, whatever ended it."""
        if launcher.poll() is None:
            return False
        self.look()
        if self._alive and not self._asked:
            self.abandoned = True
        return not self._alive

    @contextlib.contextmanager
    def ended(self, launcher: subprocess.Popen[bytes]) -> Iterator[None]:
        """Leave no process behind: what still runs at the end (a second Ctrl-C, a bug) is killed.

        Workers first: the kernel kills one whose watcher has ended, but not the other way round.
        """
        try:
            yield
        finally:
            self.look()
            if launcher.poll() is None:
                launcher.kill()
            launcher.wait()
            for worker in self._alive:
                _kill(worker.worker)


@contextlib.contextmanager
def _started(
    plan: LaunchPlan, command: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    state, paddle_logs = state_folder(folder), folder / "paddle"
    for made in (folder, state, paddle_logs):
        # Paddle's launcher writes its whole environment there, secrets and all.
        made.mkdir(mode=0o700, parents=True)
    workers = {
        "main": os.getpid(),
        "logs": str(folder.absolute()),
        "variables": [{**process.variables, **variables} for process in plan.processes],
    }
    write_state(state / WORKERS_FILE, workers)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(STRANGE)}
    environment = {
        **kept,
        STATE_VARIABLE: str(state.absolute()),
        PARENT_VARIABLE: str(os.getpid()),
    }
    cards = ",".join(map(str, plan.cards))
    words = [plan.device, str(len(plan.processes)), cards, *plan.paddle_arguments(paddle_logs)]
    with (folder / LAUNCHER_LOG).open("ab") as log:
        # A session of its own: a Ctrl-C reaches this process alone, which then ends all in order.
        process = subprocess.Popen(
            own_process(LAUNCHER, *words, *own_process(WATCHER, *command)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    yield process


class _Stream:
    """A file that grows, passed on to one of our own streams as it does."""

    def __init__(self, file: Path, *, to_stdout: bool) -> None:
        self._file = file
        self._to_stdout = to_stdout
        self._at = 0

    def pass_on(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._file.open("rb") as grown:
            grown.seek(self._at)
            chunk = grown.read()
            self._at += len(chunk)
            if chunk:
                ui.relay(chunk, to_stdout=self._to_stdout)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill(pid: int) -> None:
    _send(pid, signal.SIGKILL)


def _is_running(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
