"""Rank tables: the JSON file in which an Ascend cluster says which card has which rank.

The form is HCCL's template 1.0, and the bytes are those of MindFormers' `hccl_tools.py` (one
machine) and `merge_hccl.py` (all of them): `json.dump` with an indent of four, numbers as strings,
no line break at the end.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.distributed.cluster import ClusterLayout, Node, count_cards, node_of
from fastffn_cli.distributed.rank_table_review import KNOWN, TableReview
from fastffn_cli.errors import ConfigError, FastFFNError, UserError
from fastffn_cli.interop.json_file import read_object

RESERVE = "reserve"  # what the original writes where nothing is known
GROUP = 4  # cards of one board of an Ascend 910 machine
CARDS = 2 * GROUP


@dataclass(frozen=True)
class RankTable:
    """A checked rank table: its machines by their lowest rank, and the JSON it is."""

    nodes: tuple[Node, ...]
    document: Mapping[str, Any]

    @property
    def ignored(self) -> tuple[str, ...]:
        """Keys of the file that no one here reads, and that merging leaves out."""
        return tuple(
            key if key.isidentifier() else json.dumps(key)
            for key in self.document
            if key not in KNOWN
        )

    @property
    def text(self) -> str:
        """The file, byte for byte as the original tools write it."""
        return json.dumps(self.document, indent=4)


def read_rank_table(
    file: Path, *, rank_size: int | None = None, degrees: Mapping[str, int] | None = None
) -> RankTable:
    """Read one rank table.

    `rank_size` is the number of cards that is expected, `degrees` the parallel degrees whose
    product must be that number. Raises `ConfigError` with all problems at once, each with file and
    place.
    """
    return read_rank_tables([file], rank_size=rank_size, degrees=degrees)[0]


def read_rank_tables(
    files: Sequence[Path],
    *,
    rank_size: int | None = None,
    degrees: Mapping[str, int] | None = None,
) -> list[RankTable]:
    """Read several rank tables, and report the problems of all of them together."""
    problems, tables = [], []
    for file in files:
        try:
            document = read_object(file)
        except FastFFNError as error:
            problems.append(error.message)
            continue
        review = TableReview(document)
        review.check_size(rank_size, degrees or {})
        problems += [f"{file}: {problem}" for problem in review.problems]
        tables.append(RankTable(review.nodes, document))
    if problems:
        raise ConfigError(
            "the rank table" if len(files) == 1 else "the rank tables",
            problems,
        )
    return tables


def make_rank_table(devices: Sequence[int], device_ips: Sequence[str], server_ip: str) -> RankTable:
    """Make the table of one machine: ranks from 0 in the order of `devices`.

    Raises `ConfigError` for addresses that are none, or are there twice.
    """
    cards = [
        {"device_id": str(device), "device_ip": address, "rank_id": str(rank)}
        for rank, (device, address) in enumerate(zip(devices, device_ips, strict=True))
    ]
    server = {"server_id": server_ip, "device": cards, "host_nic_ip": RESERVE}
    return _from_servers([server], "what the table would hold")


def merge_rank_tables(tables: Sequence[RankTable]) -> RankTable:
    """Join tables in the order of their machines, and number the ranks anew from 0.

    Raises `ConfigError` where a machine or an address is in two of them.
    """
    servers = [
        copy.deepcopy(server) for table in tables for server in table.document["server_list"]
    ]
    cards = [card for server in servers for card in server["device"]]
    for rank, card in enumerate(cards):
        card["rank_id"] = str(rank)
    return _from_servers(servers, "the merged table")


def _from_servers(servers: list[dict[str, Any]], source: str) -> RankTable:
    document = {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": servers,
        "status": "completed",
    }
    review = TableReview(document)
    if review.problems:
        raise ConfigError(source, review.problems)
    return RankTable(review.nodes, document)


def name_of_machine(table: RankTable) -> str:
    """Name the file of one machine as `hccl_tools.py` does: hccl_8p_01234567_10.0.0.1.json."""
    [node] = table.nodes
    return f"hccl_{len(node.devices)}p_{''.join(map(str, node.devices))}_{node.host}.json"


def name_of_cluster(table: RankTable) -> str:
    """Name the file of several machines as `merge_hccl.py` does: hccl_4s_32p.json."""
    return f"hccl_{len(table.nodes)}s_{count_cards(table)}p.json"


def write_rank_table(table: RankTable, folder: Path, name: str) -> Path:
    """Write a table into a folder, which is made. Raises `UserError` if the file is there."""
    from fastffn_cli.engine.storage import write_file

    file = folder / name
    if file.exists() or file.is_symlink():
        raise UserError(
            f"{file} is there already, and is never overwritten", hint="Name another: --out DIR"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, table.text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    return file


def layout_of(table: RankTable, name: str | None = None) -> ClusterLayout:
    """Turn a table into what a launcher needs on the machine of this address or name, or on ours.

    Raises `UserError` if that machine is not in the table.
    """
    return ClusterLayout(table.nodes, node_of(table, name))


def parse_devices(text: str, *, boards: bool = True) -> tuple[int, ...]:
    """Read card numbers: `0-7`, `0,1`, `0-1,4`.

    With `boards` they are those of an Ascend 910 machine, 0 to 7, and, as with the original, all
    eight or cards of one board of four. Raises `UserError` with the spelling to use.
    """
    devices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})(?:-(\d{1,3}))?\s*", part)
        if match is None:
            raise UserError(
                f"--devices {text}: {part!r} is no card",
                hint="Type: --devices 0-7, or --devices 0,1 ([0,8) of hccl_tools.py is 0-7 here)",
            )
        first = int(match[1])
        devices += range(first, int(match[2] or first) + 1)
    if not devices or devices != sorted(set(devices)):
        raise UserError(
            f"--devices {text}: card numbers go upwards, each of them once",
            hint="Type: --devices " + (",".join(map(str, sorted(set(devices)))) or "0-7"),
        )
    if boards:
        _check_boards(text, devices)
    return tuple(devices)


def _check_boards(text: str, devices: Sequence[int]) -> None:
    if devices[-1] >= CARDS:
        raise UserError(
            f"--devices {text}: an Ascend machine has cards 0 to {CARDS - 1}",
            hint="Type: --devices 0-7",
        )
    if devices[0] < GROUP <= devices[-1] and len(devices) < CARDS:
        raise UserError(
            f"--devices {text} takes cards of both boards (0-3 and 4-7), which only 0-7 may",
            hint="Type: --devices 0-3, --devices 4-7, or --devices 0-7",
        )
