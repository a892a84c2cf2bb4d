"""This process among those that `fastffn launch` (or any Paddle launcher) started together."""

from __future__ import annotations

import os
import shlex

# The variables of `paddle.distributed.launch`.
RANK, WORLD_SIZE = "PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM"
NODES = "PADDLE_NNODES"
# Of `fastffn launch`: its own options as they were typed, for a shell.
LAUNCH_OPTIONS = "FASTFFN_LAUNCH_OPTIONS"
LOCAL_SIZE = "PADDLE_LOCAL_SIZE"


def world_size() -> int:
    """How many processes the job has; 1 for a command that nobody launched."""
    return int(os.environ.get(WORLD_SIZE) or 1)


def local_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get(LOCAL_SIZE) or world_size())


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get(RANK) or 0)


def node_count() -> int:
    """How many machines the job has."""
    return int(os.environ.get(NODES) or 1)


def launch_options() -> list[str]:
    """Options of the `fastffn launch` that started this process, on this machine."""
    return shlex.split(os.environ.get(LAUNCH_OPTIONS, ""))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks for all."""
    return rank() == 0


def device_index(kind: str) -> int | None:
    """The device of type `kind` that the launcher gave this process; None: it gave none."""
    selected = os.environ.get(f"FLAGS_selected_{kind}s", "").split(",")[0].strip()
    return int(selected) if selected.isdecimal() else None
