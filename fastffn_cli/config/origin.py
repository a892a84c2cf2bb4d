"""Where a value was written, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Origin:
    """Where one value comes from.

    `text` is the whole argument of an override, as typed: `-o Model.hidden_size=64`; of a recipe or
    a checkpoint it is its name.
    """

    kind: Literal["file", "override", "recipe", "checkpoint", "default", "derived"]
    file: str | None = None
    line: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        if self.kind == "file":
            return f"{self.file}:{self.line}"
        if self.kind == "override":
            return self.text or "-o"
        return self.text or self.kind

    @property
    def given(self) -> bool:
        """Whether the user wrote the value (in a file or as an override)."""
        return self.kind in ("file", "override")


DEFAULT = Origin("default")
DERIVED = Origin("derived")


@dataclass(frozen=True)
class Problem:
    """One thing the user has to change, and where it stands."""

    origin: Origin
    text: str

    def line_of_report(self, source: str) -> str:
        """Return `place  text`; a problem of no line is said of the whole source."""
        place = str(self.origin) if self.origin.given else source
        return f"{place}  {self.text}"


def sort_problems(
    problems: Iterable[Problem], source: str, overrides: Sequence[str] = ()
) -> list[Problem]:
    """Order by file (`source` first) and line, then overrides as typed, then the rest."""
    typed = [f"-o {argument}" for argument in overrides]
    found = list(dict.fromkeys(problems))
    files = list(dict.fromkeys([source, *(problem.origin.file for problem in found)]))
    ranks = {"file": 0, "override": 1}

    def place(problem: Problem) -> tuple[int, int, int]:
        origin = problem.origin
        number = typed.index(origin.text) if origin.text in typed else len(typed)
        return (ranks.get(origin.kind, 2), files.index(origin.file), origin.line or number)

    return sorted(found, key=place)
