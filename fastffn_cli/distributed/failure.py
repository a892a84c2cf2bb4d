"""What a launched process says of its own end, for the launcher that cannot see it otherwise.

`paddle.distributed.launch` hides which process failed first and with which exit code. A worker
therefore leaves a small record of its error, and the process that watches it one of its exit
status, in a folder that only the launcher names. Imports nothing heavy: every `fastffn` does so.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.errors import EXIT_UNEXPECTED, FastFFNError

STATE_VARIABLE = "FASTFFN_LAUNCH_STATE"
PARENT_VARIABLE = "FASTFFN_LAUNCH_PARENT"
RANK_VARIABLE = "PADDLE_TRAINER_ID"
LAUNCHER = "launcher"  # in the place of a rank: Paddle's launcher itself
MAX_TEXT = 20_000
# How libraries tell that another process is gone. None of it is a cause.
LOST_PEER_SIGNS = (
    "connection reset by peer",
    "connection closed by peer",
    "connection refused",
    "broken pipe",
    "gloo/transport/tcp",
    "tcpstore",
    "tcp_store",
    "socket closed",
    "nccl",
    "hccl",
    "xccl",
)
OWN_SIGNS = ("address already in use",)  # of a rendezvous, but the cause and no consequence


@dataclass(frozen=True)
class FailureRecord:
    """An error as the process that it ended told of it.

    `cause` is its own text, which `message` may have a traceback around; `time` is in seconds since
    the epoch.
    """

    rank: int | str
    exit_code: int
    title: str
    message: str
    cause: str
    hint: str | None
    time: float

    @property
    def tells_of_another(self) -> bool:
        """Whether this is merely how a process notices that another one is gone."""
        return self.exit_code == EXIT_UNEXPECTED and tells_of_lost_peer(self.cause)


def tells_of_lost_peer(text: str) -> bool:
    """Whether an error's text is of a connection to a process that has ended."""
    lowered = text.lower()
    if any(sign in lowered for sign in OWN_SIGNS):
        return False
    return any(sign in lowered for sign in LOST_PEER_SIGNS)


def as_lost_peer(error: BaseException) -> FastFFNError | None:
    """Turn an error of the network between launched processes into one line; None for another.

    Whoever started them tells which process was the first to fail, and why.
    """
    if STATE_VARIABLE not in os.environ or not tells_of_lost_peer(str(error)):
        return None
    last = str(error).strip().splitlines()[-1]
    lost = FastFFNError(f"the connection to another process is lost: {last}")
    lost.title = "lost connection"
    return lost


def leave_record(error: BaseException) -> None:
    """Leave a record of the error that ends this process, where a launcher asked for one.

    Never raises: a full disk must not hide the error itself.
    """
    folder = os.environ.get(STATE_VARIABLE)
    # A worker's own children inherit its environment; their errors are its business.
    if not folder or os.environ.get(PARENT_VARIABLE) != str(os.getppid()):
        return
    with contextlib.suppress(Exception):
        rank = os.environ.get(RANK_VARIABLE, LAUNCHER)
        write_state(Path(folder) / f"failed-{rank}.json", _describe(rank, error))


def _describe(rank: str, error: BaseException) -> dict[str, Any]:
    known = error if isinstance(error, FastFFNError) else None
    told = "".join(traceback.format_exception(error)).rstrip()[-MAX_TEXT:]
    return {
        "rank": int(rank) if rank.isdecimal() else rank,
        "exit_code": known.exit_code if known else EXIT_UNEXPECTED,
        "title": known.title if known else "unexpected error",
        "message": known.message[:MAX_TEXT] if known else told,
        "cause": str(error)[:MAX_TEXT],
        "hint": known.hint if known else None,
        "time": time.time(),
    }


def read_record(file: Path) -> FailureRecord | None:
    """Read a record; None where there is none."""
    state = read_state(file)
    return None if state is None else FailureRecord(**state)


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a small JSON file that is whole or absent."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(state), encoding="utf-8")
    draft.replace(file)


def read_state(file: Path) -> dict[str, Any] | None:
    """Read such a file; None where there is none."""
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return state
