"""YAML text into a tree in which every key knows its line.

PyYAML scans and composes; nothing is constructed by it, so no tag can make an object. Mappings
become `Branch`, everything else a `Leaf` with plain Python values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.scalars import parse_scalar
from fastffn_cli.config.syntax import explain_syntax_error

_PLAIN = "plain"
_PREFIX = "tag:yaml.org,2002:"
# Aliases of aliases grow exponentially; no honest configuration comes near this.
_MOST_NODES = 100_000
_FLOAT_IN_YAML_1_1 = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.\w+")


@dataclass
class Leaf:
    """A value without keys of its own: a scalar or a list. None is a blank value.

    `text_in_yaml_1_1`: the number is text for PyYAML, which wants `1.0e-8` for `1e-8`.
    """

    value: Any
    origin: Origin
    text_in_yaml_1_1: bool = False


@dataclass
class Branch:
    """A mapping."""

    origin: Origin
    entries: dict[str, Leaf | Branch] = field(default_factory=dict)
    inherits: bool = True

    def find(self, path: tuple[str, ...]) -> Leaf | Branch | None:
        """Return what stands at `path`, or None."""
        node: Leaf | Branch | None = self
        for name in path:
            node = node.entries.get(name) if isinstance(node, Branch) else None
        return node

    def leaves(self, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Leaf]]:
        """Yield every leaf below with its path."""
        for name, node in self.entries.items():
            if isinstance(node, Leaf):
                yield (*prefix, name), node
            else:
                yield from node.leaves((*prefix, name))

    def plain(self) -> dict[str, Any]:
        """Return nested dicts and values, blank ones left out."""
        values = {}
        for name, node in self.entries.items():
            if isinstance(node, Branch):
                values[name] = node.plain()
            elif node.value is not None:
                values[name] = node.value
        return values


class _Loader(yaml.SafeLoader):
    """Marks unquoted, untagged scalars, so that the rules of YAML 1.2 can be applied to them."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)


