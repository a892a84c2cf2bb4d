"""Many processes of one command: started, followed, and started again where that helps.

Paddle's launcher has flags for restarts, and does nothing about them without an etcd server: the
restarts are here, each of them a fresh start of all processes from the newest checkpoint.
"""

from __future__ import annotations

import datetime
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastffn_cli import ui
from fastffn_cli.distributed.attempt import Attempt, run_attempt
from fastffn_cli.distributed.launch_plan import LaunchPlan
from fastffn_cli.distributed.ports import check_ports
from fastffn_cli.distributed.verdict import count_memory_kills, find_failure
from fastffn_cli.engine.cpu import THREADS_VARIABLE, usable_cores
from fastffn_cli.engine.interrupt import StopRequest, listen
from fastffn_cli.errors import EXIT_SIGTERM, Interrupted, UserError

LONGEST_PAUSE_S = 30.0
PORTS_S = 10.0  # in which the processes of the try before give back what they listened at
ASKED = "every rank finishes its step, then saves (Ctrl-C again to stop at once)"


@dataclass(frozen=True)
class Job:
    """The command line of every worker: `first`, and `again` after a failure.

    `progress` says in a few words where `again` would go on; `variables` are for every worker.
    """

    first: Sequence[str]
    again: Sequence[str]
    progress: Callable[[], str]
    variables: Mapping[str, str] = field(default_factory=dict)


def launch(plan: LaunchPlan, job: Job, log_dir: Path, *, max_restarts: int = 0) -> None:
    """Run a job's processes of this machine to their end, with logs below `log_dir`.

    Raises `RunFailed` with the error and the exit code of the process that failed first,
    `Interrupted` when all have ended because of Ctrl-C or SIGTERM, and `UserError` for a port that
    is taken.
    """
    with listen(lambda _text: ui.say(ASKED), at_once=lambda: f"Logs: {log_dir}") as stop:
        for number in itertools.count():
            check_ports(plan, patience_s=0.0 if number == 0 else PORTS_S)
            folder = log_dir / f"try-{number + 1}"
            kills = count_memory_kills()
            attempt = run_attempt(
                plan,
                job.first if number == 0 else job.again,
                folder,
                stop,
                variables={**job.variables, **thread_variables(len(plan.processes))},
            )
            failure = find_failure(attempt, memory_ended=kills != count_memory_kills())
            if failure is None:
                _finish(plan, attempt, stop)
                return
            if number == max_restarts or attempt.stopped or not failure.can_pass:
                raise failure.as_error(folder)
            pause = min(2.0**number, LONGEST_PAUSE_S)
            ui.warn(
                f"{failure.line}: all start again in {pause:.0f} s {job.progress()} "
                f"(restart {number + 1} of {max_restarts}; logs of this try: {folder})"
            )
            _pause(pause, stop)


def _finish(plan: LaunchPlan, attempt: Attempt, stop: StopRequest) -> None:
    """Say that somebody has stopped it, unless all were done before they noticed."""
    done = [worker for worker in attempt.workers if worker.code == 0]
    if stop.exit_code is None or len(done) == len(plan.processes):
        return
    how = "SIGTERM" if stop.exit_code == EXIT_SIGTERM else "Ctrl-C"
    raise Interrupted(
        f"stopped by {how}; every process has ended",
        exit_code=stop.exit_code,
        hint=f"Training goes on with the same command and --resume. Logs: {attempt.folder}",
    )


def _pause(seconds: float, stop: StopRequest) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and stop.exit_code is None:
        time.sleep(0.1)


def thread_variables(count: int) -> Mapping[str, str]:
    """Share this machine's cores among so many processes, where the user has not said how."""
    if os.environ.get(THREADS_VARIABLE):
        return {}
    return {THREADS_VARIABLE: str(max(1, usable_cores() // count))}


def make_log_dir(base: Path, plan: LaunchPlan) -> Path:
    """Make a new folder below `base`, named for the time; each of several machines has its own.

    Raises `UserError` where none can be made.
    """
    node = f"node-{plan.node_rank}" if plan.node_count > 1 else ""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = base / (now if number == 1 else f"{now}-{number}") / node
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if base.is_dir():
                continue
            raise UserError(f"--log-dir {base} is a file", hint="Name a folder.") from None
        except OSError as error:
            raise UserError(f"--log-dir {base}: {error.strerror}") from error
        return folder
    raise AssertionError("unreachable")
