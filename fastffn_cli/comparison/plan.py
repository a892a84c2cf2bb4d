"""From a plan's YAML to the arms of a comparison, each with its whole configuration.

    base: demo-dense            what all arms share: a file or a shipped configuration,
    config: {Data: ...}         and what is said on top of it
    tokens: 2000000
    baseline: dense
    arms:
      dense: {}
      low_rank_8:
        Model.ffn: {kind: low_rank, rank: 8}
        Schedule: {switch: fraction, at: 0.5}

Files inherit from each other with `_base_`, and `-o` sets one key, as everywhere: a key of the
plan, or one of the configuration, which then stands under `config`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastffn_cli.comparison.plan_schema import ArmSection, PlanSection, validate_block
from fastffn_cli.config.keys import sections
from fastffn_cli.config.layers import STDIN, LayerReader, cover, show_path
from fastffn_cli.config.load import Resolved, resolve_layers
from fastffn_cli.config.origin import DEFAULT, Problem, sort_problems
from fastffn_cli.config.overrides import apply_device, apply_overrides
from fastffn_cli.config.schema import Config
from fastffn_cli.config.shipped import find_config_file, find_plan_file
from fastffn_cli.config.yaml_tree import Branch, Leaf
from fastffn_cli.engine.cpu import usable_cores
from fastffn_cli.errors import ConfigError

PLAN_FILE, BASE_FILE = "plan.yaml", "base.yaml"
RANDOM_START = "none"  # the arm of downstream runs that were not trained before
# What the plan decides for every run, and the key of the plan that does.
DECIDED = {
    "Global.seed": "seeds",
    "Engine.max_steps": "tokens",
    "Engine.num_train_epochs": "tokens",
    "Engine.eval_freq": "evaluations",
    "Engine.eval_iters": "eval_iters",
    "Engine.save_load.output_dir": "out",
    "Optimizer.lr.max_lr": "learning_rates",
    "Optimizer.lr.decay_steps": "tokens",
}
# Where arms that differed could not be compared, or not be timed in one process.
SHARED = ("Global", "Data.dataset", "Data.batch_size.micro_batch_size", "Engine.log_sinks")


@dataclass(frozen=True)
class Arm:
    """One arm: its configuration before seeds and budgets, and the learning rates to try."""

    name: str
    resolved: Resolved
    learning_rates: tuple[float, ...]

    @property
    def config(self) -> Config:
        """Its configuration."""
        return self.resolved.config


@dataclass(frozen=True)
class Plan:
    """A whole plan, valid. `files` are its texts by name, to be kept and read again."""

    name: str
    section: PlanSection
    out_dir: Path
    arms: dict[str, Arm]
    files: dict[str, str]
    warnings: list[str]
    notices: list[str]

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[self.section.baseline]

    @property
    def threads(self) -> int:
        """CPU threads of each run: as configured, else the cores divided among the jobs."""
        given = self.baseline.config.Global.cpu_threads
        return given or max(1, usable_cores() // self.section.jobs)


@dataclass
class _Reading:
    """A plan on its way: its parts as trees, and the problems so far."""

    name: str
    reader: LayerReader
    base: Branch
    config: Branch
    arms: dict[str, Branch] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def load_plan(
    source: str,
    overrides: Sequence[str] = (),
    *,
    out_dir: Path | None = None,
    device: str | None = None,
) -> Plan:
    """Read and check a plan: a file, the name of a shipped plan, or `-` for stdin.

    Raises ConfigError with all problems of the plan and of every arm's configuration together.
    """
    reader = LayerReader()
    file = None if source == "-" else find_plan_file(source)
    tree = reader.read("-") if file is None else reader.read_file(file)
    name = STDIN if file is None else show_path(file)
    problems = list(reader.problems)
    typed = [_under_config(argument) for argument in overrides]
    tree = apply_overrides(tree, typed, problems)
    entries = dict(tree.entries)
    config, arms = (_take_branch(entries, key, tree, problems) for key in ("config", "arms"))
    config = _expand(config)
    section = validate_block(PlanSection, Branch(tree.origin, entries), problems)
    base_reader, base = _read_base(entries.get("base"), file, problems)
    base_reader.layers.append(name)
    if not base.entries and not config.entries and "base" not in entries:
        problems.append(
            Problem(tree.origin, "'base' is required: a configuration for all arms. Write base: X")
        )
    if device is not None:
        config = apply_device(config, device)
    reading = _Reading(name, base_reader, base, config, problems=problems)
    _find_decided(config, problems, "config.")
    learning_rates = _read_arms(reading, arms)
    _check_names(reading, tree)
    lines = [item.line_of_report(name) for item in sort_problems(problems, name, typed)]
    # Without what the arms stand on, nothing can be said of them.
    base_failed = "base" in entries and not base.entries
    resolved = {} if base_failed else _resolve_arms(reading, lines)
    if lines:
        raise ConfigError(name, lines, hint="docs/compare.md   explains the keys of a plan")
    assert section is not None, "a section that is not valid has told its problems"
    title = section.name or (file.stem if file is not None else "comparison")
    rates = {
        arm: learning_rates[arm] or section.learning_rates or (each.config.Optimizer.lr.max_lr,)
        for arm, each in resolved.items()
    }
    plan_arms = {arm: Arm(arm, each, rates[arm]) for arm, each in resolved.items()}
    out_dir = out_dir or Path(section.out or f"./runs/{title}")
    return Plan(
        name=title,
        section=section,
        out_dir=out_dir,
        arms=plan_arms,
        files=_write_plan(title, section, out_dir, reading, learning_rates),
        warnings=_once(line for arm in resolved.values() for line in arm.warnings),
        notices=_once(line for arm in resolved.values() for line in arm.notices),
    )


def _under_config(argument: str) -> str:
    """Let `-o Section.key=value` mean the configuration."""
    head = re.split(r"[.=]", argument, maxsplit=1)[0].strip()
    return f"config.{argument}" if head in sections() else argument


def _take_branch(
    entries: dict[str, Leaf | Branch], key: str, tree: Branch, problems: list[Problem]
) -> Branch:
    node = entries.pop(key, None)
    if isinstance(node, Branch):
        return node
    if node is not None and node.value is not None:
        problems.append(Problem(node.origin, f"'{key}' must be a block of keys"))
    return Branch(node.origin if node else tree.origin)


def _read_base(
    node: Leaf | Branch | None, plan_file: Path | None, problems: list[Problem]
) -> tuple[LayerReader, Branch]:
    reader = LayerReader()
    if not isinstance(node, Leaf) or not isinstance(node.value, str) or not node.value:
        return reader, Branch(DEFAULT)
    beside = (plan_file.parent if plan_file else Path()) / Path(node.value).expanduser()
    try:
        file = beside if beside.is_file() else find_config_file(node.value)
        return reader, reader.read_file(file)
    except ConfigError as error:
        texts = [re.sub(r"^\S+:\d+  ", "", line) for line in error.problems]
        problems += [Problem(node.origin, f"'base': {text}") for text in texts]
        return LayerReader(), Branch(DEFAULT)


def _read_arms(reading: _Reading, arms: Branch) -> dict[str, tuple[float, ...]]:
    """Fill in the arms' trees; return the learning rates that an arm names for itself."""
    rates: dict[str, tuple[float, ...]] = {}
    for name, node in arms.entries.items():
        origin = node.origin
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name) or name == RANDOM_START:
            text = (
                f"'{name}' cannot be the name of an arm: use letters, digits, _ . and - "
                f"('{RANDOM_START}' means random weights)"
            )
            reading.problems.append(Problem(origin, text))
        if isinstance(node, Leaf) and node.value is not None:
            text = f"'arms.{name}' must be a block of keys, as in {{Model.ffn.kind: low_rank}}"
            reading.problems.append(Problem(origin, text))
            continue
        branch = node if isinstance(node, Branch) else Branch(node.origin)
        own = {"learning_rates"} & set(branch.entries)
        options = Branch(branch.origin, {key: branch.entries[key] for key in own})
        section = validate_block(ArmSection, options, reading.problems, f"arms.{name}.")
        rates[name] = (section.learning_rates or ()) if section else ()
        rest = {key: entry for key, entry in branch.entries.items() if key not in own}
        tree = _expand(Branch(branch.origin, rest))
        _find_decided(tree, reading.problems, f"arms.{name}.")
        _find_shared(tree, reading.problems, f"arms.{name}.")
        reading.arms[name] = tree
    return rates


