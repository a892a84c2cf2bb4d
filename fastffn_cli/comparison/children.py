"""Runs as processes of their own: so many at a time, saved and ended when somebody asks."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from fastffn_cli.comparison.runs import RunSpec
from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.load import flatten, parse_config_file
from fastffn_cli.engine import storage
from fastffn_cli.engine.interrupt import StopRequest
from fastffn_cli.engine.own_process import KILLED, own_command
from fastffn_cli.engine.run import holds_run
from fastffn_cli.errors import (
    EXIT_DIVERGED,
    EXIT_OK,
    EXIT_OUT_OF_MEMORY,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    EXIT_UNEXPECTED,
    ConfigError,
    RunFailed,
    UserError,
)

RUN_FILE = "run.yaml"
OUTPUT_FILE = "output.txt"
POLL_S = 0.2
TAIL_BYTES = 4000
RUN_CARD = "│╭╰"  # how its lines begin
# What a run may be continued with another value of: it computes the same.
FREE = (
    "Global.device",
    "Global.cpu_threads",
    "Global.cpu_fast_math",
    "Global.cpu_kernels",
    "Engine.logging_freq",
    "Engine.log_sinks",
    "Engine.save_load.output_dir",
    "Engine.save_load.save_steps",
    "Engine.save_load.keep_last",
    "notes",
)


@dataclass
class Child:
    """A run that is being made."""

    spec: RunSpec
    process: subprocess.Popen[bytes]
    output: IO[bytes]


def check_unchanged(specs: Sequence[RunSpec]) -> None:
    """Raise `UserError` if one of the runs was begun with another configuration."""
    problems = []
    for spec in specs:
        file = spec.dir / RUN_FILE
        if not holds_run(spec.dir) or not file.is_file():
            continue
        try:
            before = dict(flatten(parse_config_file(file)))
        except ConfigError as error:
            problems += error.problems
            continue
        now = dict(flatten(spec.config))
        changed = [
            f"{key} was {before.get(key)}, is {now.get(key)}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and not key.startswith(FREE)
        ]
        if changed:
            problems.append(f"{spec.dir}: {', '.join(changed)}")
    if problems:
        raise UserError(
            "the plan has changed since these runs were begun, and they were not touched:\n"
            + "\n".join(problems),
            hint="Give the changed plan a folder of its own with --out DIR, or take the change "
            "back. New arms and seeds can be added as they are",
        )


def run_all(
    specs: Sequence[RunSpec],
    *,
    jobs: int,
    stop: StopRequest,
    note: Callable[[str], None],
    show: Callable[[Sequence[RunSpec]], None],
) -> None:
    """Make every run that is not over yet, in order, `jobs` at a time.

    `note` is told when a run begins and ends, `show` is called all the while with those that are
    being made. Returns early, with all of them saved, when `stop` is filled. A run that diverges is
    over; raises `RunFailed` for any other failure, with the run's own message and exit code.
    """
    check_unchanged(specs)
    pending = [spec for spec in specs if not spec.history().is_over(spec.steps)]
    active: list[Child] = []
    failure: RunFailed | None = None
    stopping = False
    with _ended(active):
        while active or (pending and not stopping):
            while pending and len(active) < jobs and not stopping:
                active.append(_start(pending.pop(0), note))
            for child in [child for child in active if child.process.poll() is not None]:
                active.remove(child)
                child.output.close()
                failure = failure or _conclude(child, stopping, note)
            if not stopping and (failure is not None or stop.exit_code is not None):
                stopping = True
                for child in active:
                    child.process.send_signal(signal.SIGTERM)
            show([child.spec for child in active])
            time.sleep(POLL_S)
    if failure is not None:
        raise failure


def run_to_end(command: list[str], stop: StopRequest) -> subprocess.CompletedProcess[str] | None:
    """Run a command line whose stderr is ours; None when `stop` was filled before its end."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, _ = process.communicate(timeout=POLL_S)
                return subprocess.CompletedProcess(command, process.returncode, out, "")
            if stop.exit_code is not None:
                return None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _ended(active: list[Child]) -> Iterator[None]:
    """Leave no process behind: what still runs at the end (a second Ctrl-C, a bug) is killed."""
    try:
        yield
    finally:
        for child in active:
            child.process.kill()
            child.process.wait()
            child.output.close()


def _start(spec: RunSpec, note: Callable[[str], None]) -> Child:
    spec.dir.mkdir(parents=True, exist_ok=True)
    file = spec.dir / RUN_FILE
    storage.write_file(file, dump_config(spec.config))
    again = holds_run(spec.dir)
    words = ["pretrain", "-c", str(file), *(["--resume"] if again else [])]
    output = (spec.dir / OUTPUT_FILE).open("ab")
    # A session of its own: a Ctrl-C reaches this process alone, which then ends its runs in order.
    process = subprocess.Popen(
        own_command(*words),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    steps = f"{spec.steps:,} steps"
    note(f"{'continue' if again else 'begin   '}  {spec.title}  ({steps}) -> {spec.dir}")
    return Child(spec, process, output)


def _conclude(child: Child, stopping: bool, note: Callable[[str], None]) -> RunFailed | None:
    spec, code = child.spec, child.process.returncode
    history = spec.history()
    if code == EXIT_OK and history.ended_at == spec.steps:
        loss = f"{history.evals[-1][1]:.4f}" if history.evals else "-"
        took = f", {history.wall_seconds:.1f} s" if history.wall_seconds is not None else ""
        note(f"done      {spec.title}  validation loss {loss}{took}")
        return None
    if code == EXIT_DIVERGED and history.diverged_at is not None:
        note(f"diverged  {spec.title}  at step {history.diverged_at}")
        return None
    if stopping and code in (EXIT_SIGINT, EXIT_SIGTERM, -signal.SIGTERM, -signal.SIGINT):
        note(f"saved     {spec.title}  at step {history.step} of {spec.steps}")
        return None
    exit_code = EXIT_OUT_OF_MEMORY if code == KILLED else code if code > 0 else EXIT_UNEXPECTED
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return RunFailed(
        f"{spec.title} {how}:\n{_tail(spec)}",
        exit_code=exit_code,
        hint=f"All it said: {spec.dir / OUTPUT_FILE}. The same command goes on from here",
    )


def _tail(spec: RunSpec) -> str:
    """Return the last words of a run: from its error message on, where it has one."""
    text = (spec.dir / OUTPUT_FILE).read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip() and line[0] not in RUN_CARD]
    return "\n".join(lines[-12:]) or "it said nothing"
