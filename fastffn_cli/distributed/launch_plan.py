"""What a launch starts on this machine: which ranks, on which cards, reached at which addresses."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastffn_cli.distributed.cluster import (
    DEFAULT_PORT,
    LAST_PORT,
    ClusterLayout,
    endpoints,
)
from fastffn_cli.errors import UserError

CPU = "cpu"
AUTO = "auto"


@dataclass(frozen=True)
class LocalProcess:
    """One process of this machine.

    `device` is the number of its card, `endpoint` its HOST:PORT; None is Paddle's launcher's to
    choose. `variables` are those that this program sets on top of Paddle's launcher.
    """

    rank: int
    device: int | None = None
    endpoint: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LaunchPlan:
    """The processes of this machine, and where the others meet it.

    `device` is a kind (`cpu`, `gpu`, `npu`, `auto`). `master` is the HOST:PORT where Paddle's
    launchers of several machines meet; None where there is nobody to meet, or a table has said all.
    """

    device: str
    processes: tuple[LocalProcess, ...]
    world_size: int
    node_rank: int = 0
    node_count: int = 1
    master: str | None = None

    @property
    def cards(self) -> tuple[int, ...]:
        """The cards of this machine that take part; empty where Paddle's launcher counts them."""
        return tuple(process.device for process in self.processes if process.device is not None)

    def paddle_arguments(self, log_dir: Path) -> list[str]:
        """Return the arguments of `paddle.distributed.launch` that come before the script."""
        words = ["--nproc_per_node", str(len(self.processes)), "--log_dir", str(log_dir)]
        words += ["--max_restart", "0", "--elastic_level", "-1", "--enable_gpu_log", "0"]
        if self.cards and self.device != CPU:
            words += ["--devices", ",".join(map(str, self.cards))]
        if self.master is not None:
            address, port = resolve_endpoint(self.master)
            own = address if self.node_rank == 0 else find_own_address(address)
            words += ["--nnodes", str(self.node_count), "--rank", str(self.node_rank)]
            words += ["--master", f"{address}:{port}", "--host", own]
        return words


def plan_by_hand(
    *,
    device: str,
    nproc: int | None = None,
    devices: Sequence[int] | None = None,
    nnodes: int = 1,
    node_rank: int | None = None,
    master: str | None = None,
    degrees: Mapping[str, int] | None = None,
) -> LaunchPlan:
    """Plan so many processes on this machine, and as many on each of `nnodes` machines.

    `degrees` are those of the configuration: without `nproc` and `devices` their product is the
    number of all processes. Raises `UserError` for what is missing or contradictory.
    """
    _check_nodes(nnodes, node_rank, master)
    if nproc is not None and devices is not None and nproc != len(devices):
        raise UserError(
            f"--nproc {nproc} and --devices with {len(devices)} cards: one process a card",
            hint="Give one of the two.",
        )
    if devices is not None and device == CPU:
        raise UserError(
            "--devices names cards, and the device is cpu",
            hint=f"Type --nproc {len(devices)} for processes on the CPU.",
        )
    count = nproc if devices is None else len(devices)
    if count is None:
        count = _count_from_degrees(nnodes, degrees)
    first = (node_rank or 0) * count
    processes = tuple(
        LocalProcess(first + number, None if devices is None else devices[number])
        for number in range(count)
    )
    return LaunchPlan(device, processes, count * nnodes, node_rank or 0, nnodes, master)