class _TreeBuilder:
    """Turns composed nodes into a tree and collects the problems it meets."""

    def __init__(self, origin: Origin, problems: list[Problem]) -> None:
        self.source = origin
        self.problems = problems
        self.open: set[int] = set()
        self.nodes = 0

    def at(self, node: yaml.Node) -> Origin:
        if self.source.kind != "file":
            return self.source
        return Origin("file", file=self.source.file, line=node.start_mark.line + 1)

    def complain(self, node: yaml.Node, text: str) -> None:
        self.problems.append(Problem(self.at(node), text))

    def enter(self, node: yaml.Node) -> bool:
        """Count a node; False (with a problem, once) for one inside itself or one too many."""
        self.nodes += 1
        if self.nodes == _MOST_NODES:
            self.complain(node, "aliases make this file too large: write the values out")
        if id(node) in self.open:
            self.complain(node, "an alias stands inside its own anchor: write the values out")
            return False
        return self.nodes < _MOST_NODES

    def branch(self, node: yaml.MappingNode, origin: Origin, path: str = "") -> Branch:
        branch = Branch(origin)
        if not self.enter(node):
            return branch
        self.open.add(id(node))
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _PLAIN and key_node.value == "<<":
                merged.append(value_node)
                continue
            name = self.key(key_node)
            if name is None:
                continue
            dotted = f"{path}.{name}" if path else name
            at = self.at(key_node)
            if name in branch.entries:
                first = branch.entries[name].origin
                where = f"line {first.line} has it" if first.line else "it is there"
                self.problems.append(
                    Problem(at, f"duplicate key '{dotted}': {where} already. Keep one of the two")
                )
                continue
            branch.entries[name] = self.entry(value_node, at, dotted)
        for value_node in merged:
            self.merge(branch, value_node, path)
        self.open.discard(id(node))
        return branch

    def key(self, node: yaml.Node) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.value:
            return node.value
        self.complain(node, "a key must be a word, as in 'max_steps: 100'")
        return None

    def entry(self, node: yaml.Node, origin: Origin, path: str) -> Leaf | Branch:
        if isinstance(node, yaml.MappingNode) and self.known_tag(node, "map"):
            return self.branch(node, origin, path)
        value = self.value(node, path)
        text = type(value) is float and not _FLOAT_IN_YAML_1_1.fullmatch(node.value)
        return Leaf(value, origin, text)

    def merge(self, branch: Branch, node: yaml.Node, path: str) -> None:
        """Add the keys of `<<: *anchor` (or of a list of anchors) that are not there yet."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self.complain(source, "'<<' takes an alias of a mapping, as in '<<: *defaults'")
                continue
            for name, entry in self.branch(source, self.at(source), path).entries.items():
                branch.entries.setdefault(name, entry)

    def value(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if isinstance(node, yaml.SequenceNode) and self.known_tag(node, "seq"):
            if not self.enter(node):
                return None
            self.open.add(id(node))
            values = [self.value(item, path) for item in node.value]
            self.open.discard(id(node))
            return values
        if isinstance(node, yaml.MappingNode) and self.known_tag(node, "map"):
            # A mapping inside a list: its keys are checked, its lines are not needed.
            branch = self.branch(node, self.at(node), path)
            return _to_plain(branch)
        return None

    def known_tag(self, node: yaml.Node, name: str) -> bool:
        if node.tag == _PREFIX + name:
            return True
        self.complain(node, f"the tag {_show_tag(node.tag)} is not allowed here: remove it")
        return False

    def scalar(self, node: yaml.ScalarNode) -> Any:
        self.enter(node)
        if node.tag == _PLAIN:
            return parse_scalar(node.value)
        if node.tag == _PREFIX + "str":
            return node.value
        wanted = {"int": int, "float": float, "bool": bool, "null": type(None)}
        kind = wanted.get(node.tag.removeprefix(_PREFIX))
        value = parse_scalar(node.value)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is not None and type(value) is kind:
            return value
        self.complain(node, f"the tag {_show_tag(node.tag)} is not allowed here: remove it")
        return None


def _to_plain(node: Leaf | Branch) -> Any:
    if isinstance(node, Leaf):
        return node.value
    return {name: _to_plain(entry) for name, entry in node.entries.items()}


def _show_tag(tag: str) -> str:
    return "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag


def read_tree(text: str, file: str, problems: list[Problem]) -> Branch:
    """Read a file's text; `file` is the name to show. What is wrong is added to `problems`.

    A file that is not YAML at all, or holds no keys, gives an empty tree and a problem; an empty
    file gives an empty tree.
    """
    origin = Origin("file", file=file, line=1)
    root = _compose(text, origin, problems)
    if root is None:
        return Branch(origin)
    builder = _TreeBuilder(origin, problems)
    if isinstance(root, yaml.MappingNode) and builder.known_tag(root, "map"):
        try:
            tree = builder.branch(root, builder.at(root))
            return tree if builder.nodes < _MOST_NODES else Branch(origin)
        except RecursionError:
            builder.complain(root, "nested too deeply: write it with fewer levels")
    elif isinstance(root, yaml.ScalarNode) and ":" in root.value:
        word = root.value.split()[0].split(":")[0]
        builder.complain(root, f"not a key: write a space after the colon, as in '{word}: value'")
    elif not isinstance(root, yaml.MappingNode) and not (
        isinstance(root, yaml.ScalarNode) and root.tag == _PLAIN and not root.value
    ):
        builder.complain(root, "must hold sections such as 'Model:', one below the other")
    return Branch(origin)


def read_value(text: str, origin: Origin, problems: list[Problem]) -> Leaf | Branch | None:
    """Read the value of an override by the rules of a file; None after a problem."""
    before = len(problems)
    root = _compose(text, origin, problems)
    if len(problems) > before:
        return None
    if root is None:
        return Leaf(None, origin)
    if isinstance(root, yaml.CollectionNode) and not root.flow_style:
        form = "{key: value}" if isinstance(root, yaml.MappingNode) else "[a, b]"
        problems.append(Problem(origin, f"quote the value, or write it as {form}"))
        return None
    try:
        node = _TreeBuilder(origin, problems).entry(root, origin, "")
    except RecursionError:
        problems.append(Problem(origin, "nested too deeply: write it with fewer levels"))
    return node if len(problems) == before else None


def _compose(text: str, origin: Origin, problems: list[Problem]) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        line, explanation = explain_syntax_error(error, text)
        if origin.kind == "file":
            origin = Origin("file", file=origin.file, line=line)
        problems.append(Problem(origin, explanation))
    except RecursionError:
        problems.append(Problem(origin, "nested too deeply: write it with fewer levels"))
    return None
