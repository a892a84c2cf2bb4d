"""The systems whose checkpoints can be read and written, by the name that the options use."""

from __future__ import annotations

import importlib
from pathlib import Path

from fastffn_cli.errors import CheckpointError, UserError
from fastffn_cli.interop.sniff import seems_to_be
from fastffn_cli.interop.system import Opened, System

NATIVE = "native"  # what --from and --format call checkpoints of our own
# Module of each system; it holds an object `SYSTEM`. Asked in this order by `recognise`.
SYSTEMS = {
    "fleetx": "fastffn_cli.interop.fleetx",
    "hf": "fastffn_cli.interop.huggingface",
    "mindspore": "fastffn_cli.interop.mindspore",
    "mindformers": "fastffn_cli.interop.mindformers",
}


def find_system(name: str) -> System:
    """Return the system of this name; raises `UserError` for an unknown one."""
    if name not in SYSTEMS:
        raise UserError(f"unknown system '{name}'; there are {', '.join(SYSTEMS)}")
    system: System = importlib.import_module(SYSTEMS[name]).SYSTEM
    return system


def recognise(path: Path) -> System | None:
    """Return the system that `path` holds a checkpoint of, by its content; None if none does."""
    for name in SYSTEMS:
        system = find_system(name)
        if system.recognise(path):
            return system
    return None


def choose_system(path: Path, name: str) -> System:
    """Return the system `name`, or the recognised one for `auto`.

    Raises `CheckpointError` where `path` is nothing of the kind, saying what it seems to be.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if name != "auto":
        system = find_system(name)
        if system.recognise(path):
            return system
        other = recognise(path)
        if other is not None:
            raise CheckpointError(
                f"{path} is not of {system.title}, it is of {other.title}",
                hint=f"Type: --from {other.name}, or leave --from out",
            )
        raise CheckpointError(
            f"{path} is no checkpoint of {system.title}: it is {seems_to_be(path)}"
        )
    found = recognise(path)
    if found is None:
        titles = ", ".join(find_system(each).title for each in SYSTEMS)
        raise CheckpointError(
            f"{path} is no checkpoint that can be read: it is {seems_to_be(path)}",
            hint=f"What is read: folders that fastffn wrote, and checkpoints of {titles}",
        )
    return found


def open_foreign(path: Path, name: str = "auto") -> tuple[System, Opened]:
    """Recognise a checkpoint and read its headers.

    Raises `CheckpointError` for what is no checkpoint of `name`, damaged, or names its tensors with
    characters that a terminal would obey.
    """
    system = choose_system(path, name)
    opened = system.open(path)
    odd = [each for each in opened.tensors if not each.isprintable()]
    if odd:
        raise CheckpointError(
            f"{path} has tensors whose names are not text, such as {odd[0][:60]!a}"
        )
    return system, opened
