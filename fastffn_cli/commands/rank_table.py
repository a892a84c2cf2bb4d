"""`fastffn rank-table`: make, merge and check the tables that say which card has which rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import JsonOption
from fastffn_cli.distributed.cluster import DEFAULT_PORT

if TYPE_CHECKING:
    from fastffn_cli.distributed.rank_table import RankTable

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

OutOption = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Folder for the file, which is never overwritten."),
]


@app.callback()
def root() -> None:
    """Make, merge and check rank tables: which card of which machine has which rank.

    The files are, byte for byte, those of MindFormers' hccl_tools.py and merge_hccl.py.

    **Examples**

    `fastffn rank-table make --devices 0-7 --server-ip 10.155.111.140`

    `fastffn rank-table merge first.json second.json`

    `fastffn rank-table check hccl_4s_32p.json --dp-degree 4 --mp-degree 2 --pp-degree 4`
    """


@app.command("make")
def make(
    devices: Annotated[
        str,
        typer.Option("--devices", metavar="CARDS", help="Cards of this machine: 0-7, or 0,1."),
    ] = "0-7",
    device_ips: Annotated[
        str | None,
        typer.Option(
            "--device-ips",
            metavar="IP,IP,...",
            help="Addresses of the cards, instead of asking hccn_tool and /etc/hccn.conf; "
            "'reserve' on a machine without Ascend cards.",
        ),
    ] = None,
    server_ip: Annotated[
        str | None,
        typer.Option(
            "--server-ip",
            metavar="IP",
            help="The address other machines reach this one by; without it, that of its host name.",
        ),
    ] = None,
    out: OutOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Make the table of this machine: hccl_8p_01234567_SERVER.json.

    **Examples**

    `fastffn rank-table make --server-ip 10.155.111.140`

    `fastffn rank-table make --devices 0-1 --device-ips 192.1.27.6,192.2.27.6 --out tables`

    `fastffn rank-table make --devices 0-3 --device-ips reserve`
    """
    from fastffn_cli.distributed.device_addresses import find_device_ips, find_server_ip
    from fastffn_cli.distributed.rank_table import (
        RESERVE,
        make_rank_table,
        name_of_machine,
        parse_devices,
        write_rank_table,
    )

    cards = parse_devices(devices, boards=device_ips != RESERVE)
    addresses, remarks = (
        find_device_ips(cards)
        if device_ips is None
        else (_split_addresses(device_ips, cards, RESERVE), [])
    )
    host, doubts = find_server_ip() if server_ip is None else (server_ip, [])
    for line in remarks:
        ui.notice(line)
    for line in doubts:
        ui.warn(line)
    table = make_rank_table(cards, addresses, host)
    _report_written(write_rank_table(table, out, name_of_machine(table)), table, as_json)


def _split_addresses(given: str, devices: tuple[int, ...], reserve: str) -> tuple[str, ...]:
    from fastffn_cli.errors import UserError

    addresses = tuple(part.strip() for part in given.split(","))
    if addresses == (reserve,):
        return addresses * len(devices)
    if len(addresses) != len(devices):
        raise UserError(
            f"--device-ips has {len(addresses)} addresses, and --devices {len(devices)} cards",
            hint="Give one address a card, in the order of --devices.",
        )
    return addresses


