"""The machines and cards of a job, whoever told of them: what a launcher needs to know."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from fastffn_cli.errors import UserError

DEFAULT_PORT = 6070  # paddle.distributed.launch's --start_port
LAST_PORT = 65535


@dataclass(frozen=True)
class Node:
    """One machine: the name or address others reach it by, its cards, and the rank of each."""

    host: str
    devices: tuple[int, ...]
    ranks: tuple[int, ...]


class HasNodes(Protocol):
    """A rank table or a layout."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The machines, by their lowest rank."""


@dataclass(frozen=True)
class ClusterLayout:
    """All machines of a job, by their lowest rank, and which of them this one is."""

    nodes: tuple[Node, ...]
    node_rank: int

    @cached_property
    def node(self) -> Node:
        """This machine."""
        return self.nodes[self.node_rank]

    @property
    def local_devices(self) -> tuple[int, ...]:
        """The cards of this machine, by rank."""
        return self.node.devices

    @property
    def master(self) -> str:
        """The host of rank 0."""
        return self.nodes[0].host

    @property
    def world_size(self) -> int:
        """How many cards the job has."""
        return count_cards(self)


def count_cards(cluster: HasNodes) -> int:
    """How many cards all machines have together."""
    return sum(len(node.devices) for node in cluster.nodes)


def endpoints(cluster: HasNodes, base_port: int = DEFAULT_PORT) -> tuple[str, ...]:
    """List HOST:PORT of every process, by rank; the port is `base_port` plus the card's number.

    Raises `UserError` where a port would be none.
    """
    highest = base_port + max(max(node.devices) for node in cluster.nodes)
    if base_port < 1 or highest > LAST_PORT:
        raise UserError(
            f"ports {base_port} to {highest}: a port is a number from 1 to {LAST_PORT}",
            hint=f"Type: --base-port {DEFAULT_PORT}",
        )
    by_rank = {
        rank: f"{_in_endpoint(node.host)}:{base_port + device}"
        for node in cluster.nodes
        for device, rank in zip(node.devices, node.ranks, strict=True)
    }
    return tuple(by_rank[rank] for rank in sorted(by_rank))


def _in_endpoint(host: str) -> str:
    return f"[{host}]" if ":" in host else host  # RFC 3986: the port must stay apart


def node_of(cluster: HasNodes, name: str | None = None) -> int:
    """Find a machine by its address or host name; without a name, the machine we are on.

    Raises `UserError` naming the machines there are.
    """
    known = _names_of(name) if name else _own_names()
    for names in ({name}, known):  # as it is written, before another name of the same address
        for index, node in enumerate(cluster.nodes):
            if node.host in names:
                return index
    hosts = ", ".join(node.host for node in cluster.nodes)
    raise UserError(
        f"{name or 'this machine'} ({', '.join(sorted(known))}) is none of these: {hosts}",
        hint="Name the machine as the table does: --node HOST.",
    )


def _names_of(name: str) -> set[str]:
    try:
        return {name, *(str(found[4][0]) for found in socket.getaddrinfo(name, None))}
    except (OSError, UnicodeError):  # a name that no resolver knows is still a name
        return {name}


def _own_names() -> set[str]:
    import psutil

    hostname = socket.gethostname()
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = {
        address.address.partition("%")[0]  # fe80::1%eth0
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family in families
    }
    return {hostname, hostname.partition(".")[0], *addresses}