def _expand(branch: Branch) -> Branch:
    """Read dotted keys, as in `Model.ffn.rank: 8`, as the blocks that they stand for."""
    tree = Branch(branch.origin)
    for key, entry in branch.entries.items():
        tree = cover(tree, _nest(key, entry))
    return tree


def _nest(dotted: str, entry: Leaf | Branch) -> Branch:
    for name in reversed(dotted.split(".")):
        entry = Branch(entry.origin, {name: entry})
    assert isinstance(entry, Branch)
    return entry


def _find_decided(tree: Branch, problems: list[Problem], prefix: str) -> None:
    for path, leaf in tree.leaves():
        dotted = ".".join(path)
        if dotted in DECIDED and leaf.value is not None:
            text = f"'{prefix}{dotted}' is decided by the plan: remove it, and set "
            problems.append(Problem(leaf.origin, f"{text}'{DECIDED[dotted]}'"))


def _find_shared(tree: Branch, problems: list[Problem], prefix: str) -> None:
    for path, leaf in tree.leaves():
        dotted = ".".join(path)
        shared = any(dotted == key or dotted.startswith(f"{key}.") for key in SHARED)
        if shared and dotted not in DECIDED:
            problems.append(
                Problem(
                    leaf.origin,
                    f"'{prefix}{dotted}' must be the same for all arms: write it under 'config:'",
                )
            )


