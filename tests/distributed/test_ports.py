"""Ports that a launch needs, tried at real sockets before anything starts."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fastffn_cli.distributed.cluster import ClusterLayout, Node
from fastffn_cli.distributed.launch_plan import LaunchPlan, plan_by_hand, plan_by_layout
from fastffn_cli.distributed.ports import check_ports
from fastffn_cli.errors import UserError

HOST = "127.0.0.1"
DOCUMENTATION_ADDRESS = "192.0.2.1"  # RFC 5737: nobody's


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody else who listens at a port of this machine."""
    with socket.create_server((HOST, 0)) as taken:
        yield taken


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def by_table(port: int, *, node_rank: int = 0) -> LaunchPlan:
    nodes = (Node(HOST, (0,), (0,)), Node(DOCUMENTATION_ADDRESS, (1,), (1,)))
    return plan_by_layout(ClusterLayout(nodes, node_rank), device="cpu", base_port=port)


def by_hand(master: str, *, node_rank: int = 0) -> LaunchPlan:
    return plan_by_hand(device="cpu", nproc=1, nnodes=2, node_rank=node_rank, master=master)


def test_a_taken_port_of_a_rank_is_refused(listener: socket.socket) -> None:
    port = port_of(listener)
    with pytest.raises(UserError, match=f"port {port} is taken on this machine: rank 0") as caught:
        check_ports(by_table(port))
    assert "--base-port" in (caught.value.hint or "")


def test_ports_of_other_machines_are_their_business(listener: socket.socket) -> None:
    check_ports(by_table(port_of(listener), node_rank=1))


def test_a_port_that_becomes_free_is_waited_for(listener: socket.socket) -> None:
    plan, begun = by_table(port_of(listener)), time.monotonic()
    timer = threading.Timer(0.3, listener.close)
    timer.start()
    check_ports(plan, patience_s=20.0)
    timer.join()
    assert 0.2 < time.monotonic() - begun < 10


def test_fading_connections_do_not_hold_a_port(listener: socket.socket) -> None:
    port = port_of(listener)
    with socket.create_connection((HOST, port)) as client:
        served, _ = listener.accept()
        served.close()  # first, so that the state TIME_WAIT is on this side
        assert client.recv(1) == b""
    listener.close()
    check_ports(by_table(port))


def test_node_rank_0_refuses_a_taken_meeting_place(listener: socket.socket) -> None:
    master = f"{HOST}:{port_of(listener)}"
    with pytest.raises(UserError, match=f"--master {master}: port .* is taken on this machine"):
        check_ports(by_hand(master))
    check_ports(by_hand(master, node_rank=1))


def test_node_rank_0_refuses_a_meeting_place_elsewhere() -> None:
    master = f"{DOCUMENTATION_ADDRESS}:6170"
    with pytest.raises(UserError, match=f"{DOCUMENTATION_ADDRESS} is no address of this machine"):
        check_ports(by_hand(master))
    check_ports(by_hand(master, node_rank=1))


@pytest.mark.slow
def test_another_node_of_this_machine_may_have_come_first() -> None:
    from paddle.distributed.launch.utils.kv_server import KVServer

    server = KVServer(0)
    server.start()
    try:
        check_ports(by_hand(f"{HOST}:{server.server_port}"))
    finally:
        server.stop()
