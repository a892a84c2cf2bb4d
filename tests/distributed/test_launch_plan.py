"""What a launch starts, from numbers, cards and rank tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastffn_cli.distributed.cluster import ClusterLayout, Node
from fastffn_cli.distributed.launch_plan import (
    find_node_of_ranks,
    find_own_address,
    parse_ranks,
    plan_by_hand,
    plan_by_layout,
    resolve_endpoint,
)
from fastffn_cli.distributed.rank_table import read_rank_table
from fastffn_cli.errors import UserError
from tests.conftest import FIXTURES_DIR

TABLE = FIXTURES_DIR / "rank_tables" / "hccl_4s_32p.json"
DEGREES = {"dp_degree": 2, "sharding_degree": 1, "mp_degree": 2, "pp_degree": 1}


def test_degrees_say_how_many_processes() -> None:
    plan = plan_by_hand(device="cpu", degrees=DEGREES)
    assert [process.rank for process in plan.processes] == [0, 1, 2, 3]


def test_several_machines_share_the_degrees() -> None:
    plan = plan_by_hand(
        device="cpu", degrees=DEGREES, nnodes=2, node_rank=1, master="127.0.0.1:6170"
    )
    assert [process.rank for process in plan.processes] == [2, 3]
    assert plan.world_size == 4
    words = " ".join(plan.paddle_arguments(Path("logs")))
    assert "--nnodes 2 --rank 1 --master 127.0.0.1:6170 --host 127.0.0.1" in words


def test_cards_go_to_paddles_launcher() -> None:
    plan = plan_by_hand(device="gpu", devices=(2, 5))
    assert plan.cards == (2, 5)
    words = " ".join(plan.paddle_arguments(Path("logs")))
    assert "--nproc_per_node 2" in words
    assert "--devices 2,5" in words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "how many processes"),
        ({"nproc": 2, "devices": (0, 1, 2)}, "one process a card"),
        ({"device": "cpu", "devices": (0,)}, "the device is cpu"),
        ({"nproc": 1, "nnodes": 2}, "needs --node-rank K and --master HOST:PORT"),
        ({"nproc": 1, "nnodes": 2, "node_rank": 2, "master": "127.0.0.1:1"}, "0 to 1"),
        ({"nproc": 1, "master": "127.0.0.1:1"}, "for several machines"),
        ({"nproc": 1, "nnodes": 2, "node_rank": 0, "master": "127.0.0.1"}, "no HOST:PORT"),
        ({"nproc": 1, "nnodes": 2, "node_rank": 0, "master": "h:99999"}, "no HOST:PORT"),
        ({"nnodes": 3, "node_rank": 0, "master": "127.0.0.1:1", "degrees": DEGREES}, "evenly"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_by_hand(**{"device": "auto", **options})


def test_a_rank_table_says_ranks_cards_and_addresses() -> None:
    nodes = read_rank_table(TABLE).nodes
    plan = plan_by_layout(ClusterLayout(nodes, 1), device="npu", table=TABLE)
    assert plan.world_size == 32
    assert [process.rank for process in plan.processes] == list(range(8, 16))
    assert plan.cards == tuple(range(8))
    third = plan.processes[2]
    assert third.endpoint == "10.155.111.141:6072"
    assert third.variables["PADDLE_CURRENT_ENDPOINT"] == third.endpoint
    assert third.variables["PADDLE_MASTER"] == "10.155.111.140:6070"
    assert third.variables["PADDLE_TRAINER_ENDPOINTS"].split(",")[10] == third.endpoint
    assert (third.variables["RANK_ID"], third.variables["DEVICE_ID"]) == ("10", "2")
    assert third.variables["RANK_SIZE"] == "32"
    assert third.variables["RANK_TABLE_FILE"] == str(TABLE)
    assert "--master" not in plan.paddle_arguments(Path("logs"))


def test_some_ranks_of_a_machine() -> None:
    nodes = read_rank_table(TABLE).nodes
    ranks = parse_ranks("[12,14]")
    index = find_node_of_ranks([node.ranks for node in nodes], ranks)
    plan = plan_by_layout(ClusterLayout(nodes, index), device="npu", ranks=ranks)
    assert [(process.rank, process.device) for process in plan.processes] == [(12, 4), (13, 5)]


def test_ranks_of_two_machines_are_refused() -> None:
    nodes = read_rank_table(TABLE).nodes
    with pytest.raises(UserError, match="no machine of the table has ranks 4 to 11") as caught:
        find_node_of_ranks([node.ranks for node in nodes], parse_ranks("[4,12]"))
    assert "[0,8], [8,16]" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["8", "[8,8]", "[9,8]", "[a,b]", "0-7", "[0,8)"])
def test_a_range_has_one_spelling(text: str) -> None:
    with pytest.raises(UserError, match="no range of ranks"):
        parse_ranks(text)


def test_ipv6_machines_are_refused() -> None:
    nodes = (Node("fe80::1", (0,), (0,)), Node("fe80::2", (0,), (1,)))
    with pytest.raises(UserError, match="IPv6"):
        plan_by_layout(ClusterLayout(nodes, 0), device="cpu")


def test_a_host_name_becomes_an_address() -> None:
    assert resolve_endpoint("localhost:6170") == ("127.0.0.1", 6170)
    assert find_own_address("127.0.0.1") == "127.0.0.1"
