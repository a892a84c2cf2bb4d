"""Cards to plan for, as they are written on a command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastffn_cli.engine.chips import CHIPS, Chip
from fastffn_cli.errors import UserError

MOST_CARDS = 1_000_000
PATTERN = re.compile(r"(\d+)x(\d+(?:\.\d+)?)(?:G|GB|GiB)(?::(\w+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Cards:
    """How many cards, of how much memory each, of which kind."""

    count: int
    memory_bytes: int
    chip: Chip


def parse_cards(text: str) -> Cards:
    """Read `32x32GB` or `32x64GB:910B`: cards x memory of each, and the chip.

    Without a chip it is the one with the least memory, of those sold with as much as that. GB are
    GiB, as in the names of cards. Raises `UserError`.
    """
    found = PATTERN.fullmatch(text.replace(" ", ""))
    if not found or int(found[1]) < 1 or float(found[2]) <= 0:
        raise UserError(
            f"--plan {text}: cards x memory of each is expected",
            hint=f"Type --plan 32x32GB, or with the chip ({', '.join(CHIPS)}): --plan 32x64GB:910B",
        )
    if len(found[1]) > 9 or int(found[1]) > MOST_CARDS:
        raise UserError(
            f"--plan {text}: a plan has at most {MOST_CARDS:,} cards",
            hint="Type --plan 32x32GB",
        )
    size = float(found[2])
    chip = _chip_of_size(size) if found[3] is None else _find_chip(text, found[3])
    return Cards(int(found[1]), int(size * 2**30), chip)


def _find_chip(text: str, name: str) -> Chip:
    chips = {known.lower(): chip for known, chip in CHIPS.items()}
    if name.lower() not in chips:
        raise UserError(
            f"--plan {text}: there are no figures of a chip '{name}'",
            hint=f"Known are {', '.join(CHIPS)}",
        )
    return chips[name.lower()]


def _chip_of_size(size: float) -> Chip:
    """The chip of the least memory that is at least `size` GiB; that of the most for more."""
    offers = [(memory, name) for name, chip in CHIPS.items() for memory in chip.memory]
    enough = [offer for offer in offers if offer[0] >= size]
    return CHIPS[min(enough)[1] if enough else max(offers)[1]]
