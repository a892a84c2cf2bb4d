"""Which of many ended processes failed first, and how that is told."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path

from fastffn_cli.distributed.attempt import Attempt, Worker
from fastffn_cli.distributed.failure import (
    LAUNCHER,
    FailureRecord,
    read_record,
    tells_of_lost_peer,
)
from fastffn_cli.engine.cpu import control_group_dirs
from fastffn_cli.errors import (
    EXIT_DIVERGED,
    EXIT_MERGE_CHECK,
    EXIT_OUT_OF_MEMORY,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    EXIT_UNEXPECTED,
    EXIT_USAGE,
    RunFailed,
)

INTERRUPTED = (EXIT_SIGINT, EXIT_SIGTERM)
OWN_CODES = (EXIT_USAGE, EXIT_OUT_OF_MEMORY, EXIT_DIVERGED, EXIT_MERGE_CHECK, *INTERRUPTED)
TAIL_LINES = 12
TAIL_BYTES = 64_000
CRASH = "Fatal Python error: "  # of faulthandler; why a library has aborted stands before it
NEWS = "LAUNCH INFO"
SILENT = "it said nothing"
OOM_HINT = "Out of memory? The kernel's log says so: dmesg, or the events of the container."
VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Failure:
    """Why a try failed: the process it began with, and what that process said.

    `of_another` is that it only tells of another process's end, `told` that rank 0 has said the
    same already, which was passed on. `at` is in seconds since the epoch.
    """

    rank: int | str
    exit_code: int
    title: str
    message: str
    hint: str | None
    log: Path
    at: float
    of_another: bool = False
    told: bool = False

    @property
    def can_pass(self) -> bool:
        """Whether a new try may go well: not where the same error would come again."""
        return self.exit_code == EXIT_UNEXPECTED

    @property
    def line(self) -> str:
        """What happened, in one line."""
        last = self.message.strip().splitlines()[-1] if self.message.strip() else self.title
        return f"{self.name}: {last}"

    @property
    def name(self) -> str:
        """Who failed."""
        return f"rank {self.rank}" if isinstance(self.rank, int) else "Paddle's launcher"

    def as_error(self, folder: Path) -> RunFailed:
        """The error that the launch ends with, as the process itself would have told it.

        Of one that was told already, only where the logs are.
        """
        hints = [self.hint] if self.hint and not self.told else []
        if self.of_another:
            hints.append("No process of this machine had another error than a lost connection.")
        hints.append(f"All that {self.name} said: {self.log}. The logs of all ranks: {folder}")
        if self.told:
            error = RunFailed("\n".join(hints), exit_code=self.exit_code)
            error.title = ""
        else:
            error = RunFailed(self.message, exit_code=self.exit_code, hint="\n".join(hints))
            error.title = f"{self.name}, {self.title}"
        return error


KILLED = "killed"


def find_failure(attempt: Attempt, *, memory_ended: bool) -> Failure | None:
    """Find what a try failed of; None where nothing did, or only because somebody asked for it.

    An error of a process's own beats one that tells of another's end, whichever came first.
    `memory_ended` says that the kernel has killed a process for memory meanwhile.
    """
    if attempt.abandoned and not attempt.stopped:
        return _failure_of_launcher(attempt)
    failures = [
        failure
        for worker in attempt.workers
        if (failure := _failure_of(worker, attempt)) is not None
        and not (attempt.stopped and failure.of_another)
    ]
    if not failures:
        return None if attempt.stopped else _failure_of_launcher(attempt)
    first = min(failures, key=lambda failure: (failure.of_another, failure.at))
    if memory_ended and first.title == KILLED:
        return replace(
            first,
            exit_code=EXIT_OUT_OF_MEMORY,
            message=f"{first.message}: the machine, or its container, had no memory left",
        )
    told = any(each.rank == 0 and _says_the_same(each, first) for each in failures)
    return replace(first, told=told)


def _says_the_same(one: Failure, other: Failure) -> bool:
    """Whether `one` has told in its own words what `other` tells."""
    known = one.title != KILLED and bool(read_tail(one.log))
    return known and (one.title, one.message) == (other.title, other.message)


def _failure_of(worker: Worker, attempt: Attempt) -> Failure | None:
    code, log = worker.code, attempt.log(worker.rank)
    if code is None or code == 0:
        return None
    record = read_record(attempt.state / f"failed-{worker.rank}.json")
    at = worker.at or 0.0
    if record is not None:
        if record.exit_code in INTERRUPTED and worker.asked:
            return None
        return _as_failure(record, log)
    if worker.asked and (code in INTERRUPTED or code in (-signal.SIGTERM, -signal.SIGKILL)):
        return None
    tail = read_tail(log)
    if code < 0 and not (code == -signal.SIGABRT and tells_of_lost_peer(tail)):
        return Failure(
            worker.rank, EXIT_UNEXPECTED, KILLED, _describe_signal(-code),
            OOM_HINT if code == -signal.SIGKILL else None, log, at,
        )  # fmt: skip
    exit_code = code if code in OWN_CODES else EXIT_UNEXPECTED
    title = f"exit code {code}" if code > 0 else f"signal {-code}"
    return Failure(
        worker.rank, exit_code, title, tail or SILENT, None, log, at,
        of_another=tells_of_lost_peer(tail),
    )  # fmt: skip


def _as_failure(record: FailureRecord, log: Path) -> Failure:
    return Failure(
        record.rank, record.exit_code, record.title, record.message, record.hint, log,
        record.time, of_another=record.tells_of_another,
    )  # fmt: skip


def _failure_of_launcher(attempt: Attempt) -> Failure | None:
    code, log = attempt.launcher_code, attempt.log(LAUNCHER)
    if code == 0:
        return None
    record = read_record(attempt.state / f"failed-{LAUNCHER}.json")
    if record is not None:
        return _as_failure(record, log)
    title, message = KILLED, _describe_signal(-code)
    if code > 0:
        title, message = f"exit code {code}", read_tail(log, leave_out=NEWS) or SILENT
    return Failure(LAUNCHER, EXIT_UNEXPECTED, title, message, None, log, at=0.0)


def _describe_signal(number: int) -> str:
    try:
        name = f", {signal.Signals(number).name}"
    except ValueError:
        name = ""
    return f"it was killed (signal {number}{name})"


def read_tail(log: Path, leave_out: str | None = None) -> str:
    """Return the last lines of a log, but for those that begin so; nothing where there is none.

    Of a crash, those before Python's traceback.
    """
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace")
    except OSError:
        return ""
    before, _, _ = text.partition(CRASH)
    lines = [line for line in (before.strip() or text).splitlines() if line.strip()]
    kept = [line for line in lines if leave_out is None or not line.startswith(leave_out)]
    return "\n".join(kept[-TAIL_LINES:])


def count_memory_kills() -> int | None:
    """Count the processes that the kernel has killed for memory here; None where it does not say.

    Of this process's control group (`memory.events`, or `memory.oom_control` of the first
    generation), else of the machine (`/proc/vmstat`).
    """
    files = [
        folder / name
        for folder in control_group_dirs("memory")
        for name in ("memory.events", "memory.oom_control")
    ]
    for file in [*files, VMSTAT]:
        count = read_memory_kills(file)
        if count is not None:
            return count
    return None


def read_memory_kills(file: Path) -> int | None:
    """Read the field `oom_kill` of a file of the kernel's."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    fields = [line.split() for line in lines]
    counts = [field[1] for field in fields if len(field) == 2 and field[0] == "oom_kill"]
    return int(counts[0]) if counts and counts[0].isdecimal() else None
