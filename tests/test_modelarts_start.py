"""The boot file of ModelArts, in faked environments: as a file, the way the platform runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastffn_cli.distributed.rank_table import read_rank_table
from fastffn_cli.errors import ConfigError, UserError
from fastffn_cli.modelarts_start import launch_words
from tests.conftest import FIXTURES_DIR, ROOT_DIR, Workplace, program_env

BOOT_FILE = ROOT_DIR / "fastffn_cli" / "modelarts_start.py"
TABLE = FIXTURES_DIR / "rank_tables" / "hccl_4s_32p.json"
ASCEND = {
    "MA_JOB_DIR": "/home/ma-user/modelarts/user-job-dir",
    "RANK_TABLE_FILE": str(TABLE),
    "RANK_ID": "16",
    "RANK_SIZE": "32",
    "ASCEND_DEVICE_ID": "0",
}
HOSTS = {
    "MA_LOG_DIR": "ma-logs",
    "VC_WORKER_HOSTS": "job-worker-0.job,job-worker-1.job",
    "VC_TASK_INDEX": "1",
    "VC_WORKER_NUM": "2",
    "MA_NUM_GPUS": "4",
}
TRAIN = ["--config=tiny.yaml", "--device=cpu"]

Boot = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def boot(workplace: Workplace) -> Boot:
    """`boot(environment, *flags)` runs the file in a folder from which nothing can be imported."""

    def call(environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
        known = program_env({**environment, "OMP_NUM_THREADS": "1"})
        del known["PYTHONPATH"]
        return subprocess.run(
            [sys.executable, BOOT_FILE, *flags],
            cwd=workplace.dir,
            env=known,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def test_a_rank_table_of_the_platform_is_used_as_it_is(tmp_path: Path) -> None:
    words = launch_words(ASCEND, TRAIN, tmp_path / "table.json")
    assert words == [
        "launch", "--rank-table", str(TABLE), "--node", "10.155.111.142", "--max-restarts", "0",
        "--", "pretrain", *TRAIN,
    ]  # fmt: skip
    assert not (tmp_path / "table.json").exists()


def test_hosts_become_a_rank_table(tmp_path: Path) -> None:
    words = launch_words(HOSTS, TRAIN, tmp_path / "table.json")
    assert words[words.index("--node") + 1] == "job-worker-1.job"
    assert words[words.index("--log-dir") + 1] == "ma-logs/fastffn-launch"
    nodes = read_rank_table(tmp_path / "table.json").nodes
    assert [node.host for node in nodes] == ["job-worker-0.job", "job-worker-1.job"]
    assert nodes[1].devices == (0, 1, 2, 3)
    assert nodes[1].ranks == (4, 5, 6, 7)


def test_the_platforms_folders_become_overrides_and_strange_flags_are_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--data_url=/cache/data", "--dataset_id", "wiki", "--train_url=/cache/out",
        "--ma_something=1", "--command=posttrain", "--max_restarts=2", "--from=merged",
        "--Engine.max_steps=5", *TRAIN,
    ]  # fmt: skip
    words = launch_words(ASCEND, flags, tmp_path / "table.json")
    assert words[words.index("--max-restarts") + 1] == "2"
    assert words[words.index("--") + 1 :] == [
        "posttrain", "-o", "Data.dataset.input_dir=/cache/data/wiki",
        "-o", "Engine.save_load.output_dir=/cache/out",
        "--from=merged", "--override=Engine.max_steps=5", *TRAIN,
    ]  # fmt: skip
    assert "left out: --ma_something" in capfd.readouterr().err


def test_an_environment_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VC_WORKER_NUM"):
        launch_words({**HOSTS, "VC_WORKER_NUM": "3"}, TRAIN, tmp_path / "table.json")


def test_elsewhere_it_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ModelArts job"):
        launch_words({}, TRAIN, tmp_path / "table.json")


@pytest.mark.slow
def test_a_process_of_another_card_stands_by(boot: Boot) -> None:
    done = boot({**ASCEND, "RANK_ID": "17", "ASCEND_DEVICE_ID": "1"}, *TRAIN)
    assert done.returncode == 0
    assert "this one ends" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_a_dry_run_shows_master_ranks_and_addresses(boot: Boot) -> None:
    batch = ["--Data.batch_size.global_batch_size=32", "--Data.batch_size.micro_batch_size=1"]
    done = boot(ASCEND, *TRAIN, "--dry_run", "--Distributed.dp_degree=32", *batch)
    assert done.returncode == 0, done.stderr
    assert "PADDLE_MASTER=10.155.111.140:6070" in done.stdout
    assert "RANK_ID=23" in done.stdout
    assert "10.155.111.142:6077" in done.stdout
    done = boot(HOSTS, *TRAIN, "--dry_run", "--Distributed.dp_degree=8", *batch)
    assert done.returncode == 0, done.stderr
    assert "PADDLE_MASTER=job-worker-0.job:6070" in done.stdout
    assert "job-worker-1.job:6073" in done.stdout


@pytest.mark.slow
def test_wrong_flags_end_with_a_message(boot: Boot) -> None:
    done = boot(ASCEND, "--data_url=obs://bucket/data", *TRAIN)
    assert done.returncode == 2
    assert "obs://bucket/data" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_job_of_two_processes_trains(boot: Boot, workplace: Workplace) -> None:
    environment = {**HOSTS, "VC_WORKER_HOSTS": "localhost", "VC_TASK_INDEX": "0",
                   "VC_WORKER_NUM": "1", "MA_NUM_GPUS": "2"}  # fmt: skip
    done = boot(
        environment, *TRAIN, "--Distributed.dp_degree=2", "--train_url=out",
        "--Data.batch_size.micro_batch_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (workplace.dir / "out" / "checkpoints" / "step-00000008" / "manifest.json").exists()
    (logs,) = (workplace.dir / "ma-logs" / "fastffn-launch").iterdir()
    started = json.loads((logs / "try-1" / "state" / "workers.json").read_text())
    assert [each["RANK_ID"] for each in started["variables"]] == ["0", "1"]
