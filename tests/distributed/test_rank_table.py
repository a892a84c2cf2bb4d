"""Rank tables: the bytes of the original tools, and what a strict reader refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastffn_cli.distributed.cluster import endpoints, node_of
from fastffn_cli.distributed.device_addresses import find_device_ips
from fastffn_cli.distributed.rank_table import (
    layout_of,
    make_rank_table,
    merge_rank_tables,
    name_of_cluster,
    name_of_machine,
    parse_devices,
    read_rank_table,
    read_rank_tables,
    write_rank_table,
)
from fastffn_cli.errors import ConfigError, UserError
from tests.conftest import FIXTURES_DIR

TABLES = FIXTURES_DIR / "rank_tables"
PARTS = [TABLES / f"hccl_8p_01234567_10.155.111.14{machine}.json" for machine in range(4)]
WHOLE = TABLES / "hccl_4s_32p.json"
FIRST_IPS = [f"192.{card % 4 + 1}.27.{6 + card // 4}" for card in range(8)]

Change = Callable[[dict[str, Any]], None]


def changed(tmp_path: Path, *changes: Change, source: Path = WHOLE) -> Path:
    document = json.loads(source.read_text())
    for change in changes:
        change(document)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(document))
    return file


def problems_of(file: Path, **expected: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_rank_table(file, **expected)
    return caught.value.problems


def card(document: dict[str, Any], server: int, number: int) -> dict[str, Any]:
    found: dict[str, Any] = document["server_list"][server]["device"][number]
    return found


def test_merging_the_four_parts_gives_the_originals_bytes() -> None:
    merged = merge_rank_tables(read_rank_tables(PARTS))
    assert merged.text.encode() == WHOLE.read_bytes()
    assert name_of_cluster(merged) == WHOLE.name


def test_merging_the_four_parts_gives_the_published_table() -> None:
    published = json.loads((TABLES / "seed_4s_32p.json").read_text())
    assert merge_rank_tables(read_rank_tables(PARTS)).document == published
    assert json.dumps(published, indent=4).encode() == WHOLE.read_bytes()


def test_merging_keeps_the_order_of_its_arguments_and_numbers_anew() -> None:
    merged = merge_rank_tables(read_rank_tables([PARTS[2], PARTS[0]]))
    assert [node.host for node in merged.nodes] == ["10.155.111.142", "10.155.111.140"]
    assert [node.ranks for node in merged.nodes] == [tuple(range(8)), tuple(range(8, 16))]


def test_merging_takes_tables_of_several_machines() -> None:
    halves = [merge_rank_tables(read_rank_tables(half)) for half in (PARTS[:2], PARTS[2:])]
    assert merge_rank_tables(halves).text.encode() == WHOLE.read_bytes()


def test_merging_leaves_its_parts_as_they_were() -> None:
    parts = read_rank_tables(PARTS)
    merge_rank_tables(parts)
    assert [part.text.encode() for part in parts] == [file.read_bytes() for file in PARTS]


def test_merging_keeps_what_a_platform_adds_to_a_machine(tmp_path: Path) -> None:
    def add(document: dict[str, Any]) -> None:
        document["server_list"][0]["container_ip"] = "172.16.0.4"
        document["job"] = "mine"

    part = read_rank_table(changed(tmp_path, add, source=PARTS[0]))
    merged = merge_rank_tables([part])
    assert merged.document["server_list"][0]["container_ip"] == "172.16.0.4"
    assert part.ignored == ("job",)
    assert "job" not in merged.document


def test_a_machine_merged_twice_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        merge_rank_tables(read_rank_tables([PARTS[1], PARTS[1]]))
    assert (
        'server_list[1].server_id  "10.155.111.141" is at server_list[0].server_id already'
        in caught.value.problems
    )
    assert len(caught.value.problems) == 1 + 8


@pytest.mark.parametrize("devices", ["0-7", "4-7"])
def test_making_gives_the_originals_bytes_and_name(devices: str) -> None:
    cards = parse_devices(devices)
    table = make_rank_table(cards, [FIRST_IPS[number] for number in cards], "10.155.111.140")
    original = TABLES / name_of_machine(table)
    assert table.text.encode() == original.read_bytes()


@pytest.mark.parametrize(
    ("text", "devices"),
    [("0-7", tuple(range(8))), ("0,1", (0, 1)), ("5", (5,)), ("4-5,7", (4, 5, 7))],
)
def test_devices_are_read(text: str, devices: tuple[int, ...]) -> None:
    assert parse_devices(text) == devices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3-6", "both boards"),
        ("0,4", "both boards"),
        ("0-6", "both boards"),
        ("1-7", "both boards"),
        ("0-8", "cards 0 to 7"),
        ("1,0", "upwards"),
        ("0,0", "upwards"),
        ("3-0", "upwards"),
        ("", "no card"),
        ("[0,8)", "no card"),
        ("0-", "no card"),
        ("-1", "no card"),
    ],
)
def test_devices_that_the_original_refuses_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse_devices(text)
    assert caught.value.hint


def test_without_boards_any_cards_go() -> None:
    assert parse_devices("2-5,9", boards=False) == (2, 3, 4, 5, 9)


def write_tool(folder: Path, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    tool = folder / "hccn_tool"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    return tool


def test_addresses_come_from_hccn_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = '[ "$1 $3 $4" = "-i -ip -g" ] || exit 9; '
    answer = 'echo "ipaddr:192.168.0.$2"; echo "netmask:255.255.0.0"'
    write_tool(tmp_path / "bin", called + answer)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert find_device_ips((4, 6), tmp_path / "absent") == (("192.168.0.4", "192.168.0.6"), [])


@pytest.mark.parametrize(
    "body", ["exit 1", "echo no such device", "echo ipaddr:", "echo ipaddr:1.2.3.4; exit 3"]
)
def test_addresses_come_from_the_file_when_hccn_tool_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    write_tool(tmp_path / "bin", body)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    conf = tmp_path / "hccn.conf"
    conf.write_text(
        "# cards\naddress_0=192.1.27.6\nnetmask_0=255.255.0.0\n address_1 = 192.2.27.6 \n"
    )
    found, remarks = find_device_ips((0, 1), conf)
    assert found == ("192.1.27.6", "192.2.27.6")
    assert "hccn_tool -i 0 -ip -g" in remarks[0] and "hccn.conf" in remarks[1]


def test_addresses_that_are_nowhere_are_an_error_that_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    conf = tmp_path / "hccn.conf"
    conf.write_text("address_0=192.1.27.6\n")
    with pytest.raises(UserError, match=r"no hccn_tool in PATH; .* N = 1, 2") as caught:
        find_device_ips((0, 1, 2), conf)
    assert "--device-ips" in str(caught.value.hint)


def at_top(**values: Any) -> Change:
    return lambda table: table.update(values)


def at_server(**values: Any) -> Change:
    return lambda table: table["server_list"][1].update(values)


def at_card(**values: Any) -> Change:
    return lambda table: card(table, 2, 3).update(values)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (at_top(version="1.2"), "version"),
        (at_top(status="initializing"), "status"),
        (lambda table: table.pop("status"), "status"),
        (at_top(server_count="3"), "server_count"),
        (at_top(server_count=4), "server_count"),
        (at_top(server_list=[]), "server_list"),
        (at_top(server_list={"0": 1}), "server_list"),
        (at_server(server_id=""), "server_list[1].server_id"),
        (at_server(server_id="../x"), "server_list[1].server_id"),
        (at_server(server_id="10.155.111.1400"), "server_list[1].server_id"),
        (at_server(server_id="10.155.111.140"), "server_list[1].server_id"),
        (at_card(device_id="2"), "server_list[2].device[3].device_id"),
        (at_card(device_id=3), "server_list[2].device[3].device_id"),
        (at_card(device_id="03"), "server_list[2].device[3].device_id"),
        (lambda table: card(table, 2, 3).pop("device_ip"), "server_list[2].device[3].device_ip"),
        (at_card(device_ip="192.1.27"), "server_list[2].device[3].device_ip"),
        (at_card(device_ip="192.1.27.6"), "server_list[2].device[3].device_ip"),
    ],
)
def test_one_fault_is_one_problem_at_its_place(tmp_path: Path, change: Change, place: str) -> None:
    file = changed(tmp_path, change)
    [problem] = problems_of(file)
    assert problem.startswith(f"{file}: {place}  ")


def test_a_rank_that_is_there_twice_is_named_with_the_one_that_is_missing(tmp_path: Path) -> None:
    file = changed(tmp_path, lambda table: card(table, 0, 5).update(rank_id="4"))
    assert problems_of(file) == [
        f'{file}: server_list[0].device[5].rank_id  "4" is at server_list[0].device[4].rank_id '
        "already",
        f"{file}: rank_id  32 cards have ranks 0 to 31: 5 are missing",
    ]


def test_a_rank_beyond_the_cards_is_refused(tmp_path: Path) -> None:
    file = changed(tmp_path, lambda table: card(table, 3, 7).update(rank_id="32"))
    assert [problem.rpartition(": ")[2] for problem in problems_of(file)] == [
        "31 are missing",
        "32 are too high",
    ]


def test_a_value_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    file = changed(tmp_path, at_top(version="\x1b[2J\ud800"), at_server(server_id=["\x07"]))
    assert all(problem.isascii() and problem.isprintable() for problem in problems_of(file))


def test_all_problems_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    first = changed(
        tmp_path, lambda table: table.update(version="2"), lambda table: table.pop("status")
    )
    with pytest.raises(ConfigError) as caught:
        read_rank_tables([first, tmp_path / "absent.json"])
    assert len(caught.value.problems) == 3
    assert "absent.json" in caught.value.problems[2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "# table\n{}",
        '{"status": "completed", "status": "completed"}',
        "[" * 5000,
        "\xff",
    ],
)
def test_a_file_that_is_no_table_is_an_error_with_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(text.encode("latin-1"))
    [problem] = problems_of(file)
    assert str(file) in problem


def test_the_schedulers_form_is_told_from_a_rank_table(tmp_path: Path) -> None:
    file = tmp_path / "jobstart_hccl.json"
    file.write_text('{"status": "completed", "group_count": "1", "group_list": []}')
    [problem] = problems_of(file)
    assert "RANK_TABLE_FILE" in problem


def test_the_number_of_cards_is_compared_with_rank_size_and_degrees() -> None:
    degrees = {"dp": 4, "mp": 2, "pp": 4}
    assert read_rank_table(WHOLE, rank_size=32, degrees=degrees).nodes
    assert problems_of(WHOLE, rank_size=16, degrees={**degrees, "pp": 2}) == [
        f"{WHOLE}: server_list  has 32 cards, and RANK_SIZE is 16",
        f"{WHOLE}: server_list  has 32 cards, and dp 4 x mp 2 x pp 2 need 16",
    ]


def test_endpoints_are_by_rank_with_the_card_in_the_port() -> None:
    listed = endpoints(read_rank_table(WHOLE), 6070)
    assert len(listed) == 32
    assert listed[0] == "10.155.111.140:6070"
    assert listed[9] == "10.155.111.141:6071"
    assert listed[31] == "10.155.111.143:6077"


def test_endpoints_follow_the_ranks_and_not_the_order_of_the_file(tmp_path: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        document["server_list"].reverse()
        devices = document["server_list"][3]["device"]
        devices[0]["rank_id"], devices[1]["rank_id"] = "1", "0"

    table = read_rank_table(changed(tmp_path, swap))
    assert endpoints(table, 7000)[:3] == (
        "10.155.111.140:7001", "10.155.111.140:7000", "10.155.111.140:7002",
    )  # fmt: skip
    assert table.nodes[0].devices[:3] == (1, 0, 2)


def test_endpoints_of_an_ipv6_machine_keep_the_port_apart() -> None:
    table = make_rank_table((0,), ("fe80::6",), "fd00::1")
    assert endpoints(table, 6070) == ("[fd00::1]:6070",)


@pytest.mark.parametrize("port", [0, -5, 65530])
def test_ports_that_are_none_are_refused(port: int) -> None:
    with pytest.raises(UserError, match="65535"):
        endpoints(read_rank_table(WHOLE), port)


def test_a_layout_says_what_a_machine_must_start() -> None:
    layout = layout_of(read_rank_table(WHOLE), "10.155.111.142")
    assert (layout.node_rank, layout.world_size, layout.master) == (2, 32, "10.155.111.140")
    assert layout.local_devices == tuple(range(8))
    assert layout.node.ranks == tuple(range(16, 24))


def test_a_machine_is_found_by_its_name() -> None:
    table = make_rank_table((0, 1), ("reserve", "reserve"), "127.0.0.1")
    assert node_of(table, "localhost") == 0
    assert node_of(table) == 0  # any machine has that address


def test_a_machine_that_is_not_in_the_table_is_an_error_that_lists_them() -> None:
    with pytest.raises(UserError, match=r"10\.155\.111\.140, 10\.155\.111\.141"):
        node_of(read_rank_table(WHOLE), "10.155.111.150")


def test_a_table_is_written_into_a_new_folder_and_never_twice(tmp_path: Path) -> None:
    table = read_rank_table(PARTS[0])
    file = write_rank_table(table, tmp_path / "new", "one.json")
    assert file.read_bytes() == PARTS[0].read_bytes()
    with pytest.raises(UserError, match="never overwritten"):
        write_rank_table(read_rank_table(PARTS[1]), tmp_path / "new", "one.json")
    assert file.read_bytes() == PARTS[0].read_bytes()


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_rank_table(read_rank_table(PARTS[0]), tmp_path / "file", "one.json")
