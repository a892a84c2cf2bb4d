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

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastffn_cli.comparison.plan_reading import PlanReading, read_plan
from fastffn_cli.comparison.plan_schema import PlanSection
from fastffn_cli.config.keys import sections
from fastffn_cli.config.layers import STDIN, LayerReader, show_path
from fastffn_cli.config.load import Resolved, resolve_layers
from fastffn_cli.config.origin import sort_problems
from fastffn_cli.config.overrides import apply_overrides
from fastffn_cli.config.schema import Config
from fastffn_cli.config.shipped import find_plan_file
from fastffn_cli.config.yaml_tree import Branch
from fastffn_cli.engine.cpu import usable_cores
from fastffn_cli.errors import ConfigError

PLAN_FILE, BASE_FILE = "plan.yaml", "base.yaml"


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

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[self.section.baseline]

    @property
    def threads(self) -> int:
        """CPU threads of each run: as configured, else the cores divided among the jobs."""
        given = self.baseline.config.Global.cpu_threads
        return given or max(1, usable_cores() // self.section.jobs)


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
    reading = read_plan(tree, file, name, problems, device)
    lines = [item.line_of_report(name) for item in sort_problems(problems, name, typed)]
    # Without what the arms stand on, nothing can be said of them.
    resolved = {} if reading.base_failed else _resolve_arms(reading, lines)
    if lines:
        raise ConfigError(name, lines, hint="docs/compare.md   explains the keys of a plan")
    section = reading.section
    assert section is not None, "a section that is not valid has told its problems"
    title = section.name or (file.stem if file is not None else "comparison")
    rates = {
        arm: reading.learning_rates[arm]
        or section.learning_rates
        or (each.config.Optimizer.lr.max_lr,)
        for arm, each in resolved.items()
    }
    plan_arms = {arm: Arm(arm, each, rates[arm]) for arm, each in resolved.items()}
    out_dir = out_dir or Path(section.out or f"./runs/{title}")
    return Plan(
        name=title,
        section=section,
        out_dir=out_dir,
        arms=plan_arms,
        files=_write_plan(title, section, out_dir, reading),
    )


def _under_config(argument: str) -> str:
    """Let `-o Section.key=value` mean the configuration."""
    head = re.split(r"[.=]", argument, maxsplit=1)[0].strip()
    return f"config.{argument}" if head in sections() else argument


def _resolve_arms(reading: PlanReading, lines: list[str]) -> dict[str, Resolved]:
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


def _write_plan(
    title: str, section: PlanSection, out_dir: Path, reading: PlanReading
) -> dict[str, str]:
    """Return the plan and its base as they are kept; data paths stay as they were written."""
    values = section.model_dump(mode="json", exclude_none=True)
    arms: dict[str, Any] = {}
    for name, tree in reading.arms.items():
        arms[name] = _with_blanks(tree)
        if rates := reading.learning_rates[name]:
            arms[name]["learning_rates"] = list(rates)
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
