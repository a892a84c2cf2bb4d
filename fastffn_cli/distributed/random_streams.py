"""Random numbers that differ between processes which have the others in common."""

from __future__ import annotations

from typing import Any

from fastffn_cli.engine.device import random_generator

SEEDS = 1 << 63


class RandomStream:
    """Random numbers of process `index`, between `begin` and `end`.

    Where it begins, the common generator gives a number, the same one in all processes; that and
    the index seed what is drawn until the end, where the common generator goes on as if nothing had
    been drawn. Nothing but the generator's state goes into it: a resumed run and a recomputed layer
    have the same numbers again.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._common: Any = None

    def begin(self) -> None:
        """Draw from the process's own numbers from here on."""
        generator = random_generator()
        seed = generator.random() + self.index
        self._common = generator.get_state()
        generator.manual_seed(seed % SEEDS)

    def end(self) -> None:
        """Draw from the common ones again."""
        random_generator().set_state(self._common)
        self._common = None
