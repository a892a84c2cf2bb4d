"""MindFormers' YAML in the schema's names: one pass over the merged tree, before it is validated.

Keys of ours may stand above theirs, in a file on top of one of MindFormers' or as `-o`; the later
layer decides, as in FleetX's files.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from fastffn_cli.config.dialect import read_dialect
from fastffn_cli.config.dialect_reading import Given, Rank, Reading, contradiction
from fastffn_cli.config.keys import sections
from fastffn_cli.config.mindformers_keys import (
    ALIASES,
    BLOCKS,
    DEFAULTS,
    KEYS,
    LEFT_OUT,
    MARKS,
    MARKS_INSIDE,
    OPAQUE,
    STANDS_FOR,
    TOP,
)
from fastffn_cli.config.mindformers_parts import PARTS
from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.yaml_tree import Branch, Leaf


def is_mindformers(tree: Branch) -> bool:
    """Tell whether one of the files of a merged tree is MindFormers', by its blocks."""
    blocks = [tree.find((name,)) for name in MARKS] + [tree.find(path) for path in MARKS_INSIDE]
    return any(_from_file(node) for node in blocks if node is not None)


def read_mindformers(tree: Branch, ranks: Callable[[Origin], Rank]) -> Reading:
    """Return the tree in the schema's names, and the story of every key of MindFormers'."""
    theirs, ours = Branch(tree.origin), Branch(tree.origin)
    for name, node in tree.entries.items():
        side = theirs if name in TOP or _is_strange(name, node) else ours
        side.entries[name] = node
    reading = read_dialect(ours, ranks)
    reading.form = "mindformers"
    _Walk(reading, theirs).run()
    for place in PARTS:
        place(reading)
    return reading


def _from_file(node: Leaf | Branch) -> bool:
    leaves = [node] if isinstance(node, Leaf) else [leaf for _, leaf in node.leaves()]
    return any(leaf.origin.kind == "file" for leaf in leaves)


def _is_strange(name: str, node: Leaf | Branch) -> bool:
    """Whether a name that is neither system's stands in a file, to be refused here."""
    return name not in (*sections(), "notes") and name[:1].islower() and _from_file(node)


class _Walk:
    """Visits every node once; a value goes to the key it means, or waits for others in `seen`."""

    def __init__(self, reading: Reading, theirs: Branch) -> None:
        self.reading = reading
        self.theirs = theirs
        self.wanted: dict[str, list[Given]] = {}
        self.met: set[str] = set()

    def run(self) -> None:
        for name, node in self.theirs.entries.items():
            self.visit((name,), node)
        self.fill_in()
        for target, candidates in self.wanted.items():
            self.reading.settle(target, candidates)

    def visit(self, path: tuple[str, ...], node: Leaf | Branch) -> None:
        dotted = ".".join(path)
        if dotted in OPAQUE:
            if not isinstance(node, Leaf) or node.value is not None:
                leaf = Leaf(node.plain(), node.origin) if isinstance(node, Branch) else node
                self.reading.tell(dotted, None, leaf, OPAQUE[dotted])
        elif ALIASES.get(dotted, dotted) in KEYS:
            if isinstance(node, Branch):
                self.complain(node, f"'{dotted}' must be a value, not a block of keys")
            elif node.value is not None:
                self.key(dotted, node)
        elif dotted not in BLOCKS:
            self.complain(node, f"unknown key '{dotted}'.{_suggest(dotted)}")
        elif isinstance(node, Branch):
            for name, inner in node.entries.items():
                self.visit((*path, name), inner)
        elif node.value is not None:
            self.complain(node, f"'{dotted}' must be a block of keys, not a value")

    def key(self, source: str, leaf: Leaf, why: str = "") -> None:
        path = ALIASES.get(source, source)
        rule = KEYS[path]
        self.met |= {path, *STANDS_FOR.get(path, ())}
        try:
            value = leaf.value if rule.convert is None else rule.convert(leaf.value)
        except ValueError as error:
            self.complain(leaf, f"{source} {error}")
            return
        changed = value != leaf.value
        written = leaf.value if changed else None
        given = Given(source, Leaf(value, leaf.origin), rule.why if changed else why, written)
        if rule.with_others:
            self.remember(path, given)
        elif rule.to is None:
            self.reading.tell(source, None, leaf, rule.why)
        else:
            assert isinstance(rule.to, str)
            self.wanted.setdefault(rule.to, []).append(given)

    def remember(self, path: str, given: Given) -> None:
        """Keep the latest layer's value of a key with two names."""
        other = self.reading.seen.get(path)
        if other is not None:
            ranks = [self.reading.ranks(item.leaf.origin) for item in (other, given)]
            if ranks[0] == ranks[1] and other.leaf.value != given.leaf.value:
                self.complain(given.leaf, contradiction(other, given, path))
            if ranks[0] > ranks[1]:
                given = other
        self.reading.seen[path] = given

    def fill_in(self) -> None:
        """Take MindFormers' defaults where a block leaves keys out and ours are others."""
        for block, values in DEFAULTS.items():
            node = self.theirs.find(tuple(block.split(".")))
            if not isinstance(node, Branch) or not _from_file(node):
                continue
            for name, value in values.items():
                if f"{block}.{name}" not in self.met:
                    leaf = Leaf(value, _file_origin(node))
                    self.key(f"{block}.{name}", leaf, LEFT_OUT)

    def complain(self, node: Leaf | Branch, text: str) -> None:
        self.reading.problems.append(Problem(node.origin, text))


def _file_origin(branch: Branch) -> Origin:
    """Return where a block stands in a file, also when an override added to it."""
    if branch.origin.kind == "file":
        return branch.origin
    return next(leaf.origin for _, leaf in branch.leaves() if leaf.origin.kind == "file")


def _suggest(dotted: str) -> str:
    head, _, name = dotted.rpartition(".")
    known = (path.rpartition(".") for path in (*KEYS, *BLOCKS, *OPAQUE, *ALIASES))
    names = sorted({last for block, _, last in known if block == head})
    if near := difflib.get_close_matches(name, names, 1, 0.6):
        return f" Did you mean '{f'{head}.' if head else ''}{near[0]}'?"
    return f" '{head}' has: {', '.join(names)}" if head and names else ""
