"""From `-c FILE -o key=value` to one validated, frozen Config. The way in for every command."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.config import (  # noqa: F401  (they register the rules)
    rules,
    rules_distributed,
    rules_ffn,
    rules_schedule,
)
from fastffn_cli.config.derive import derive_values, yield_to_overrides
from fastffn_cli.config.dialect import read_dialect
from fastffn_cli.config.dialect_reading import Move
from fastffn_cli.config.dialect_report import NATIVE, Dialect, report_dialect
from fastffn_cli.config.facts import Facts
from fastffn_cli.config.fleetx_traps import find_index_caches, find_traps
from fastffn_cli.config.keys import all_keys
from fastffn_cli.config.layers import STDIN, LayerReader, cover, show_path
from fastffn_cli.config.mindformers import is_mindformers, read_mindformers
from fastffn_cli.config.origin import DEFAULT, DERIVED, Origin, Problem, sort_problems
from fastffn_cli.config.overrides import apply_device, apply_overrides
from fastffn_cli.config.recipes import apply_recipe
from fastffn_cli.config.review import review_config
from fastffn_cli.config.schema import Config
from fastffn_cli.config.shipped import find_config_file
from fastffn_cli.config.validate import validate_tree
from fastffn_cli.config.yaml_tree import Branch
from fastffn_cli.errors import ConfigError

_HINT = "fastffn config KEY   explains a key"


@dataclass(frozen=True)
class Resolved:
    """A configuration with all values filled in, and the story of each.

    `origins` has every dotted key of `config`. `warnings` are probably mistakes, `notices` are good
    to know; both are complete lines with their place. `dialect` tells what became of keys that
    FleetX calls otherwise; its `summary` is one of the notices. `planned_only` says that training
    would refuse it, as warnings tell; a plan of processes alone may be so.
    """

    config: Config
    origins: dict[str, Origin]
    warnings: list[str]
    notices: list[str]
    source: str
    overrides: tuple[str, ...]
    dialect: Dialect = NATIVE
    planned_only: bool = False

    @property
    def moves(self) -> tuple[Move, ...]:
        """What became of the keys that have another name or no effect here."""
        return self.dialect.moves

    def require(self, *keys: str) -> None:
        """Raise ConfigError for every one of these keys that has no value.

        The schema leaves open what not every command needs, such as `Data.dataset.input_dir`.
        """
        missing = []
        for key in keys:
            if value_at(self.config, key) is None:
                description = all_keys()[key].description.rstrip(".")
                text = f"'{key}' is required: {description}. Add it, or type -o {key}=..."
                missing.append(f"{self.source}  {text}")
        if missing:
            raise ConfigError(self.source, missing, hint=f"fastffn config {keys[0]}")


def load_config(
    source: str,
    overrides: Sequence[str] = (),
    *,
    device: str | None = None,
    facts: Facts | None = None,
    processes: int | None = 1,
) -> Resolved:
    """Read, merge, check and complete a configuration.

    `source` is a path, the bare name of a shipped config, or `-` for stdin; `overrides` are the
    arguments of `-o`; `device` is short for a last override of `Global.device`; `facts` lie below
    the file; `processes` are those of this job, which the degrees of parallelism must multiply to
    (None: any number, for a plan).

    Raises ConfigError with all problems together, each with its place.
    """
    reader = LayerReader()
    tree = reader.read(source)
    name = STDIN if source == "-" else show_path(find_config_file(source))
    return _resolve(reader, tree, name, overrides, device, facts, processes=processes)


def resolve_layers(
    reader: LayerReader, layers: Sequence[Branch], name: str, *, device: str | None = None
) -> Resolved:
    """Merge, check and complete layers that `reader` and others have read; the last is on top.

    `name` is the file that problems without a place are said of. Raises ConfigError.
    """
    tree = Branch(Origin("default"))
    for layer in copy.deepcopy(layers):  # resolving drops what an override outranks
        tree = cover(tree, layer)
    return _resolve(reader, tree, name, (), device)


def default_config(overrides: Sequence[str] = (), *, facts: Facts | None = None) -> Resolved:
    """Return the configuration of an empty file, with overrides, on top of `facts`."""
    tree = Branch(Origin("default"))
    return _resolve(LayerReader(), tree, "the command line", overrides, None, facts)


def parse_config_file(path: str | os.PathLike[str]) -> Config:
    """Read a configuration that `dump_config` wrote; strict, as every other file.

    Raises ConfigError when it is missing or wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(str(file), [f"there is no file '{file}'"])
    reader = LayerReader()
    tree = reader.read_file(file)
    return _resolve(reader, tree, show_path(file), (), None, processes=None).config


def _resolve(
    reader: LayerReader,
    tree: Branch,
    name: str,
    overrides: Sequence[str],
    device: str | None,
    facts: Facts | None = None,
    *,
    processes: int | None = 1,
) -> Resolved:
    problems = list(reader.problems)
    tree = apply_overrides(tree, overrides, problems)
    if device is not None:
        tree = apply_device(tree, device)
    rank = _ranks(reader, overrides)
    if is_mindformers(tree):
        reading = read_mindformers(tree, rank)
    else:
        reading = read_dialect(tree, rank)
        find_traps(reading)
    tree = reading.tree
    problems += reading.problems
    tree = apply_recipe(tree, rank)
    if facts is not None:
        tree = facts.lay_below(tree, problems)
    yield_to_overrides(tree)
    written = {move.target: move.source for move in reading.moves if move.target is not None}
    config, invalid = validate_tree(tree, problems, written)
    given = {".".join(path): leaf.origin for path, leaf in tree.leaves() if leaf.value is not None}
    review = review_config(config, given, invalid, processes=processes)
    problems += review.problems
    if problems:
        lines = [
            problem.line_of_report(name) for problem in sort_problems(problems, name, overrides)
        ]
        raise ConfigError(name, lines, hint=_HINT)
    config, derived = derive_values(config, set(given))
    origins = {key: _origin(key, given, derived) for key, _ in flatten(config)}
    dialect, notices = report_dialect(reading, review, name)
    notices += _lines(review.notices, name)
    if caches := find_index_caches(config.Data.dataset.input_dir):
        notices.append(caches)
    return Resolved(
        config=config,
        origins=origins,
        warnings=_lines(reader.warnings + reading.warnings + review.warnings, name),
        notices=notices,
        source=name,
        overrides=tuple(overrides),
        dialect=dialect,
        planned_only=review.planned_only,
    )


def _ranks(reader: LayerReader, overrides: Sequence[str]) -> Callable[[Origin], tuple[int, int]]:
    """Return what orders the layers: files from the lowest base up, then overrides as typed."""
    files = {file: index for index, file in enumerate(reader.layers)}
    typed = {f"-o {argument}": index for index, argument in enumerate(overrides)}

    def rank(origin: Origin) -> tuple[int, int]:
        if origin.kind == "override":
            return (1, typed.get(origin.text or "", len(typed)))
        return (0, files.get(origin.file or "", -1))

    return rank


def _origin(key: str, given: dict[str, Origin], derived: set[str]) -> Origin:
    if key in derived:
        return DERIVED
    return given.get(key, DEFAULT)


def _lines(problems: list[Problem], name: str) -> list[str]:
    return [problem.line_of_report(name) for problem in sort_problems(problems, name)]


def flatten(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with its value, in the order of the schema."""

    def walk(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict):
                yield from walk(value, key + ".")
            else:
                yield key, value

    yield from walk(config.model_dump(), "")


def value_at(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
