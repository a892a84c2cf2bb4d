"""Files on files: `_base_`, `_inherited_`, and how one layer of settings covers another.

MindFormers' files name theirs as `base_config`: a later one replaces whole blocks of an earlier
one, and the file itself covers them key by key.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastffn_cli.config.ffn import FFN_KINDS
from fastffn_cli.config.keys import all_keys, sections
from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.shipped import find_config_file
from fastffn_cli.config.yaml_tree import Branch, Leaf, read_tree
from fastffn_cli.errors import ConfigError

STDIN = "<stdin>"


class LayerReader:
    """Reads a file with everything it inherits; collects problems and warnings.

    `layers` names the files in the order in which they cover each other, the topmost last.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.layers: list[str] = []

    def read(self, source: str) -> Branch:
        """Return the merged tree of `source` (a path, a shipped name, or `-` for stdin)."""
        if source == "-":
            return self._finish(_decode(sys.stdin.buffer.read(), STDIN), STDIN, Path.cwd(), ())
        return self.read_file(find_config_file(source))

    def read_file(self, path: Path, chain: tuple[Path, ...] = ()) -> Branch:
        """Return the merged tree of one file; `chain` is the files that inherit from it."""
        name = show_path(path)
        try:
            text = _decode(path.read_bytes(), name)
        except OSError as error:
            raise ConfigError(name, [f"{name}  cannot be read: {error.strerror}"]) from error
        return self._finish(text, name, path.resolve().parent, (*chain, path.resolve()))

    def _finish(self, text: str, name: str, folder: Path, chain: tuple[Path, ...]) -> Branch:
        tree = read_tree(text, name, self.problems)
        bases = tree.entries.pop("_base_", None)
        parts = tree.entries.pop("base_config", None)
        self._check_inherited(tree, "")
        self._lift_sections(tree)
        merged = Branch(tree.origin)
        for base, origin in self._base_names(bases, "_base_"):
            if layer := self._read_base(base, origin, folder, chain, "_base_"):
                merged = cover(merged, layer)
        for part, origin in self._base_names(parts, "base_config"):
            if layer := self._read_base(part, origin, folder, chain, "base_config"):
                merged = Branch(layer.origin, {**merged.entries, **layer.entries})
        self.layers.append(name)
        return cover(merged, tree)

    def _base_names(self, node: Leaf | Branch | None, key: str) -> list[tuple[str, Origin]]:
        if node is None or (isinstance(node, Leaf) and node.value is None):
            return []
        value = node.value if isinstance(node, Leaf) else None
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) and name for name in names):
            self.problems.append(
                Problem(node.origin, f"'{key}' must be a file or a list of files, relative to this")
            )
            return []
        return [(str(name), node.origin) for name in names]

    def _read_base(
        self, base: str, origin: Origin, folder: Path, chain: tuple[Path, ...], key: str
    ) -> Branch | None:
        path = folder / Path(base).expanduser()
        if not path.is_file() and Path(base).name == base:
            try:
                path = find_config_file(base)
            except ConfigError:
                path = folder / base
        if not path.is_file():
            self.problems.append(
                Problem(origin, f"'{key}' names {show_path(path)}, and there is no such file")
            )
            return None
        if path.resolve() in chain:
            loop = " -> ".join(show_path(item) for item in (*chain, path))
            self.problems.append(
                Problem(origin, f"'{key}' goes round in a circle: {loop}. Remove one of them")
            )
            return None
        return self.read_file(path, chain)

    def _check_inherited(self, branch: Branch, path: str) -> None:
        """Take `_inherited_` out of every block and refuse `_base_` anywhere but on top."""
        node = branch.entries.pop("_inherited_", None)
        if node is not None:
            value = node.value if isinstance(node, Leaf) else node
            if isinstance(value, bool):
                branch.inherits = value
            elif value is not None:
                self.problems.append(
                    Problem(node.origin, "'_inherited_' must be true or false (false: start anew)")
                )
        for name, entry in branch.entries.items():
            dotted = f"{path}.{name}" if path else name
            if name == "_base_" and path.partition(".")[0] != "notes":
                self.problems.append(
                    Problem(entry.origin, f"'{dotted}': '_base_' stands at the top of a file only")
                )
            elif isinstance(entry, Branch):
                self._check_inherited(entry, dotted)
        if path.partition(".")[0] != "notes":
            branch.entries.pop("_base_", None)

    def _lift_sections(self, tree: Branch) -> None:
        """Read a section that is indented under another one as a section of its own.

        FleetX's documentation indents some of its blocks; pasted one below the other, they end up
        inside the block before. No section has a key of a section's name, so this is unambiguous.
        """
        for outer in sections():
            block = tree.entries.get(outer)
            if not isinstance(block, Branch):
                continue
            for inner in [name for name in block.entries if name in sections()]:
                entry = block.entries.pop(inner)
                if inner in tree.entries:
                    first = tree.entries[inner].origin
                    text = f"duplicate section '{inner}': line {first.line} has it already"
                    self.problems.append(Problem(entry.origin, text))
                    continue
                tree.entries[inner] = entry
                self.warnings.append(
                    Problem(
                        entry.origin,
                        f"section '{inner}' is indented under '{outer}' and is read as a section "
                        "of its own. Move it to the left margin",
                    )
                )


def tree_of(values: Mapping[str, Any], origin: Origin) -> Branch:
    """Return nested values as a tree; every one comes from `origin`."""
    return Branch(
        origin,
        {
            name: tree_of(value, origin) if isinstance(value, Mapping) else Leaf(value, origin)
            for name, value in values.items()
        },
    )


def cover(lower: Branch, upper: Branch, path: str = "") -> Branch:
    """Return `lower` with everything that `upper` says on top of it.

    A blank value goes back to the default; a blank block says nothing; `_inherited_: False` in a
    block forgets what lies below it. Changing `Model.ffn.kind` drops options the new kind does not
    have.
    """
    if not upper.inherits:
        return Branch(upper.origin, dict(upper.entries))
    entries = dict(lower.entries)
    if path == "Model.ffn":
        entries = _keep_options_of(entries, upper)
    for name, node in upper.entries.items():
        dotted = f"{path}.{name}" if path else name
        below = entries.get(name)
        if isinstance(node, Leaf) and node.value is None and _is_block(dotted, below):
            continue
        if isinstance(node, Branch) and isinstance(below, Branch):
            entries[name] = cover(below, node, dotted)
        else:
            entries[name] = node
    return Branch(upper.origin, entries)


def _is_block(path: str, below: Leaf | Branch | None) -> bool:
    """Tell whether a blank at `path` is a block with all its keys left out."""
    key = all_keys().get(path)
    return isinstance(below, Branch) or (key is not None and key.expected == "a block of keys")


def _keep_options_of(entries: dict[str, Leaf | Branch], upper: Branch) -> dict[str, Leaf | Branch]:
    new, old = upper.entries.get("kind"), entries.get("kind")
    new_kind = new.value if isinstance(new, Leaf) else None
    old_kind = old.value if isinstance(old, Leaf) else "dense"
    if not isinstance(new_kind, str) or new_kind == old_kind or new_kind not in FFN_KINDS:
        return entries
    return {
        name: node for name, node in entries.items() if name in FFN_KINDS[new_kind].model_fields
    }


def show_path(path: Path) -> str:
    """Return a file's name for messages: relative when it lies below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path.resolve())


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            name, [f"{name}:{line}  byte {data[error.start]:#04x} is not UTF-8: save it as UTF-8"]
        ) from error
