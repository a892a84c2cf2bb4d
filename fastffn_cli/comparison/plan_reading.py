"""A comparison's plan taken apart: what all arms share, what each of them says, what is wrong."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

from fastffn_cli.comparison.plan_schema import (
    RANDOM_START,
    ArmSection,
    PlanSection,
    validate_block,
)
from fastffn_cli.config.layers import LayerReader, cover
from fastffn_cli.config.origin import DEFAULT, Problem
from fastffn_cli.config.overrides import apply_device
from fastffn_cli.config.shipped import find_config_file
from fastffn_cli.config.yaml_tree import Branch, Leaf
from fastffn_cli.errors import ConfigError

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


@dataclass
class PlanReading:
    """A plan on its way: its parts as trees, and what is wrong with them so far.

    `section` are its own keys, None where they are not valid; `base` and `config` what all arms
    share, `arms` the rest of each; `learning_rates` those that an arm names for itself.
    """

    name: str
    section: PlanSection | None
    reader: LayerReader
    base: Branch
    base_failed: bool
    config: Branch
    problems: list[Problem]
    arms: dict[str, Branch] = field(default_factory=dict)
    learning_rates: dict[str, tuple[float, ...]] = field(default_factory=dict)


def read_plan(
    tree: Branch, file: Path | None, name: str, problems: list[Problem], device: str | None
) -> PlanReading:
    """Take a plan's tree apart and check all that can be said before an arm is resolved.

    A base is searched beside `file` first; what is wrong is added to `problems`.
    """
    entries = dict(tree.entries)
    config, arms = (_take_branch(entries, key, tree, problems) for key in ("config", "arms"))
    config = _expand(config)
    section = validate_block(PlanSection, Branch(tree.origin, entries), problems)
    reader, base = _read_base(entries.get("base"), file, problems)
    reader.layers.append(name)
    if not config.entries and "base" not in entries:
        problems.append(
            Problem(tree.origin, "'base' is required: a configuration for all arms. Write base: X")
        )
    if device is not None:
        config = apply_device(config, device)
    base_failed = "base" in entries and not base.entries
    reading = PlanReading(name, section, reader, base, base_failed, config, problems)
    _find_decided(config, problems, "config.")
    _read_arms(reading, arms)
    _check_names(reading, tree)
    return reading


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


def _read_arms(reading: PlanReading, arms: Branch) -> None:
    """Fill in the arms' trees, and the learning rates that an arm names for itself."""
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
        reading.learning_rates[name] = (section.learning_rates or ()) if section else ()
        rest = {key: entry for key, entry in branch.entries.items() if key not in own}
        tree = _expand(Branch(branch.origin, rest))
        _find_decided(tree, reading.problems, f"arms.{name}.")
        _find_shared(tree, reading.problems, f"arms.{name}.")
        reading.arms[name] = tree


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


def _check_names(reading: PlanReading, tree: Branch) -> None:
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