def plan_by_layout(
    layout: ClusterLayout,
    *,
    device: str,
    base_port: int = DEFAULT_PORT,
    ranks: Sequence[int] | None = None,
    table: Path | None = None,
) -> LaunchPlan:
    """Plan the processes of one machine of a cluster whose machines and cards are all known.

    Card N listens at `base_port` + N. `ranks` are those of the machine to start, all by default;
    `table` is the rank table the layout was read from. Besides Paddle's variables every process
    gets those of MindFormers' `run_distribute.sh`: RANK_ID, DEVICE_ID, RANK_SIZE and
    RANK_TABLE_FILE. Raises `UserError`.
    """
    listeners, node = endpoints(layout, base_port), layout.node
    broken = [host for host in (each.host for each in layout.nodes) if ":" in host]
    if broken:
        raise UserError(
            f"{broken[0]} is an IPv6 address, which Paddle's launcher cannot take",
            hint="Name the machines by their host names or IPv4 addresses.",
        )
    chosen = [
        (card, rank)
        for card, rank in zip(node.devices, node.ranks, strict=True)
        if ranks is None or rank in ranks
    ]
    common = {
        "PADDLE_MASTER": listeners[0],
        "PADDLE_TRAINER_ENDPOINTS": ",".join(listeners),
        "PADDLE_TRAINERS_NUM": str(layout.world_size),
        "PADDLE_GLOBAL_SIZE": str(layout.world_size),
        "PADDLE_NNODES": str(len(layout.nodes)),
        "RANK_SIZE": str(layout.world_size),
        **({} if table is None else {"RANK_TABLE_FILE": str(table.absolute())}),
    }
    processes = tuple(
        LocalProcess(
            rank,
            card,
            listeners[rank],
            {
                **common,
                "PADDLE_CURRENT_ENDPOINT": listeners[rank],
                "PADDLE_TRAINER_ID": str(rank),
                "PADDLE_GLOBAL_RANK": str(rank),
                "RANK_ID": str(rank),
                "DEVICE_ID": str(card),
            },
        )
        for card, rank in chosen
    )
    return LaunchPlan(
        device, processes, layout.world_size, layout.node_rank, node_count=len(layout.nodes)
    )


def find_node_of_ranks(layout_nodes: Sequence[Sequence[int]], ranks: Sequence[int]) -> int:
    """Find the machine that has all of these ranks; raises `UserError` where none has."""
    for index, own in enumerate(layout_nodes):
        if set(ranks) <= set(own):
            return index
    there = ", ".join(f"[{min(own)},{max(own) + 1}]" for own in layout_nodes)
    raise UserError(
        f"no machine of the table has ranks {min(ranks)} to {max(ranks)}",
        hint=f"The machines' ranks are {there} (the end is not included).",
    )


def parse_ranks(text: str) -> tuple[int, ...]:
    """Read `[8,16]`, ranks 8 to 15, as `run_distribute.sh` spells a range."""
    match = re.fullmatch(r"\s*\[\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\]\s*", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(
            f"--ranks {text}: no range of ranks",
            hint="Type [0,8] for ranks 0 to 7: the end is not included.",
        )
    return tuple(range(int(match[1]), int(match[2])))


def resolve_endpoint(text: str) -> tuple[str, int]:
    """Read HOST:PORT, and find the host's IPv4 address, which alone Paddle's launcher takes."""
    host, colon, port = text.removeprefix("http://").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) <= LAST_PORT:
        raise UserError(f"--master {text}: no HOST:PORT", hint="Type: --master 10.0.0.1:6170")
    try:
        return socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0], int(port)  # type: ignore[return-value]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--master {text}: {host} has no IPv4 address that this machine knows",
            hint="Give the address itself: --master 10.0.0.1:6170",
        ) from error


def find_own_address(other: str) -> str:
    """Return the address by which another machine sees this one: that of the way to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other, 9))  # sends nothing
        except OSError as error:
            raise UserError(f"there is no way from here to {other}: {error.strerror}") from error
        return str(probe.getsockname()[0])


def _check_nodes(nnodes: int, node_rank: int | None, master: str | None) -> None:
    if nnodes == 1:
        if node_rank or master is not None:
            raise UserError(
                "--node-rank and --master are for several machines",
                hint="Add --nnodes N, or leave them out.",
            )
        return
    missing = [
        option
        for option, value in (("--node-rank K", node_rank), ("--master HOST:PORT", master))
        if value is None
    ]
    if missing:
        raise UserError(
            f"--nnodes {nnodes} needs {' and '.join(missing)}",
            hint="HOST is the machine of node rank 0, and the same in every machine's command.",
        )
    if node_rank is not None and node_rank >= nnodes:
        raise UserError(
            f"--node-rank {node_rank}: {nnodes} machines are 0 to {nnodes - 1}",
            hint="Every machine has a rank of its own, beginning with 0.",
        )
    if master is not None:
        resolve_endpoint(master)


def _count_from_degrees(nnodes: int, degrees: Mapping[str, int] | None) -> int:
    if degrees is None:
        raise UserError(
            "how many processes?", hint="Type --nproc N, --devices 0,1,... or --rank-table FILE"
        )
    needed = math.prod(degrees.values())
    if needed % nnodes:
        spelled = " x ".join(f"{name} {degree}" for name, degree in degrees.items())
        raise UserError(
            f"{spelled} = {needed} processes cannot be shared evenly by {nnodes} machines",
            hint="Set other degrees in Distributed, or another --nnodes.",
        )
    return needed // nnodes
