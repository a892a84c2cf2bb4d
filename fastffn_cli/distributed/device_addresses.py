"""The network addresses of this machine's Ascend cards, and its own."""

from __future__ import annotations

import ipaddress
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fastffn_cli.errors import UserError

HCCN_CONF = Path("/etc/hccn.conf")
TOOL = "hccn_tool"
TOOL_TIMEOUT_S = 30


def find_device_ips(
    devices: Sequence[int], conf: Path = HCCN_CONF
) -> tuple[tuple[str, ...], list[str]]:
    """Find the address of every card: `hccn_tool -i N -ip -g`, else the lines of `/etc/hccn.conf`.

    Returns the addresses and what was found out on the way. Raises `UserError` with what was tried
    when a card has none.
    """
    found, tried = _ask_tool(devices)
    if found is None:
        found, reason = _read_conf(conf, devices)
        tried.append(reason)
    if found is None:
        raise UserError(
            "the cards' addresses were not found: " + "; ".join(tried),
            hint="Give them in the order of --devices: --device-ips 192.168.100.100,... "
            "or, on a machine without Ascend cards, --device-ips reserve",
        )
    return found, tried


def _ask_tool(devices: Sequence[int]) -> tuple[tuple[str, ...] | None, list[str]]:
    program = shutil.which(TOOL)
    if program is None:
        return None, [f"there is no {TOOL} in PATH"]
    addresses = []
    for device in devices:
        command = [program, "-i", str(device), "-ip", "-g"]
        shown = f"`{TOOL} {' '.join(command[1:])}`"
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TOOL_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, [f"{shown} failed: {error}"]
        # "ipaddr:192.1.27.6" and "netmask:255.255.0.0", one line each.
        match = re.search(r"^\s*ipaddr\s*:\s*(\S+)\s*$", done.stdout, re.MULTILINE)
        if done.returncode != 0 or match is None:
            said = " ".join((done.stdout + done.stderr).split())[:200] or "nothing"
            return None, [f"{shown} ended with {done.returncode} and said {said!r}"]
        addresses.append(match[1])
    return tuple(addresses), []


def _read_conf(conf: Path, devices: Sequence[int]) -> tuple[tuple[str, ...] | None, str]:
    try:
        text = conf.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return None, f"{conf} cannot be read ({error.strerror})"
    lines = re.findall(r"^\s*address_(\d+)\s*=\s*(\S+)\s*$", text, re.MULTILINE)
    known = {int(device): address for device, address in lines}
    missing = [device for device in devices if device not in known]
    if missing:
        return None, f"{conf} has no address_N for N = {', '.join(map(str, missing))}"
    return tuple(known[device] for device in devices), f"addresses are those of {conf}"


def find_server_ip() -> tuple[str, list[str]]:
    """Find this machine's address as the original does: by its own host name.

    Returns the address, and a remark where other machines cannot use it. Raises `UserError` where
    the host name has none.
    """
    hostname = socket.gethostname()
    try:
        address = socket.gethostbyname(hostname)
    except OSError as error:
        raise UserError(
            f"this machine's name {hostname} has no address ({error.strerror})",
            hint="Give the address the other machines reach it by: --server-ip 10.0.0.1",
        ) from error
    if ipaddress.ip_address(address).is_loopback:
        return address, [
            f"{address} is the loopback address of {hostname}: where other machines take part, "
            "give the one they reach it by (--server-ip)"
        ]
    return address, []
