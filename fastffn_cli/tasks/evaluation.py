"""Measurements of a finished model by name: what `fastffn eval --task` can be asked for.

A task is one module with a function `evaluate(loaded, request) -> Evaluation` and one line here;
the modules are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.config.schema import Config
    from fastffn_cli.engine.checkpoint import LoadedModel

EVALUATIONS = {"lm": "fastffn_cli.tasks.lm_eval", "cloze": "fastffn_cli.tasks.cloze"}


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What the user asked for; None leaves a choice to the task.

    `data` is a text, a .jsonl or token files; `trainer` the checkpoint's `trainer.json`, which
    knows the data of the run.
    """

    data: str | None = None
    part: str | None = None
    overlap: int | None = None
    seq_len: int | None = None
    batch_size: int | None = None
    detokenize: bool | None = None
    json_key: str = "text"
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """`values` for --json, beginning with the contract's keys; `rows` for people."""

    values: dict[str, Any]
    rows: list[tuple[str, str]]


def run_evaluation(task: str, loaded: LoadedModel, request: EvalRequest) -> Evaluation:
    """Run one task; raises `UserError` for an unknown one."""
    check_task(task)
    module = importlib.import_module(EVALUATIONS[task])
    evaluation: Evaluation = module.evaluate(loaded, request)
    return evaluation


def choose_task(task: str | None, config: Config) -> str:
    """The task asked for, else the one that `Offline_Eval.cloze_eval` chooses."""
    return task or ("cloze" if config.Offline_Eval.cloze_eval else "lm")


def check_task(task: str) -> None:
    """Raise `UserError` for an unknown task."""
    if task not in EVALUATIONS:
        raise UserError(f"--task {task}: the tasks are {', '.join(EVALUATIONS)}")
