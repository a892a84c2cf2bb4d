"""Records of errors, and which of several processes is to blame."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fastffn_cli.distributed.attempt import Attempt, Worker, state_folder
from fastffn_cli.distributed.failure import (
    PARENT_VARIABLE,
    STATE_VARIABLE,
    as_lost_peer,
    leave_record,
    read_record,
    tells_of_lost_peer,
    write_state,
)
from fastffn_cli.distributed.verdict import find_failure, read_memory_kills
from fastffn_cli.errors import ConfigError, UserError

RESET = "[gloo/transport/tcp/pair.cc:576] Read error [127.0.0.1]:8599: Connection reset by peer"


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this process one that a launcher asked for a record; return the folder."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid()))
    monkeypatch.setenv("PADDLE_TRAINER_ID", "3")
    return tmp_path


def test_an_expected_error_is_recorded_with_its_exit_code_and_hint(launched: Path) -> None:
    leave_record(ConfigError("a.yaml", ["a.yaml:3  wrong", "a.yaml:9  wrong too"], hint="mend it"))
    record = read_record(launched / "failed-3.json")
    assert record is not None
    assert (record.rank, record.exit_code, record.title) == (3, 2, "2 problems in a.yaml")
    assert record.message == "a.yaml:3  wrong\na.yaml:9  wrong too"
    assert record.hint == "mend it"


def test_an_unexpected_error_is_recorded_with_its_traceback(launched: Path) -> None:
    try:
        json.loads("{")
    except ValueError as error:
        leave_record(error)
    record = read_record(launched / "failed-3.json")
    assert record is not None
    assert record.exit_code == 1
    assert record.message.startswith("Traceback")
    assert record.message.endswith(record.cause)


def test_a_workers_own_child_leaves_no_record(
    launched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, "1")
    leave_record(UserError("mine"))
    assert not list(launched.iterdir())


def test_a_record_that_cannot_be_written_hides_nothing(
    launched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_VARIABLE, str(launched / "absent"))
    leave_record(UserError("the error itself"))


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (RESET, True),
        ("[gloo/transport/tcp/pair.cc:584] TIMEOUT self_rank = 1 pair_rank = 0", True),
        ("NCCL error: unhandled system error", True),
        ("tcp_store: bind failed: Address already in use", False),
        ("index 5 is out of bounds", False),
    ],
)
def test_signs_of_a_lost_connection(text: str, lost: bool) -> None:
    assert tells_of_lost_peer(text) is lost


def test_only_a_launched_process_can_lose_a_peer(
    launched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert as_lost_peer(ValueError("index 5 is out of bounds")) is None
    lost = as_lost_peer(RuntimeError(RESET))
    assert lost is not None
    assert "Connection reset by peer" in lost.message
    monkeypatch.delenv(STATE_VARIABLE)
    assert as_lost_peer(RuntimeError(RESET)) is None


def make_attempt(folder: Path, *workers: Worker, **changes: Any) -> Attempt:
    state_folder(folder).mkdir()
    facts = {"launcher_code": 1, "stopped": False, "abandoned": False, **changes}
    return Attempt(folder, workers, **facts)


def record(attempt: Attempt, rank: int | str, **facts: Any) -> None:
    whole = {
        "rank": rank, "exit_code": 1, "title": "unexpected error", "message": "", "cause": "",
        "hint": None, "time": 0.0, **facts,
    }  # fmt: skip
    write_state(attempt.state / f"failed-{rank}.json", whole)


def worker(rank: int, code: int, at: float, *, asked: bool = False) -> Worker:
    return Worker(rank, watcher=0, worker=0, code=code, at=at, asked=asked)


def test_the_first_of_two_own_errors_wins(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(0, 2, 11.0), worker(1, 3, 10.0))
    record(attempt, 0, exit_code=2, message="late", time=11.0)
    record(attempt, 1, exit_code=3, message="early", time=10.0)
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    assert (failure.rank, failure.exit_code, failure.message) == (1, 3, "early")
    assert not failure.can_pass


def test_a_kill_beats_the_lost_connection_before_it(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(0, 1, 9.0), worker(1, -signal.SIGKILL, 10.0))
    record(attempt, 0, cause=RESET, message=RESET, time=9.0)
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    assert failure.rank == 1
    assert failure.can_pass


def test_a_kill_for_memory_is_told_as_such(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(0, -signal.SIGKILL, 10.0))
    failure = find_failure(attempt, memory_ended=True)
    assert failure is not None
    assert failure.exit_code == 3
    assert "no memory left" in failure.message
    assert not failure.can_pass


def test_a_lost_connection_alone_is_told_with_a_doubt(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(1, 1, 10.0))
    record(attempt, 1, cause=RESET, message=RESET, time=10.0)
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    error = failure.as_error(tmp_path)
    assert error.exit_code == 1
    assert "No process of this machine had another error" in (error.hint or "")


def test_those_that_were_asked_to_end_are_not_to_blame(tmp_path: Path) -> None:
    attempt = make_attempt(
        tmp_path,
        worker(0, 143, 12.0, asked=True),
        worker(1, -signal.SIGTERM, 12.0, asked=True),
        stopped=True,
    )
    record(attempt, 0, exit_code=143, title="interrupted", time=12.0)
    assert find_failure(attempt, memory_ended=False) is None


def test_a_save_that_fails_while_stopping_is_told(tmp_path: Path) -> None:
    attempt = make_attempt(
        tmp_path, worker(0, 2, 12.0, asked=True), worker(1, 143, 12.0, asked=True), stopped=True
    )
    record(attempt, 0, exit_code=2, title="disk full", message="no room", time=12.0)
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    assert (failure.exit_code, failure.title) == (2, "disk full")


def test_an_exit_code_without_a_word_shows_the_end_of_the_log(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(1, 7, 10.0))
    (tmp_path / "rank-1.log").write_text("begin\nlast words\n")
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    assert (failure.exit_code, failure.title) == (1, "exit code 7")
    assert failure.line == "rank 1: last words"


def test_an_abort_for_a_lost_connection_is_seen_above_pythons_traceback(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(1, -signal.SIGABRT, 9.0), worker(2, -9, 10.0))
    traceback = '  File "x.py", line 1 in call\n' * 200
    (tmp_path / "rank-1.log").write_text(
        f"what(): {RESET}\nFatal Python error: Aborted\n{traceback}"
    )
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    assert failure.rank == 2, "the kill is the cause"


def test_what_rank_0_has_said_already_is_not_said_twice(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(0, 2, 10.0))
    (tmp_path / "rank-0.log").write_text("error:\nlong text\n")
    record(attempt, 0, exit_code=2, title="error", message="long text", hint="type this")
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    error = failure.as_error(tmp_path)
    assert error.exit_code == 2
    where = f"All that rank 0 said: {tmp_path / 'rank-0.log'}. The logs of all ranks: {tmp_path}"
    assert (error.title, error.message, error.hint) == ("", where, None)


def test_what_rank_1_says_first_and_rank_0_as_well_is_said_once(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(0, 2, 11.0), worker(1, 2, 10.0))
    (tmp_path / "rank-0.log").write_text("error:\nlong text\n")
    for rank in (0, 1):
        record(attempt, rank, exit_code=2, title="error", message="long text", time=11.0 - rank)
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    error = failure.as_error(tmp_path)
    assert (failure.rank, error.exit_code, error.title) == (1, 2, "")
    assert error.message.startswith(f"All that rank 1 said: {tmp_path / 'rank-1.log'}. ")


def test_what_rank_1_alone_says_is_said(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, worker(0, 2, 11.0), worker(1, 2, 10.0))
    (tmp_path / "rank-0.log").write_text("error:\nanother text\n")
    record(attempt, 0, exit_code=2, title="error", message="another text", time=11.0)
    record(attempt, 1, exit_code=2, title="error", message="long text", time=10.0)
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    error = failure.as_error(tmp_path)
    assert (error.title, error.message) == ("rank 1, error", "long text")


def test_paddles_launcher_can_fail_by_itself(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    (tmp_path / "launcher.log").write_text("LAUNCH INFO news\nValueError: what\n")
    failure = find_failure(attempt, memory_ended=False)
    assert failure is not None
    assert failure.line == "Paddle's launcher: ValueError: what"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n", 2),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("nr_free_pages 1\n", None),
    ],
)
def test_memory_kills_are_counted(tmp_path: Path, text: str, count: int | None) -> None:
    file = tmp_path / "memory.events"
    file.write_text(text)
    assert read_memory_kills(file) == count
    assert read_memory_kills(tmp_path / "absent") is None
