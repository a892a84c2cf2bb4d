"""`-o Section.key=value`: one more layer on top of the files, read by the same rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastffn_cli.config.keys import all_keys
from fastffn_cli.config.layers import cover
from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.yaml_tree import Branch, Leaf, read_value

_FORM = "write -o Section.key=value, as in -o Engine.max_steps=100"


def apply_overrides(tree: Branch, overrides: Iterable[str], problems: list[Problem]) -> Branch:
    """Return the tree with every override on top, in the order given."""
    for argument in overrides:
        tree = _apply(tree, argument, Origin("override", text=f"-o {argument}"), problems)
    return tree


def apply_device(tree: Branch, device: str) -> Branch:
    """Return the tree with `--device` on top, kept as text whatever it looks like."""
    origin = Origin("override", text=f"--device {device}")
    return cover(tree, _nest(("Global", "device"), Leaf(device, origin)))


def _apply(tree: Branch, argument: str, origin: Origin, problems: list[Problem]) -> Branch:
    dotted, equals, text = argument.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals:
        problems.append(Problem(origin, f"there is no '=': {_FORM}"))
        return tree
    if not all(path):
        problems.append(Problem(origin, f"there is no key before the '=': {_FORM}"))
        return tree
    if text == "None" and path[0] != "notes":
        blank = f"-o {dotted}="
        problems.append(Problem(origin, f"None is Python's word: leave the value blank ({blank})"))
        return tree
    value = read_value(text, origin, problems)
    if value is None:
        return tree
    for depth in range(1, len(path)):
        elements = _list_at(tree, path[:depth])
        if elements is not None:
            return _set_element(tree, path, depth, elements, value, problems)
    if isinstance(value, Leaf) and value.value is None:
        return _forget(tree, path, value)
    return cover(tree, _nest(path, value))


def _nest(path: tuple[str, ...], value: Leaf | Branch) -> Branch:
    """Wrap a value in the blocks of its path."""
    for name in reversed(path):
        value = Branch(value.origin, {name: value})
    assert isinstance(value, Branch)
    return value


def _forget(tree: Branch, path: tuple[str, ...], blank: Leaf) -> Branch:
    """Return the tree with the default at `path`: a blank override undoes what the files say."""
    entries = dict(tree.entries)
    below = entries.get(path[0])
    if len(path) == 1:
        entries[path[0]] = blank
    else:
        inside = below if isinstance(below, Branch) else Branch(blank.origin)
        entries[path[0]] = _forget(inside, path[1:], blank)
    return Branch(tree.origin, entries)


def _list_at(tree: Branch, path: tuple[str, ...]) -> list[Any] | None:
    """Return the list at `path`: what the tree says, or else the schema's default."""
    node = tree.find(path)
    if isinstance(node, Leaf) and node.value is not None:
        return node.value if isinstance(node.value, list) else None
    key = all_keys().get(".".join(path))
    default = key.default if key else None
    return list(default) if isinstance(default, tuple) else None


def _set_element(
    tree: Branch,
    path: tuple[str, ...],
    depth: int,
    elements: list[Any],
    value: Leaf | Branch,
    problems: list[Problem],
) -> Branch:
    """Replace one element of a list: `-o Engine.log_sinks.0=visualdl`."""
    name, index = ".".join(path[:depth]), path[depth]
    if len(path) > depth + 1 or isinstance(value, Branch):
        problems.append(Problem(value.origin, f"'{name}' is a list of plain values: {_FORM}"))
    elif not index.isascii() or not index.isdigit() or int(index) >= len(elements):
        last = f"0 to {len(elements) - 1}" if elements else "none, it is empty"
        problems.append(
            Problem(
                value.origin,
                f"'{name}' has no element '{index}' (there are: {last}). Or set the whole list: "
                f"-o '{name}=[...]'",
            )
        )
    else:
        changed = list(elements)
        changed[int(index)] = value.value
        return cover(tree, _nest(path[:depth], Leaf(changed, value.origin)))
    return tree