@app.command("merge")
def merge(
    tables: Annotated[
        list[Path],
        typer.Argument(metavar="TABLE...", help="The machines' tables, in the order of ranks."),
    ],
    out: OutOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Join the tables of several machines, and number the ranks anew: hccl_4s_32p.json.

    Every machine needs the same merged file.

    **Examples**

    `fastffn rank-table merge hccl_8p_01234567_10.0.0.1.json hccl_8p_01234567_10.0.0.2.json`
    """
    from fastffn_cli.distributed.rank_table import (
        merge_rank_tables,
        name_of_cluster,
        read_rank_tables,
        write_rank_table,
    )

    parts = read_rank_tables(tables)
    for file, part in zip(tables, parts, strict=True):
        if part.ignored:
            ui.notice(f"{file}: left out of the merged table: {', '.join(part.ignored)}")
    merged = merge_rank_tables(parts)
    _report_written(write_rank_table(merged, out, name_of_cluster(merged)), merged, as_json)
    ui.say("next: copy this one file to every machine")


def _report_written(file: Path, table: RankTable, as_json: bool) -> None:
    from fastffn_cli.distributed.cluster import count_cards

    servers, cards = len(table.nodes), count_cards(table)
    ui.say(f"wrote {_count(servers, 'machine')}, {_count(cards, 'card')}")
    if as_json:
        ui.data_json({"path": str(file), "servers": servers, "cards": cards})
    else:
        ui.data(str(file))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


DegreeOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="With the other degrees: the cards needed.")
]


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="TABLE", help="A rank table.")],
    rank_size: Annotated[
        int | None,
        typer.Option("--rank-size", metavar="N", min=1, help="The cards there must be."),
    ] = None,
    dp_degree: DegreeOption = None,
    mp_degree: DegreeOption = None,
    pp_degree: DegreeOption = None,
    sharding_degree: DegreeOption = None,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="HOST", help="A machine to find in it; else this one."),
    ] = None,
    base_port: Annotated[
        int,
        typer.Option(
            "--base-port",
            metavar="PORT",
            help="Card N of a machine listens at PORT + N (--json lists them all).",
        ),
    ] = DEFAULT_PORT,
    as_json: JsonOption = False,
) -> None:
    """Check a rank table: ranks, machines, addresses, and whether the degrees fit its cards.

    Exit code 0 when a job can start from it, 2 with every problem and its place when not.

    **Examples**

    `fastffn rank-table check hccl_4s_32p.json`

    `fastffn rank-table check hccl_4s_32p.json --dp-degree 4 --mp-degree 2 --pp-degree 4`

    `fastffn rank-table check hccl_4s_32p.json --node 10.155.111.141 --json`
    """
    from fastffn_cli.distributed.rank_table import read_rank_table

    given = {"dp": dp_degree, "mp": mp_degree, "pp": pp_degree, "sharding": sharding_degree}
    degrees = {name: degree for name, degree in given.items() if degree is not None}
    table = read_rank_table(file, rank_size=rank_size, degrees=degrees)
    described = {"path": str(file), **_describe(table, node, base_port)}
    if table.ignored:
        ui.notice(f"{file}: no one reads {', '.join(table.ignored)}")
    if as_json:
        ui.data_json(described)
        return
    _show(described)


def _describe(table: RankTable, name: str | None, base_port: int) -> dict[str, Any]:
    from fastffn_cli.distributed.cluster import count_cards, endpoints, node_of
    from fastffn_cli.errors import UserError

    try:
        here = node_of(table, name)
    except UserError:
        if name:
            raise
        here = None  # a table can be checked anywhere
    return {
        "servers": len(table.nodes),
        "cards": count_cards(table),
        "master": table.nodes[0].host,
        "node": here,
        "nodes": [
            {"host": node.host, "devices": list(node.devices), "ranks": list(node.ranks)}
            for node in table.nodes
        ],
        "endpoints": list(endpoints(table, base_port)),
    }


def _show(described: dict[str, Any]) -> None:
    here = described["node"]
    rows = [
        (
            f"{index}{' *' if index == here else ''}",
            node["host"],
            _ranges(node["devices"]),
            _ranges(node["ranks"]),
        )
        for index, node in enumerate(described["nodes"])
    ]
    title = f"{_count(described['servers'], 'machine')}, {_count(described['cards'], 'card')}"
    ui.table(title, ("node", "server", "cards", "ranks"), rows)
    ui.say(f"rank 0 listens at {described['endpoints'][0]}")
    ui.say("* is the machine in question" if here is not None else "this machine is not among them")


def _ranges(numbers: list[int]) -> str:
    """Spell numbers shortly: 0-7, or 0,2,4."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)
