"""How rules between keys are registered and run, and what they report.

A rule is skipped when one of its keys is invalid already: the user should not read about a
consequence of another problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastffn_cli.config.origin import DEFAULT, Origin, Problem
from fastffn_cli.config.schema import Config


@dataclass
class Review:
    """A Config under review, the places of what the user wrote, and what was found.

    `without_effect` has the reason for each such key that was given, whatever its value.
    `processes` is how many there are to run it; None where nothing is run, or only planned: what
    training would refuse is then a warning, and `planned_only` is true.
    """

    config: Config
    given: Mapping[str, Origin]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)
    without_effect: dict[str, str] = field(default_factory=dict)
    processes: int | None = 1
    planned_only: bool = False

    def place(self, keys: tuple[str, ...]) -> Origin:
        """Return the place of the first key that the user wrote."""
        return next((self.given[key] for key in keys if key in self.given), DEFAULT)

    def wrote(self, key: str) -> bool:
        """Whether the user wrote this key, in a file or as an override."""
        return key in self.given and self.given[key].given

    def error(self, text: str, *keys: str) -> None:
        """Add something that has to change."""
        self.problems.append(Problem(self.place(keys), text))

    def refuse(self, text: str, *keys: str) -> None:
        """Add something that has to change before it can be trained, and may be planned."""
        if self.processes is not None:
            self.error(text, *keys)
            return
        self.planned_only = True
        self.warn(f"planned only: {text}", *keys)

    def warn(self, text: str, *keys: str) -> None:
        """Add something that is probably not meant."""
        self.warnings.append(Problem(self.place(keys), text))

    def note(self, text: str, *keys: str) -> None:
        """Add something that is good to know."""
        self.notices.append(Problem(self.place(keys), text))


Rule = Callable[[Review], None]
_RULES: list[tuple[tuple[str, ...], Rule]] = []


def reads(*keys: str) -> Callable[[Rule], Rule]:
    """Register a rule with the dotted keys (or blocks) it reads."""

    def register(rule: Rule) -> Rule:
        _RULES.append((keys, rule))
        return rule

    return register


def review_config(
    config: Config, given: Mapping[str, Origin], invalid: set[str], *, processes: int | None = 1
) -> Review:
    """Run every rule whose keys are valid."""
    review = Review(config, given, processes=processes)
    for keys, rule in _RULES:
        if not any(_touches(key, bad) for key in keys for bad in invalid):
            rule(review)
    return review


def _touches(key: str, bad: str) -> bool:
    return key == bad or key.startswith(bad + ".") or bad.startswith(key + ".")


def divisors(number: int) -> set[int]:
    """All numbers that divide `number`."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return {*small, *(number // size for size in small)}


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`, for advice."""
    return max(size for size in divisors(number) if size <= limit)


def nearest_divisor(number: int, wish: int) -> int:
    """The divisor of `number` nearest to `wish`, for advice."""
    return min(divisors(number), key=lambda size: (abs(size - wish), size))
