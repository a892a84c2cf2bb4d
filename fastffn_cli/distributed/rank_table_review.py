"""What a rank table must fulfil: every problem of one, with its place in the JSON."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from fastffn_cli.distributed.cluster import Node

KNOWN = ("version", "server_count", "server_list", "status")
MAX_SHOWN = 8
MAX_TEXT = 80
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
# HCCL allows 64 characters; these are those of addresses and of host names.
_SERVER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")


class TableReview:
    """Goes through one document: `problems` are complete lines, `nodes` what could be read.

    Keys beyond the known ones are left alone: platforms add their own (`container_ip`).
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self._seen: dict[str, dict[str, str]] = {"server_id": {}, "device_ip": {}, "rank_id": {}}
        self._cards = 0
        self.nodes = self._read(document)

    def check_size(self, rank_size: int | None, degrees: Mapping[str, int]) -> None:
        """Compare the number of cards with what was asked for."""
        if rank_size is not None and rank_size != self._cards:
            self._add("server_list", f"has {self._cards} cards, and RANK_SIZE is {rank_size}")
        product = math.prod(degrees.values())
        if degrees and product != self._cards:
            spelled = " x ".join(f"{name} {degree}" for name, degree in degrees.items())
            self._add("server_list", f"has {self._cards} cards, and {spelled} need {product}")

    def _add(self, place: str, text: str) -> None:
        self.problems.append(f"{place}  {text}")

    def _read(self, document: Mapping[str, Any]) -> tuple[Node, ...]:
        if "group_list" in document and "server_list" not in document:
            self._add(
                "group_list",
                "is what a scheduler writes; RANK_TABLE_FILE names the rank table made of it "
                "(with server_list)",
            )
            return ()
        for key, wanted, why in (
            ("version", "1.0", "(1.2 is for super nodes, which are not supported)"),
            ("status", "completed", "(any other table is not ready yet)"),
        ):
            if document.get(key) != wanted:
                self._add(key, f'is {_shown(document, key)}, and must be "{wanted}" {why}')
        servers = document.get("server_list")
        if not isinstance(servers, list) or not servers:
            self._add("server_list", "must be a list of machines")
            return ()
        count = self._number(document, "server_count", "server_count")
        if count is not None and count != len(servers):
            self._add("server_count", f'is "{count}", and server_list has {len(servers)} machines')
        nodes = [self._read_server(server, index) for index, server in enumerate(servers)]
        self._check_ranks()
        whole = [node for node in nodes if node is not None]
        return tuple(sorted(whole, key=lambda node: min(node.ranks)))

    def _read_server(self, server: object, index: int) -> Node | None:
        place = f"server_list[{index}]"
        if not isinstance(server, dict):
            self._add(place, "must be a machine: an object")
            return None
        host = server.get("server_id")
        if not isinstance(host, str) or not _SERVER.fullmatch(host) or _broken_address(host):
            self._add(f"{place}.server_id", f"is {_shown(server, 'server_id')}: no address or name")
        else:
            self._once("server_id", host, f"{place}.server_id")
        cards = server.get("device")
        if not isinstance(cards, list) or not cards:
            self._add(f"{place}.device", "must be a list of cards")
            return None
        self._cards += len(cards)
        local: dict[str, str] = {}
        read = [
            self._read_card(card, f"{place}.device[{number}]", local)
            for number, card in enumerate(cards)
        ]
        pairs = sorted(pair for pair in read if pair is not None)
        if not pairs:
            return None
        return Node(str(host), tuple(card for _, card in pairs), tuple(rank for rank, _ in pairs))

    def _read_card(self, card: object, place: str, local: dict[str, str]) -> tuple[int, int] | None:
        """Read (rank, card number); `local` holds the numbers of this machine so far."""
        if not isinstance(card, dict):
            self._add(place, "must be a card: an object")
            return None
        device = self._number(card, "device_id", f"{place}.device_id")
        if device is not None:
            self._note(local, str(device), f"{place}.device_id")
        address = card.get("device_ip")
        if address != "reserve":
            if not isinstance(address, str) or not _is_address(address):
                shown = _shown(card, "device_ip")
                self._add(f"{place}.device_ip", f'is {shown}: no IP address, and not "reserve"')
            else:
                self._once("device_ip", address, f"{place}.device_ip")
        rank = self._number(card, "rank_id", f"{place}.rank_id")
        if rank is not None:
            self._once("rank_id", str(rank), f"{place}.rank_id")
        return None if device is None or rank is None else (rank, device)

    def _number(self, owner: Mapping[str, Any], key: str, place: str) -> int | None:
        value = owner.get(key)
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            return int(value)
        self._add(place, f'is {_shown(owner, key)}, and must be a number as text, like "0"')
        return None

    def _once(self, key: str, value: str, place: str) -> None:
        self._note(self._seen[key], value, place)

    def _note(self, seen: dict[str, str], value: str, place: str) -> None:
        if value in seen:
            self._add(place, f'"{value}" is at {seen[value]} already')
        else:
            seen[value] = place

    def _check_ranks(self) -> None:
        ranks = {int(rank) for rank in self._seen["rank_id"]}
        wanted = set(range(self._cards))
        for found, text in ((wanted - ranks, "are missing"), (ranks - wanted, "are too high")):
            if found:
                listed = ", ".join(map(str, sorted(found)[:MAX_SHOWN]))
                more = f" and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
                last = self._cards - 1
                self._add("rank_id", f"{self._cards} cards have ranks 0 to {last}: {listed}{more} "
                          f"{text}")  # fmt: skip


def _shown(owner: Mapping[str, Any], key: str) -> str:
    # As JSON: plain ASCII, whatever stands there, so that no terminal is moved by it.
    return json.dumps(owner[key])[:MAX_TEXT] if key in owner else "missing"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _broken_address(host: str) -> bool:
    """Whether a host looks like an address and is none: 10.155.111.1400."""
    looks = ":" in host or _DIGITS_AND_DOTS.fullmatch(host) is not None
    return looks and not _is_address(host)
