"""The ports of this machine at which a launch will listen, tried before anything is started.

Paddle does not say that one is taken: its store of addresses aborts the process (libuv), and its
launchers of several machines wait forever.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import time

from fastffn_cli.distributed.launch_plan import LaunchPlan, resolve_endpoint
from fastffn_cli.errors import UserError

POLL_S = 0.2
ANSWER_S = 2.0
ANY_ADDRESS = ""
MEETING_PLACE = b'{"/healthy": "ok"}'  # of paddle.distributed.launch, KVServer


def check_ports(plan: LaunchPlan, *, patience_s: float = 0.0) -> None:
    """Raise `UserError` if a port that this machine's processes need is taken for so long.

    With a rank table these are its ranks' ports; by hand that of `--master`, on node rank 0.
    """
    until = time.monotonic() + patience_s
    while (problem := _find_taken(plan) or _find_bad_master(plan)) is not None:
        if time.monotonic() >= until:
            raise problem
        time.sleep(POLL_S)


def _find_taken(plan: LaunchPlan) -> UserError | None:
    ports = [
        (process.rank, int(process.endpoint.rpartition(":")[2]))
        for process in plan.processes
        if process.endpoint is not None
    ]
    problems = [
        f"port {port} {_describe(code)}: rank {rank} would listen there"
        for rank, port in ports
        if (code := _try_port(ANY_ADDRESS, port)) is not None
    ]
    if not problems:
        return None
    return UserError(
        "\n".join(problems),
        hint="On every machine, type --base-port PORT: card N listens at PORT + N.",
    )


def _find_bad_master(plan: LaunchPlan) -> UserError | None:
    if plan.master is None or plan.node_rank != 0:
        return None
    address, port = resolve_endpoint(plan.master)
    code = _try_port(address, port)
    if code is None or (code == errno.EADDRINUSE and _is_meeting_place(address, port)):
        return None
    if code == errno.EADDRNOTAVAIL:
        return UserError(
            f"--master {plan.master}: {address} is no address of this machine, and this is node "
            "rank 0",
            hint="HOST is the machine of node rank 0. On the others, type their own --node-rank.",
        )
    return UserError(
        f"--master {plan.master}: port {port} {_describe(code)}",
        hint="On every machine, name another port: --master HOST:PORT",
    )


def _try_port(address: str, port: int) -> int | None:
    """Return the system's number for why nobody can listen there; None where one can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Paddle's own listeners: connections of a try before, which are fading, do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno
    return None


def _is_meeting_place(address: str, port: int) -> bool:
    """Whether Paddle's launcher listens there: that of another node on this same machine."""
    connection = http.client.HTTPConnection(address, port, timeout=ANSWER_S)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/healthy")
        return connection.getresponse().read(len(MEETING_PLACE)) == MEETING_PLACE
    return False


def _describe(code: int) -> str:
    if code == errno.EADDRINUSE:
        return "is taken on this machine"
    return f"cannot be used on this machine ({os.strerror(code)})"
