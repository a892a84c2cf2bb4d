"""A job of several real processes that talk to each other over gloo, as a launcher starts it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tests.conftest import ROOT_DIR, program_env

HOST = "127.0.0.1"
SHOWN_CHARACTERS = 4000
# A process that loses its peer says so within half a second: what broke first shows up by then.
GRACE_S = 1.0


@dataclass(frozen=True)
class Finished:
    """What one process said before it ended well."""

    rank: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> Any:
        """The last line of stdout, read as JSON."""
        return json.loads(self.stdout.splitlines()[-1])


def run_processes(
    program: str | Path,
    arguments: Sequence[str | Path] = (),
    count: int = 2,
    *,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT_DIR,
) -> list[Finished]:
    """Run a module (`str`, as `python -m`) or a script (`Path`) in `count` processes, by rank.

    Raises `AssertionError` with the stderr of those that failed, or of all where time ran out; none
    of them is left running.
    """
    target = [str(program)] if isinstance(program, Path) else ["-m", program]
    command = [sys.executable, *target, *map(str, arguments)]
    with ExitStack() as stack:
        outputs = [
            tuple(stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            for _ in range(count)
        ]
        members = [
            stack.enter_context(_started(command, job_env(rank, ports, env), cwd, *files))
            for ports in [free_ports(count + 1)]
            for rank, files in enumerate(outputs)
        ]
        _wait(members, timeout)
        codes = [member.poll() for member in members]
        said = [tuple(_read(file) for file in files) for files in outputs]
    if not any(code != 0 for code in codes):
        return [Finished(rank, out, err) for rank, (out, err) in enumerate(said)]
    failed = [rank for rank, code in enumerate(codes) if code]
    problem = "a process failed" if failed else f"not done after {timeout:g} s"
    shown = "\n".join(
        f"--- rank {rank}, exit code {codes[rank]}\n{said[rank][1][-SHOWN_CHARACTERS:]}"
        for rank in failed or [rank for rank, code in enumerate(codes) if code is None]
    )
    raise AssertionError(f"{' '.join(command)}: {problem}\n{shown}")


def run_cases(
    words: Sequence[str], cases: Mapping[str, Any], count: int, folder: Path
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Hand dataclasses, as JSON, to a module's `count` processes; return the arrays of each rank.

    `words` are the module and what stands before its cases; it writes `folder`/CASE-RANK.npz.
    """
    program, *first = words
    arguments = [*first, json.dumps([asdict(case) for case in cases.values()]), folder]
    run_processes(program, arguments, count, timeout=200)
    return {
        name: [dict(np.load(folder / f"{number}-{rank}.npz")) for rank in range(count)]
        for number, name in enumerate(cases)
    }


def job_env(rank: int, ports: Sequence[int], extra: Mapping[str, str] | None) -> dict[str, str]:
    """The environment that Paddle's launcher gives to a process; the last port is the master's.

    `{rank}` in a value of `extra` stands for the rank.
    """
    endpoints = [f"{HOST}:{port}" for port in ports]
    return program_env(
        {
            "PADDLE_TRAINERS_NUM": str(len(ports) - 1),
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints[:-1]),
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            "PADDLE_MASTER": endpoints[-1],
            "PADDLE_DISTRI_BACKEND": "gloo",
            "OMP_NUM_THREADS": "1",  # the processes share the cores
            "GLOG_minloglevel": "2",
            **{name: value.format(rank=rank) for name, value in (extra or {}).items()},
        }
    )


def free_ports(count: int) -> list[int]:
    """Find ports on which nobody listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _started(
    command: list[str], env: dict[str, str], cwd: Path, stdout: IO[str], stderr: IO[str]
) -> Iterator[subprocess.Popen[bytes]]:
    member = subprocess.Popen(
        command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )
    try:
        yield member
    finally:
        if member.poll() is None:
            member.kill()
        member.wait()


def _wait(members: list[subprocess.Popen[bytes]], timeout: float) -> None:
    """Wait until all have ended, or until one failed and the others had time to say so."""
    end = time.monotonic() + timeout
    while any(member.poll() is None for member in members) and time.monotonic() < end:
        if any(member.poll() for member in members):  # `min`: the first failure sets the end
            end = min(end, time.monotonic() + GRACE_S)
        time.sleep(0.05)


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
