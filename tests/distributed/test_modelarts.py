"""ModelArts jobs, from faked environments: the layout, who stands by, the flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastffn_cli.distributed.cluster import endpoints
from fastffn_cli.distributed.modelarts import (
    SIGNS,
    must_stand_by,
    read_arguments,
    read_layout,
    runs_on_modelarts,
)
from fastffn_cli.errors import ConfigError
from tests.conftest import FIXTURES_DIR

TABLE = FIXTURES_DIR / "rank_tables" / "hccl_4s_32p.json"
ASCEND = {
    "MA_JOB_DIR": "/home/ma-user/modelarts/user-job-dir",
    "RANK_TABLE_FILE": str(TABLE),
    "RANK_ID": "17",
    "RANK_SIZE": "32",
    "ASCEND_DEVICE_ID": "1",
}
HOSTS = {
    "MA_LOG_DIR": "/home/ma-user/modelarts/log",
    "VC_WORKER_HOSTS": "job-worker-0.job,job-worker-1.job",
    "VC_TASK_INDEX": "1",
    "VC_WORKER_NUM": "2",
    "MA_NUM_HOSTS": "2",
    "MA_NUM_GPUS": "4",
    "MA_CURRENT_IP": "172.16.0.5",
    "MA_TASK_NAME": "worker",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


def problems_of(environment: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_layout(environment)
    return caught.value.problems


@pytest.mark.parametrize("sign", SIGNS)
def test_any_sign_of_the_platform_is_enough(sign: str) -> None:
    assert runs_on_modelarts({"HOME": "/root", sign: ""})


def test_another_machine_is_not_taken_for_the_platform() -> None:
    assert not runs_on_modelarts({"HOME": "/root", "RANK_TABLE_FILE": "x", "ASCEND_DEVICE_ID": "0"})


@pytest.mark.parametrize(
    ("environment", "waits"),
    [({}, False), ({"ASCEND_DEVICE_ID": "0"}, False), ({"ASCEND_DEVICE_ID": "7"}, True)],
)
def test_only_the_process_of_card_0_starts_workers(
    environment: dict[str, str], waits: bool
) -> None:
    assert must_stand_by(environment) is waits


def test_the_platforms_rank_table_gives_the_layout_by_rank_id() -> None:
    layout = read_layout(ASCEND)
    assert (layout.node_rank, layout.node.host) == (2, "10.155.111.142")
    assert (layout.world_size, layout.master) == (32, "10.155.111.140")
    assert layout.local_devices == tuple(range(8))


def test_without_rank_id_the_machines_address_gives_its_place() -> None:
    environment = {**without(ASCEND, "RANK_ID"), "MA_CURRENT_IP": "10.155.111.143"}
    assert read_layout(environment).node_rank == 3


def test_a_table_of_one_machine_needs_no_place() -> None:
    one = TABLE.with_name("hccl_8p_01234567_10.155.111.141.json")
    environment = {"RANK_TABLE_FILE": str(one), "RANK_SIZE": "8"}
    assert read_layout(environment).node.host == "10.155.111.141"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK_SIZE": "16"}, "RANK_SIZE is 16"),
        ({"RANK_ID": "32"}, "RANK_ID  is 32"),
        ({"RANK_ID": "two"}, "RANK_ID  is 'two'"),
        ({"RANK_TABLE_FILE": "/absent/table.json"}, "/absent/table.json"),
        ({"RANK_ID": ""}, "which of the 4 machines"),
        ({"RANK_ID": "", "MA_CURRENT_IP": "1.2.3.4"}, "MA_CURRENT_IP 1.2.3.4 is none"),
    ],
)
def test_a_table_that_contradicts_the_variables_is_refused(
    changes: dict[str, str], said: str
) -> None:
    [problem] = problems_of({**ASCEND, **changes})
    assert said in problem


def test_all_problems_of_table_and_variables_are_reported_at_once(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(TABLE.read_text().replace("completed", "initializing"))
    environment = {**ASCEND, "RANK_TABLE_FILE": str(table), "RANK_SIZE": "16", "RANK_ID": "x"}
    assert len(problems_of(environment)) == 3


def test_the_workers_hosts_give_the_layout() -> None:
    layout = read_layout(HOSTS)
    assert (layout.node_rank, layout.world_size) == (1, 8)
    assert layout.master == "job-worker-0.job"
    assert layout.local_devices == (0, 1, 2, 3)
    assert layout.node.ranks == (4, 5, 6, 7)
    assert endpoints(layout, 6070)[4] == "job-worker-1.job:6070"


@pytest.mark.parametrize(
    ("environment", "host"),
    [
        ({"MA_NUM_GPUS": "8", "MA_CURRENT_IP": "172.16.0.5"}, "172.16.0.5"),
        ({"MA_NUM_GPUS": "8", "VC_WORKER_NUM": "1", "VC_TASK_INDEX": "0"}, "127.0.0.1"),
        ({"MA_NUM_GPUS": "8", "VC_WORKER_HOSTS": "only"}, "only"),
    ],
)
def test_one_machine_needs_no_list_of_hosts(environment: dict[str, str], host: str) -> None:
    layout = read_layout(environment)
    assert (layout.master, layout.node_rank, layout.world_size) == (host, 0, 8)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (without(HOSTS, "MA_NUM_GPUS"), "MA_NUM_GPUS  is missing"),
        ({**HOSTS, "MA_NUM_GPUS": "0"}, "MA_NUM_GPUS  is '0'"),
        (without(HOSTS, "VC_TASK_INDEX"), "VC_TASK_INDEX  is missing"),
        ({**HOSTS, "VC_TASK_INDEX": "2"}, "machines are 0 to 1"),
        ({**HOSTS, "VC_TASK_INDEX": "-1"}, "VC_TASK_INDEX  is '-1'"),
        ({**HOSTS, "VC_WORKER_NUM": "3"}, "VC_WORKER_NUM  is 3"),
        ({**HOSTS, "MA_NUM_HOSTS": "1"}, "MA_NUM_HOSTS  is 1"),
        ({**HOSTS, "VC_WORKER_HOSTS": "a,a"}, "names a machine twice"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(
    environment: dict[str, str], said: str
) -> None:
    [problem] = problems_of(environment)
    assert said in problem


def test_an_empty_environment_says_what_is_missing() -> None:
    assert problems_of({}) == ["MA_NUM_GPUS  is missing: how many cards has a machine?"]


@pytest.mark.parametrize("flag", ["--data_url", "--dataset", "--dataset_dir"])
def test_the_training_input_has_several_names(flag: str) -> None:
    assert read_arguments([f"{flag}=/cache/data"]).input_dir == "/cache/data"
    assert read_arguments([flag, "/cache/data"]).input_dir == "/cache/data"


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--dataset=/cache/data", "--dataset_id=wiki"], "/cache/data/wiki"),
        (["--dataset_id=/cache/wiki"], "/cache/wiki"),
        (["--dataset=/cache/data", "--data_url=/cache/data"], "/cache/data"),
        ([], None),
    ],
)
def test_a_data_set_is_inside_of_the_input(arguments: list[str], place: str | None) -> None:
    assert read_arguments(arguments).input_dir == place


def test_the_output_and_our_own_options_are_kept() -> None:
    read = read_arguments(
        ["--train_url=/cache/out", "-c", "gpt2-13b", "--override=Engine.max_steps=10",
         "-o", "Optimizer.lr.min_lr=1e-5", "--resume"]
    )  # fmt: skip
    assert read.output_dir == "/cache/out"
    assert read.passed_on == (
        "-c", "gpt2-13b", "--override=Engine.max_steps=10",
        "-o", "Optimizer.lr.min_lr=1e-5", "--resume",
    )  # fmt: skip
    assert read.notices == ()


def test_unknown_flags_and_their_values_are_left_out_with_a_notice() -> None:
    read = read_arguments(
        ["stray", "--init_method", "tcp://10.0.0.1:6666", "--world_size=2", "-c", "demo", "--flag"]
    )
    assert read.passed_on == ("-c", "demo")
    [notice] = read.notices
    assert "stray, --init_method, --world_size, --flag" in notice


def test_flags_that_cannot_be_followed_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_arguments(
            ["--data_url=obs://bucket/data", "--dataset=/cache/data", "--train_url",
             "--dataset_id=a", "--dataset_id=b"]
        )  # fmt: skip
    text = caught.value.message
    assert len(caught.value.problems) == 4
    assert "obs://bucket/data, which is not on this machine" in text
    assert "are different inputs" in text
    assert "--train_url  has no value" in text
    assert "--dataset_id  is a and b" in text