def _check_names(reading: _Reading, tree: Branch) -> None:
    """Check what the keys of the plan say of each other, where they are valid themselves."""
    problems, names, values = reading.problems, list(reading.arms), tree.plain()
    if not names:
        text = "'arms' is required: what is compared, as in arms: {dense: {}}"
        problems.append(Problem(tree.origin, text))

    def complain(key: str, text: str) -> None:
        node = tree.find(tuple(key.split("."))) or tree
        problems.append(Problem(node.origin, f"'{key}' {text}"))

    baseline = values.get("baseline")
    if names and isinstance(baseline, str) and baseline and baseline not in names:
        near = difflib.get_close_matches(baseline, names, 1, 0.5)
        advice = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(names)}"
        complain("baseline", f"names the arm '{baseline}', which is not there. {advice}")
    for key in ("seeds", "budgets", "learning_rates"):
        items = values.get(key)
        items = items if isinstance(items, list) else []
        twice = sorted({str(item) for item in items if items.count(item) > 1})
        if twice:
            complain(key, f"has {', '.join(twice)} twice: keep one of the two")
        if key == "seeds" and any(isinstance(item, int) and item < 0 for item in items):
            complain(key, f"has {min(items)}: write integers of at least 0")
    sweep = values.get("sweep")
    tried = sweep.get("seeds") if isinstance(sweep, dict) else None
    seeds = values.get("seeds", PlanSection.model_fields["seeds"].default)
    if isinstance(tried, int) and isinstance(seeds, (list, tuple)) and tried > len(seeds):
        complain("sweep.seeds", f"must be at most {len(seeds)}, the number of 'seeds'")


def _resolve_arms(reading: _Reading, lines: list[str]) -> dict[str, Resolved]:
    """Resolve every arm's configuration; add each new problem to `lines`."""
    resolved = {}
    for name, tree in reading.arms.items():
        try:
            resolved[name] = resolve_layers(
                reading.reader, (reading.base, reading.config, tree), reading.name
            )
        except ConfigError as error:
            lines += [line for line in error.problems if line not in lines]
    return resolved


def _once(lines: Any) -> list[str]:
    return list(dict.fromkeys(lines))


def _write_plan(
    title: str,
    section: PlanSection,
    out_dir: Path,
    reading: _Reading,
    rates: dict[str, tuple[float, ...]],
) -> dict[str, str]:
    """Return the plan and its base as they are kept; data paths stay as they were written."""
    values = section.model_dump(mode="json", exclude_none=True)
    arms: dict[str, Any] = {}
    for name, tree in reading.arms.items():
        arms[name] = _with_blanks(tree)
        if rates[name]:
            arms[name]["learning_rates"] = list(rates[name])
    whole = {**values, "name": title, "base": BASE_FILE, "out": str(out_dir)}
    whole |= {"config": _with_blanks(reading.config), "arms": arms}
    return {PLAN_FILE: _yaml(whole), BASE_FILE: _yaml(_with_blanks(reading.base))}


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _with_blanks(branch: Branch) -> dict[str, Any]:
    values: dict[str, Any] = {} if branch.inherits else {"_inherited_": False}
    for name, node in branch.entries.items():
        values[name] = _with_blanks(node) if isinstance(node, Branch) else node.value
    return values
