"""What became of the keys of a FleetX file, as lines for a user and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastffn_cli.config.dialect_reading import Move, Reading
from fastffn_cli.config.dialect_spelling import Form
from fastffn_cli.config.dump import format_value
from fastffn_cli.config.keys import leaf_keys
from fastffn_cli.config.layers import STDIN
from fastffn_cli.config.origin import Origin, Problem, sort_problems
from fastffn_cli.config.review import Review


@dataclass(frozen=True)
class Dialect:
    """The form of a file, and the story of its keys in the order of its lines.

    `summary` is both in one sentence, None for a file in the schema's names; `unchanged` counts the
    keys that the story leaves out.
    """

    name: Form
    moves: tuple[Move, ...]
    summary: str | None
    unchanged: int

    def as_json(self) -> dict[str, Any]:
        """Return `name` and `moves`."""
        return {"name": self.name, "moves": [move.as_json() for move in self.moves]}


NATIVE = Dialect("fastffn", (), None, 0)


def report_dialect(reading: Reading, review: Review, source: str) -> tuple[Dialect, list[str]]:
    """Return the dialect, and the notices: its summary, and a line for each override it read.

    In a file of another form, keys of the schema without effect are part of the story; in a native
    one they are notices, if they ask for something.
    """
    moves = list(reading.moves)
    foreign = reading.form != "fastffn"
    notices: list[Problem] = []
    for key, reason in review.without_effect.items():
        origin = review.given[key]
        if foreign and origin.kind == "file":
            moves = _without_effect(moves, key, reason, origin, reading.value(key))
        elif origin.given and _asks(key, reading.value(key)):
            text = f"{key} is accepted and has no effect: {reason}"
            notices.append(Problem(origin, text))
    for move in moves:
        if move.origin.kind == "override" and move.counts:
            notices.append(Problem(move.origin, f"is read as {_assignment(move)}"))
        elif move.origin.kind == "override" and move.target is None:
            notices.append(Problem(move.origin, f"is accepted and has no effect: {move.why}"))
    ordered = _in_order(moves, source)
    written = [move for move in ordered if move.origin.kind == "file"]
    summary = _summarise(reading, written, source)
    lines = [problem.line_of_report(source) for problem in sort_problems(notices, source)]
    told = {move.target for move in moves} | review.without_effect.keys()
    files = (key for key, origin in review.given.items() if origin.kind == "file")
    unchanged = sum(key not in told for key in files)
    dialect = Dialect(reading.form, tuple(ordered), summary, unchanged)
    return dialect, ([summary] if summary else []) + lines


def _without_effect(
    moves: list[Move], key: str, reason: str, origin: Origin, value: Any
) -> list[Move]:
    """Tell of a key without effect, in place of the line that says where it went."""
    if any(move.target == key for move in moves):
        return [
            replace(move, target=None, why=reason) if move.target == key else move for move in moves
        ]
    return [*moves, Move(key, None, value, reason, origin)]


def _asks(key: str, value: Any) -> bool:
    """Whether a key without effect asks for something: a FleetX file's `False` does not."""
    default = leaf_keys()[key].default
    default = list(default) if isinstance(default, tuple) else default
    return key == "Model.type_vocab_size" or value != default


def _assignment(move: Move) -> str:
    return f"{move.target}={format_value(move.value)}"


def _in_order(moves: list[Move], source: str) -> list[Move]:
    """Sort by file and line, the main file first; overrides come last."""
    files = [source, *dict.fromkeys(str(move.origin.file) for move in moves)]

    def place(move: Move) -> tuple[bool, int, int]:
        origin = move.origin
        return (origin.kind != "file", files.index(str(origin.file)), origin.line or 0)

    return sorted(moves, key=place)


def _summarise(reading: Reading, moves: list[Move], source: str) -> str | None:
    if reading.form == "fastffn":
        return None
    moved = sum(move.counts for move in moves)
    idle = sum(move.target is None for move in moves)
    name = "-" if source == STDIN else source
    counts = [f"{moved} key{'s' if moved != 1 else ''} moved"] if moved else []
    if idle:
        counts.append(f"{idle} without effect")
    return (
        f"{source} is read as {reading.title} YAML: {', '.join(counts)} "
        f"(fastffn config -c {name} lists them)"
    )
