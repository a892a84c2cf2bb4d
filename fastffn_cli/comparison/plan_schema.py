"""Every key of a comparison's plan, and a plan's values checked against them."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, Strict, ValidationError
from pydantic_core import ErrorDetails

from fastffn_cli.config.dump import format_value
from fastffn_cli.config.fields import Block, Integer, Number, Text
from fastffn_cli.config.keys import Key, sections, walk_keys
from fastffn_cli.config.origin import Problem
from fastffn_cli.config.validate import origin_of, remedy, show
from fastffn_cli.config.yaml_tree import Branch


def _take_whole_float(value: object) -> object:
    return int(value) if type(value) is float and value.is_integer() else value


# Unlike the other integers it may be beyond 2**31: budgets of billions of tokens are honest ones.
Count = Annotated[int, Strict(), BeforeValidator(_take_whole_float)]
Rate = Annotated[Number, Field(gt=0)]
BlockT = TypeVar("BlockT", bound=Block)
RANDOM_START = "none"  # the arm of downstream runs that were not trained before


class SweepSection(Block):
    """The search of a learning rate, for each arm by itself."""

    share: Number = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Tokens of one run of the sweep, as a share of `tokens`; it has a whole "
        "learning rate schedule of that length.",
    )
    seeds: Integer = Field(
        default=1, ge=1, description="Seeds that each learning rate is tried with."
    )


class CalibrationSection(Block):
    """How the seconds of a step are measured."""

    rounds: Integer = Field(default=9, ge=1, description="Rounds over all models; medians count.")
    steps: Integer = Field(default=3, ge=1, description="Steps of a model in one round.")


class DownstreamSection(Block):
    """Training on other text, from the final weights of each arm and from random ones."""

    data: Text = Field(min_length=1, description="Folder that `fastffn prepare --out` wrote.")
    tokens: Count = Field(gt=0, description="Tokens of one run.")
    max_lr: Number = Field(gt=0, description="Learning rate at the end of the warm-up.")


class ArmSection(Block):
    """What an arm says beside its overrides of the configuration."""

    learning_rates: tuple[Rate, ...] | None = Field(
        default=None, description="Learning rates to try for this arm (blank: the plan's)."
    )


class PlanSection(Block):
    """A plan without its configuration and its arms."""

    name: Text | None = Field(
        default=None, min_length=1, description="Title of the report (blank: the file's name)."
    )
    base: Text | None = Field(
        default=None,
        min_length=1,
        description="Configuration of all arms: a file, seen from the plan, or a shipped name.",
    )
    out: Text | None = Field(
        default=None,
        min_length=1,
        description="Folder of the comparison (blank: ./runs/ and the plan's name).",
    )
    baseline: Text = Field(min_length=1, description="Arm that the others are compared with.")
    seeds: tuple[Integer, ...] = Field(
        default=(1, 2, 3), min_length=1, description="Seeds of weights and data order; one a run."
    )
    budgets: tuple[Literal["tokens", "seconds"], ...] = Field(
        default=("tokens", "seconds"),
        min_length=1,
        description="What the arms have in common: tokens, or the seconds of the baseline's.",
    )
    tokens: Count = Field(gt=0, description="Training tokens of one run.")
    learning_rates: tuple[Rate, ...] = Field(
        default=(),
        description="Largest learning rates to try for each arm (blank: the configuration's).",
    )
    sweep: SweepSection = Field(
        default_factory=SweepSection, description="How the learning rates are tried."
    )
    evaluations: Integer = Field(default=20, ge=1, description="Evaluations of one run.")
    eval_iters: Integer = Field(default=20, ge=1, description="Batches of one evaluation.")
    jobs: Integer = Field(
        default=1, ge=1, description="Runs at a time; the CPU's threads are divided among them."
    )
    calibration: CalibrationSection = Field(
        default_factory=CalibrationSection, description="How the seconds of a step are measured."
    )
    downstream: DownstreamSection | None = Field(
        default=None, description="Training on other text behind the comparison (blank: none)."
    )


def key_table() -> str:
    """Return all keys of a plan as the table of docs/compare.md."""
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key in walk_keys(PlanSection, ""):
        if key.expected == "a block of keys":
            continue
        blank = key.field.is_required() or key.default in (None, ())
        shown = "blank" if blank else format_value(key.default)
        shown = "required" if key.field.is_required() else shown
        lines.append(f"| `{key.path}` | `{shown}` | {_expected(key)} | {key.description} |")
    return "\n".join(lines)


def validate_block(
    model: type[BlockT], tree: Branch, problems: list[Problem], prefix: str = ""
) -> BlockT | None:
    """Return the block that a tree holds; None, with all its problems told, where it is wrong.

    `prefix` is where the block stands in its file: `arms.narrow.`.
    """
    try:
        return model.model_validate(tree.plain())
    except ValidationError as error:
        keys = {key.path: key for key in walk_keys(model, "")}
        for detail in error.errors(include_url=False):
            path = tuple(name for name in detail["loc"] if isinstance(name, str))
            origin = origin_of(tree, path)
            if not origin.given:
                origin = tree.origin
            text = _explain(detail, path, keys, tree, prefix)
            problem = Problem(origin, text)
            if problem not in problems:
                problems.append(problem)
        return None


def _explain(
    detail: ErrorDetails, path: tuple[str, ...], keys: dict[str, Key], tree: Branch, prefix: str
) -> str:
    dotted = ".".join(path)
    name = f"{prefix}{dotted}"
    if detail["type"] == "extra_forbidden":
        return _explain_unknown(dotted, keys, prefix)
    key = keys[dotted]
    if detail["type"] == "missing":
        return f"'{name}' is required: {key.description.rstrip('.')}. Write {name}: ..."
    node = tree.find(path)
    given = detail["input"]
    if node is not None:
        given = node.plain() if isinstance(node, Branch) else node.value
    if isinstance(given, list) and not given:
        return f"'{name}' is an empty list: {key.description.rstrip('.')}. Write at least one"
    return f"'{name}' must be {_expected(key)}, not {show(given)}{remedy(key, given)}"


def _expected(key: Key) -> str:
    return f"{key.expected} above 0" if key.name == "learning_rates" else key.expected


def _explain_unknown(dotted: str, keys: dict[str, Key], prefix: str) -> str:
    parent, _, name = dotted.rpartition(".")
    if not prefix and not parent and name in sections():
        return f"'{name}' is a section of the configuration: write it under 'config:'"
    siblings = [key.name for path, key in keys.items() if path.rpartition(".")[0] == parent]
    if not prefix and not parent:
        siblings += ["config", "arms"]
    near = difflib.get_close_matches(name, siblings, 1, 0.6)
    advice = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(siblings)}"
    return f"unknown key '{prefix}{dotted}'. {advice}"
