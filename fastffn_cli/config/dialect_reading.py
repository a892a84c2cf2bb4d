"""A file of FleetX's as it is read: its tree, the story of its keys, what was found on the way."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastffn_cli.config.dialect_spelling import ORDER, TITLES, Form
from fastffn_cli.config.dump import format_value
from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.yaml_tree import Branch, Leaf

Rank = tuple[int, int]


@dataclass(frozen=True)
class Move:
    """What became of one key: `source` as it was written, `target` None when it has no effect.

    `source` and `target` are the same where a key stays and its value or meaning needs a word;
    `written` is the value as it was written, None when that is `value`.
    """

    source: str
    target: str | None
    value: Any
    why: str
    origin: Origin
    written: Any = None

    @property
    def counts(self) -> bool:
        """Whether the key or its value is another than was written."""
        return self.target is not None and (self.target != self.source or self.written is not None)

    def line(self) -> str:
        """Return `place  from -> to: why`."""
        place = "-o" if self.origin.kind == "override" else str(self.origin)
        why = f": {self.why}" if self.why else ""
        if self.target is None:
            return f"{place}  {self.source}: accepted, no effect{why}"
        arrow = "" if self.target == self.source else f" -> {self.target}"
        if self.written is not None:
            new = "blank" if self.value is None else format_value(self.value)
            why = f": {format_value(self.written)} is read as {new}" + why.replace(":", ";", 1)
        return f"{place}  {self.source}{arrow}{why}"

    def as_json(self) -> dict[str, Any]:
        """Return the keys `from, to, value, why, place`."""
        return {
            "from": self.source,
            "to": self.target,
            "value": _as_json(self.value),
            "why": self.why,
            "place": str(self.origin),
        }


def _as_json(value: Any) -> Any:
    """Return a value as JSON has it: an infinite number, which is none there, as text."""
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return format_value(value)
    return value


@dataclass(frozen=True)
class Given:
    """A value for a key of the schema, under the name it was written.

    `written` is the value as it was written, None when it is the leaf's.
    """

    source: str
    leaf: Leaf
    why: str = ""
    written: Any = None

    @property
    def blank(self) -> bool:
        """Whether nothing was written."""
        return self.leaf.value is None and self.written is None

    def shown(self) -> str:
        """Return the value as it was written."""
        return format_value(self.leaf.value if self.written is None else self.written)


@dataclass
class Reading:
    """A tree in the schema's names, and what is known of the names it had.

    `seen` holds the leaves of FleetX's own keys by ppfleetx's path; `decided` the name under which
    a key of the schema was given; `form` is the file's.
    """

    tree: Branch
    ranks: Callable[[Origin], Rank]
    form: Form = "fastffn"
    moves: list[Move] = field(default_factory=list)
    seen: dict[str, Given] = field(default_factory=dict)
    decided: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def value(self, key: str) -> Any:
        """Return what the tree says of a key of the schema, None for nothing or blank."""
        node = self.tree.find(tuple(key.split(".")))
        return node.value if isinstance(node, Leaf) else None

    def origin(self, key: str) -> Origin | None:
        """Return where a key of the schema got a value."""
        node = self.tree.find(tuple(key.split(".")))
        return node.origin if isinstance(node, Leaf) and node.value is not None else None

    def place(self, key: str, leaf: Leaf) -> bool:
        """Set a key of the schema; False where a value stands in place of a block around it."""
        *blocks, name = key.split(".")
        inner = self.tree
        for block in blocks:
            node = inner.entries.get(block)
            if node is None or (isinstance(node, Leaf) and node.value is None):
                node = inner.entries[block] = Branch(leaf.origin)
            if not isinstance(node, Branch):
                return False
            inner = node
        if isinstance(inner.entries.get(name), Branch):
            return False
        inner.entries[name] = leaf
        return True

    def tell(
        self, source: str, target: str | None, leaf: Leaf, why: str = "", written: Any = None
    ) -> None:
        """Add a line to the story of the keys."""
        self.moves.append(Move(source, target, leaf.value, why, leaf.origin, written))

    def settle(self, target: str, candidates: list[Given]) -> None:
        """Let the latest layer decide about one key of the schema."""
        node = self.tree.find(tuple(target.split(".")))
        if isinstance(node, Leaf):
            candidates = [*candidates, Given(target, node)]

        def weight(given: Given) -> tuple[Rank, bool]:
            return self.ranks(given.leaf.origin), not given.blank

        winner = max(candidates, key=weight)
        self.decided[target] = winner.source
        if not self.place(target, winner.leaf):
            return  # the value that stands in the way is reported by the schema
        for given in candidates:
            leaf = given.leaf
            if given is winner or given.blank:
                continue
            same_layer = self.ranks(leaf.origin) == self.ranks(winner.leaf.origin)
            equal = comparable(target, leaf.value) == comparable(target, winner.leaf.value)
            if same_layer and not equal:
                self.problems.append(Problem(leaf.origin, contradiction(given, winner, target)))
            elif equal:
                self.tell(given.source, target, leaf, f"as {winner.source} says")
            else:
                self.tell(given.source, None, leaf, f"{winner.leaf.origin} decides")
        changed = winner.written is not None
        if changed or (winner.source != target and winner.leaf.value is not None):
            self.tell(winner.source, target, winner.leaf, winner.why, winner.written)

    def explain(self, key: str, why: str) -> None:
        """Say what a key of the schema means here, behind what is told of it already."""
        for index, move in enumerate(self.moves):
            if move.target == key:
                joined = f"{move.why}; {why}" if move.why else why
                self.moves[index] = replace(move, why=joined)
                return
        node = self.tree.find(tuple(key.split(".")))
        if isinstance(node, Leaf):  # else a value stands in place of a block, and is reported
            self.tell(key, key, node, why)

    def drop(self, key: str, why: str) -> None:
        """Forget what a file says of a key of the schema, and tell why."""
        *blocks, name = key.split(".")
        block = self.tree.find(tuple(blocks))
        assert isinstance(block, Branch)
        leaf = block.entries.pop(name)
        assert isinstance(leaf, Leaf)
        sources = [move for move in self.moves if move.target == key]
        self.moves = [move for move in self.moves if move.target != key]
        self.tell(sources[0].source if sources else key, None, leaf, why)

    def from_file(self, key: str) -> bool:
        """Whether a file, not an override, gives a key of the schema a value."""
        origin = self.origin(key)
        return origin is not None and origin.kind == "file"

    def written(self, form: Form, origin: Origin) -> None:
        """Note that a file (overrides aside) has a key of this form."""
        if origin.kind == "file" and ORDER.index(form) > ORDER.index(self.form):
            self.form = form

    @property
    def is_ppfleetx(self) -> bool:
        """Whether the file is of the later system."""
        return self.form.startswith("ppfleetx")

    @property
    def title(self) -> str:
        """The form in words."""
        return TITLES[self.form]


def contradiction(one: Given, other: Given, target: str) -> str:
    """Name both places of two values; an override that holds a block has no lines."""
    pair = sorted((one, other), key=lambda given: given.leaf.origin.line or 0)
    said = [
        f"'{given.source}' is {given.shown()}"
        + (f" (line {given.leaf.origin.line})" if given.leaf.origin.line else "")
        for given in pair
    ]
    return f"{' and '.join(said)}, and both mean {target}: keep one of the two"


def comparable(target: str, value: Any) -> Any:
    """Return a value in which `./data/` is `./data`, and `949,50,1` is [949, 50, 1]."""
    if target.endswith("input_dir") and isinstance(value, str):
        return os.path.normpath(value)
    if target.endswith("split"):
        parts = re.split(r"[,/]", value) if isinstance(value, str) else value
        try:
            return [float(part) for part in parts]
        except (TypeError, ValueError):
            return value
    return value
