"""`fastffn launch`: what it refuses, what it would start, and one real run."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import FIXTURES_DIR, Outcome, Workplace

TABLE = FIXTURES_DIR / "rank_tables" / "hccl_4s_32p.json"
LAYOUT_13B = [
    "-o", "Distributed.dp_degree=4", "-o", "Distributed.mp_degree=2",
    "-o", "Distributed.pp_degree=4", "-o", "Model.num_layers=4",
    "-o", "Data.batch_size.global_batch_size=32", "-o", "Data.batch_size.micro_batch_size=1",
]  # fmt: skip

Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def no_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "what shall be launched"),
        (["--nproc", "2", "--", "doctor"], "must be one of pretrain, posttrain\n"),
        (["--", "eval", "a run"], "eval runs in one process\nType: fastffn eval 'a run'\n"),
        (["--nproc", "2", "--", "generate"], "generate runs in one process"),
        (["--nproc", "2", "--", "pretrain"], "Missing option '--config'"),
        (["--nproc", "2", "--", "pretrain", "-c", "tiny.yaml", "--reume"], "--resume"),
        (["--nproc", "2", "--", "pretrain", "-c", "-"], "cannot read one stdin"),
        (["--nproc", "2", "--", "pretrain", "-c", "tiny.yaml", "--dry-run"], "needs no launch"),
        (["--nproc", "2", "--", "pretrain", "-c", "tiny.yaml"], "2 processes"),
        (["--devices", "0,1", "--", "pretrain", "-c", "tiny.yaml"], "the device is cpu"),
        (["--devices", "1,0", "--", "pretrain", "-c", "tiny.yaml"], "upwards"),
        (["--nproc", "1", "--", "pretrain", "-c", "tiny.yaml", "--device", "gpu:1"], "one card"),
        (["--nnodes", "2", "--", "pretrain", "-c", "tiny.yaml"], "needs --node-rank K"),
        (["--ranks", "[0,8]", "--", "pretrain", "-c", "tiny.yaml"], "for a rank table"),
        (
            ["--base-port", "7000", "--nproc", "1", "--", "pretrain", "-c", "tiny.yaml"],
            "--base-port",
        ),
        (["--rank-table", TABLE, "--nproc", "2", "--", "pretrain", "-c", "tiny.yaml"], "--nproc"),
        (["--rank-table", TABLE, "--", "pretrain", "-c", "tiny.yaml"], "is none of these"),
        (["--json", "--nproc", "1", "--", "pretrain", "-c", "tiny.yaml"], "--dry-run"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    fastffn: Call, workplace: Workplace, arguments: list[str | Path], said: str
) -> None:
    done = fastffn("launch", *arguments)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (workplace.dir / "launch-logs").exists()


@pytest.mark.parametrize("machine", range(4))
def test_the_four_machines_of_run_distribute(fastffn: Call, machine: int) -> None:
    first = 8 * machine
    done = fastffn(
        "launch", "--rank-table", TABLE, "--ranks", f"[{first},{first + 8}]", "--dry-run", "--json",
        "--", "pretrain", "-c", "tiny.yaml", *LAYOUT_13B,
    )  # fmt: skip
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert (plan["world_size"], plan["nodes"], plan["node_rank"]) == (32, 4, machine)
    for device, process in enumerate(plan["processes"]):
        endpoint = f"10.155.111.{140 + machine}:{6070 + device}"
        assert process["rank"] == first + device
        assert process["device"] == device
        assert process["endpoint"] == endpoint
        variables = process["variables"]
        assert variables["RANK_ID"] == variables["PADDLE_TRAINER_ID"] == str(first + device)
        assert variables["DEVICE_ID"] == str(device)
        assert variables["RANK_SIZE"] == variables["PADDLE_TRAINERS_NUM"] == "32"
        assert variables["PADDLE_CURRENT_ENDPOINT"] == endpoint


def test_a_dry_run_shows_ranks_for_people(fastffn: Call, workplace: Workplace) -> None:
    done = fastffn(
        "launch", "--rank-table", TABLE, "--node", "10.155.111.141", "--dry-run",
        "--", "pretrain", "-c", "tiny.yaml", *LAYOUT_13B,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "10.155.111.141:6077" in done.out
    assert "RANK_ID=15" in done.out
    assert not (workplace.dir / "launch-logs").exists()


def test_degrees_of_the_file_say_how_many(fastffn: Call) -> None:
    done = fastffn(
        "launch", "--dry-run", "--json", "pretrain", "-c", "tiny.yaml",
        "-o", "Distributed.dp_degree=2",
    )  # fmt: skip
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert [process["rank"] for process in plan["processes"]] == [0, 1]
    assert plan["device"] == "cpu"
    assert all("OMP_NUM_THREADS" in process["variables"] for process in plan["processes"])


def test_processes_are_told_the_options_of_their_launch(
    fastffn: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastffn_cli.commands import launch
    from fastffn_cli.distributed.job import LAUNCH_OPTIONS

    jobs = []
    monkeypatch.setattr(launch, "start", lambda _plan, job, *_logs, **_restarts: jobs.append(job))
    done = fastffn(
        "launch", "--log-dir=my logs", "--nproc", "1", "--max-restarts", "0",
        "--", "pretrain", "-c", "tiny.yaml", "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    options = shlex.split(jobs[0].variables[LAUNCH_OPTIONS])
    pairs = sorted(zip(options[::2], options[1::2], strict=True))
    assert pairs == [("--log-dir", "my logs"), ("--max-restarts", "0"), ("--nproc", "1")]


@pytest.mark.slow
def test_a_taken_port_is_a_message_before_anything_starts(workplace: Workplace) -> None:
    from fastffn_cli.distributed.rank_table import make_rank_table

    table = workplace.dir / "table.json"
    table.write_text(make_rank_table((0,), ("reserve",), "127.0.0.1").text)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = workplace.run_fastffn(
            "launch", "--rank-table", table, "--base-port", str(port),
            "--", "pretrain", "-c", "tiny.yaml",
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"port {port} is taken on this machine" in done.stderr
    assert not (workplace.dir / "launch-logs").exists()


@pytest.mark.parametrize(
    ("resume", "again"),
    [
        ([], ["--resume", "auto"]),
        (["--resume"], ["--resume", "auto"]),
        (["--resume=auto"], ["--resume", "auto"]),
        (["--resume", "runs/tiny/checkpoints/step-00000004"], ["--resume", "runs/tiny"]),
    ],
)
def test_a_restart_resumes(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, resume: list[str], again: list[str]
) -> None:
    from fastffn_cli.app import _with_resume_value
    from fastffn_cli.commands.launched import read_command

    monkeypatch.chdir(workplace.dir)
    words = ["pretrain", "-c", "tiny.yaml"]
    job = read_command(_with_resume_value([*words, *resume])).job()
    assert list(job.again[-5:]) == [*words, *again]
    assert job.progress() == "from the beginning"


def test_a_restart_never_continues_a_run_that_was_there_before(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastffn_cli.commands.launched import read_command

    monkeypatch.chdir(workplace.dir)
    (workplace.run_dir / "checkpoints").mkdir(parents=True)
    job = read_command(["pretrain", "-c", "tiny.yaml"]).job()
    assert job.again == job.first


@pytest.mark.slow
def test_a_launched_run_trains_and_a_second_one_is_refused(workplace: Workplace) -> None:
    words = ["launch", "--nproc", "1", "--log-dir", "logs", "--", "pretrain", "-c", "tiny.yaml"]
    done = workplace.run_fastffn(*words)
    assert done.returncode == 0, done.stderr
    assert "global step 8" in done.stderr
    assert (workplace.run_dir / "checkpoints" / "step-00000008" / "manifest.json").exists()
    refused = workplace.run_fastffn(*words)
    assert refused.returncode == 2
    assert "holds a run already" in refused.stderr
    assert refused.stderr.count("holds a run already") == 1
    assert len(list((workplace.dir / "logs").iterdir())) == 2


@pytest.mark.slow
def test_a_card_that_is_not_there_is_a_message(workplace: Workplace) -> None:
    done = workplace.run_fastffn(
        "launch", "--devices", "6", "--", "pretrain", "-c", "tiny.yaml", "--device", "auto"
    )
    assert done.returncode == 2
    assert "there is no card 6" in done.stderr
    assert "Traceback" not in done.stderr
