"""FleetX's YAML in the schema's names: one pass over the merged tree, before it is validated.

Files are merged in their own names, so that `_base_` and `_inherited_` mean what they meant there.
Where a value is given under two names, the later layer wins (a base, the file, then each `-o`); two
names in one file have to agree.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from fastffn_cli.config.dialect_reading import Given, Rank, Reading, contradiction
from fastffn_cli.config.dialect_spelling import (
    WRAPPERS,
    Form,
    Path,
    form_of,
    is_block,
    is_flat,
    is_opaque,
    known_names,
    spell,
)
from fastffn_cli.config.fleetx_keys import FOREIGN, Foreign
from fastffn_cli.config.keys import all_keys, leaf_keys
from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.yaml_tree import Branch, Leaf


def read_dialect(tree: Branch, ranks: Callable[[Origin], Rank]) -> Reading:
    """Return the tree in the schema's names; a tree that has these already comes back equal."""
    return _Walk(tree, ranks).run()


class _Walk:
    """Visits every node once: natives stay, the others are collected by the key they mean."""

    def __init__(self, tree: Branch, ranks: Callable[[Origin], Rank]) -> None:
        self.flat_file = is_flat(
            Branch(
                tree.origin,
                {name: node for name, node in tree.entries.items() if node.origin.kind == "file"},
            )
        )
        self.source = tree
        self.reading = Reading(Branch(tree.origin), ranks)
        self.wanted: dict[str, list[Given]] = {}

    def run(self) -> Reading:
        kept = self.branch((), self.source)
        assert isinstance(kept, Branch)
        self.reading.tree = kept
        for target, candidates in self.wanted.items():
            self.reading.settle(target, candidates)
        return self.reading

    def branch(self, path: Path, branch: Branch) -> Branch | None:
        """Return what stays of a block, None when nothing does and the schema has no such block."""
        kept = Branch(branch.origin, inherits=branch.inherits)
        for name, node in branch.entries.items():
            inner = (*path, name)
            if inner[0] == "notes":
                stays: Leaf | Branch | None = node
            elif isinstance(node, Branch):
                stays = self.block(inner, node)
            else:
                stays = self.leaf(inner, node)
            if stays is not None:
                kept.entries[name] = stays
        own = all_keys().get(".".join(path))
        if kept.entries or not path or (own is not None and own.expected == "a block of keys"):
            return kept
        return None

    def block(self, path: Path, branch: Branch) -> Leaf | Branch | None:
        """Go into a block that either system has; the others are refused here or by the schema."""
        spelled, form = spell(path, flat=self.may_be_flat(branch.origin))
        dotted = ".".join(spelled)
        if is_opaque(dotted):
            return self.leaf(path, branch)
        if is_block(dotted) or path in WRAPPERS:
            return self.branch(path, branch)
        if dotted in leaf_keys() and form is None:
            return branch
        if dotted in FOREIGN or dotted in leaf_keys():
            self.complain(branch, f"'{'.'.join(path)}' must be a value, not a block of keys")
            return None
        return self.unknown(path, spelled, form, branch)

    def unknown(
        self, path: Path, spelled: Path, form: Form | None, node: Leaf | Branch
    ) -> Leaf | Branch | None:
        """Refuse what stands in a block of FleetX's; the schema refuses what stands in its own."""
        head = ".".join(spelled[:-1])
        if form is None and (head in all_keys() or not head) and not _is_value(head):
            return node
        source = ".".join(path)
        self.complain(node, f"unknown key '{source}'.{suggest(source, '.'.join(spelled))}")
        return None

    def may_be_flat(self, origin: Origin) -> bool:
        return self.flat_file or origin.kind == "override"

    def leaf(self, path: Path, node: Leaf | Branch) -> Leaf | Branch | None:
        """Return a leaf that stays where it is; collect or refuse the others."""
        spelled, form = spell(path, flat=self.may_be_flat(node.origin))
        source, dotted = ".".join(path), ".".join(spelled)
        rule = FOREIGN.get(dotted)
        if rule is not None:
            return self.foreign(source, dotted, form or form_of(spelled), rule, node)
        if form is not None and dotted in leaf_keys():
            assert isinstance(node, Leaf)
            self.reading.written(form, node.origin)
            self.wanted.setdefault(dotted, []).append(Given(source, node))
            return None
        if is_block(dotted) and (form is not None or dotted not in all_keys()):
            if isinstance(node, Leaf) and node.value is not None:
                self.complain(node, f"'{source}' must be a block of keys, not a value")
            return None
        if dotted in all_keys():
            return node
        return self.unknown(path, spelled, form, node)

    def foreign(
        self, source: str, dotted: str, form: Form, rule: Foreign, node: Leaf | Branch
    ) -> Leaf | Branch | None:
        leaf = node if isinstance(node, Leaf) else Leaf(_plain(node), node.origin)
        value = leaf.value
        if value is not None and rule.convert is not None:
            try:
                value = rule.convert(value)
            except ValueError as error:
                self.complain(node, f"{source} {error}")
                return None
        if source == dotted and dotted in leaf_keys() and value == leaf.value:
            return node
        self.reading.written(form, leaf.origin)
        if leaf.value is None and rule.to is None:
            return None
        self.remember(dotted, Given(source, leaf), rule)
        if rule.to is None:
            if not rule.with_others:
                self.reading.tell(source, None, leaf, rule.why)
            return None
        target = rule.to if isinstance(rule.to, str) else rule.to(value)
        changed = value != leaf.value
        given = Given(
            source,
            Leaf(value, leaf.origin, leaf.text_in_yaml_1_1),
            rule.why if changed else "",
            leaf.value if changed else None,
        )
        self.wanted.setdefault(target, []).append(given)
        return None

    def remember(self, dotted: str, given: Given, rule: Foreign) -> None:
        """Keep the latest layer's value of a key of FleetX's that has two names."""
        reading, other = self.reading, self.reading.seen.get(dotted)
        reading.seen[dotted] = given
        if other is None:
            return
        ranks = [reading.ranks(item.leaf.origin) for item in (other, given)]
        latest, earlier = (given, other) if ranks[1] >= ranks[0] else (other, given)
        reading.seen[dotted] = latest
        if rule.with_others:
            if ranks[0] == ranks[1] and other.leaf.value != given.leaf.value:
                self.complain(given.leaf, contradiction(other, given, dotted))
            reading.tell(earlier.source, None, earlier.leaf, f"{latest.source} decides")

    def complain(self, node: Leaf | Branch, text: str) -> None:
        self.reading.problems.append(Problem(node.origin, text))


def _is_value(dotted: str) -> bool:
    """Tell whether a path is a value in the schema and a block at FleetX: `Optimizer.grad_clip`."""
    return dotted in leaf_keys() and is_block(dotted)


def _plain(branch: Branch) -> Any:
    return {
        name: node.value if isinstance(node, Leaf) else _plain(node)
        for name, node in branch.entries.items()
    }


def suggest(source: str, dotted: str) -> str:
    """Return ` Did you mean '...'?` with the nearest name of its block, or what the block has."""
    head, _, name = dotted.rpartition(".")
    names = [path.rpartition(".")[2] for path in known_names() if path.rpartition(".")[0] == head]
    siblings = list(dict.fromkeys(names))
    shown = source.rpartition(".")[0]
    if near := difflib.get_close_matches(name, siblings, 1, 0.6):
        return f" Did you mean '{shown}.{near[0]}'?"
    return f" '{shown}' has: {', '.join(siblings)}" if siblings else ""
