"""Which runs a plan asks for: folder, configuration and steps of each, budget by budget.

    OUT/runs/sweep/ARM/lr-0.003/seed-1      a learning rate is tried
    OUT/runs/tokens/ARM/seed-1              equal tokens, at the learning rate that the sweep chose
    OUT/runs/seconds/ARM/seed-1             equal seconds
    OUT/runs/downstream/ARM/seed-1          the weights of `tokens` go on with other text

Everything follows from the plan and from what the folders hold, so that a comparison goes on where
it was left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.comparison.budget import (
    Pace,
    equal_seconds_steps,
    planned_dense_steps,
    steps_of_tokens,
)
from fastffn_cli.comparison.history import History, begins_dense, read_history
from fastffn_cli.comparison.plan import Arm, Plan
from fastffn_cli.comparison.plan_schema import RANDOM_START
from fastffn_cli.config.schema import Config
from fastffn_cli.engine.stages import dense_config

RUNS_DIR = "runs"
LOG_LINES = 100  # log points of a run, about


@dataclass(frozen=True)
class RunSpec:
    """One run of the plan. `config` is all that it is made of."""

    arm: str
    budget: str
    seed: int
    learning_rate: float
    steps: int
    dir: Path
    config: Config

    def history(self) -> History:
        """Read what the run has done so far."""
        return read_history(self.dir, dense_first=begins_dense(self.config.Schedule))

    @property
    def is_dense(self) -> bool:
        """Whether the model is dense from the first step to the last."""
        return self.config.Model.is_dense

    @property
    def title(self) -> str:
        """A name for messages."""
        rate = f" lr {self.learning_rate:g}" if self.budget == "sweep" else ""
        return f"{self.budget} {self.arm}{rate} seed {self.seed}"


@dataclass(frozen=True)
class Choice:
    """What the sweep of one arm says.

    `learning_rate` is None when all of them diverged; `at_edge`: it is the smallest or the largest.
    """

    learning_rate: float | None
    at_edge: bool = False


@dataclass(frozen=True)
class Skipped:
    """A run that cannot be made, and why."""

    arm: str
    seed: int
    learning_rate: float
    reason: str


def sweep_specs(plan: Plan) -> list[RunSpec]:
    """Return the runs that try learning rates, for every arm with more than one."""
    sweep = plan.section.sweep
    return [
        _spec(plan, arm, "sweep", seed, rate, steps_of_tokens(sweep.share * plan.section.tokens,
              arm.config), f"lr-{rate:g}/seed-{seed}")
        for arm in plan.arms.values()
        if len(arm.learning_rates) > 1
        for rate in arm.learning_rates
        for seed in plan.section.seeds[: sweep.seeds]
    ]  # fmt: skip


def choose_rates(plan: Plan) -> dict[str, Choice]:
    """Return the learning rate of every arm whose sweep is over: the least mean final loss.

    A rate of which one run diverged is out; of equal losses the smaller rate counts.
    """
    specs: dict[str, list[RunSpec]] = {}
    for spec in sweep_specs(plan):
        specs.setdefault(spec.arm, []).append(spec)
    choices = {}
    for name, arm in plan.arms.items():
        if name not in specs:
            choices[name] = Choice(arm.learning_rates[0])
            continue
        losses: dict[float, float] = {}
        histories = [(spec, spec.history()) for spec in specs[name]]
        if not all(history.is_over(spec.steps) for spec, history in histories):
            continue
        for spec, history in histories:
            loss = final_loss(history, spec.steps)
            losses[spec.learning_rate] = losses.get(spec.learning_rate, 0.0) + (
                math.inf if loss is None else loss
            )
        choices[name] = choose(losses)
    return choices


def choose(losses: Mapping[float, float]) -> Choice:
    """Return the learning rate of the least loss, the smaller one of two; infinite ones are out."""
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return Choice(None)
    best = min(finite, key=lambda rate: (finite[rate], rate))
    return Choice(best, at_edge=len(losses) > 1 and best in (min(losses), max(losses)))


def final_loss(history: History, steps: int) -> float | None:
    """Return the evaluation behind the last step; None for a run that was not made to its end."""
    if history.ended_at != steps or not history.evals or history.evals[-1][0] != steps:
        return None
    return history.evals[-1][1]


def token_specs(plan: Plan, choices: Mapping[str, Choice]) -> list[RunSpec]:
    """Return the runs of equal tokens: all arms of one seed, then those of the next."""
    return [
        _spec(plan, arm, "tokens", seed, rate, steps_of_tokens(plan.section.tokens, arm.config))
        for seed in plan.section.seeds
        for arm in plan.arms.values()
        if (rate := _rate(choices, arm)) is not None
    ]


def seconds_specs(
    plan: Plan, choices: Mapping[str, Choice], paces: Mapping[str, Pace]
) -> tuple[list[RunSpec], list[Skipped]]:
    """Return the runs of equal seconds, and those whose steps cannot be known.

    A run that has the steps of the same arm at equal tokens is that run. The baseline's seconds of
    a seed are those that its run of equal tokens takes.
    """
    specs, skipped = [], []
    by_tokens = {(spec.arm, spec.seed): spec for spec in token_specs(plan, choices)}
    for seed in plan.section.seeds:
        base = by_tokens.get((plan.baseline.name, seed))
        for arm in plan.arms.values():
            equal = by_tokens.get((arm.name, seed))
            if base is None or equal is None or {base.arm, arm.name} - set(paces):
                continue
            steps = _steps_of_seconds(base, equal, paces)
            if steps is None:
                reason = f"no run of equal tokens tells when {arm.name} switches"
                skipped.append(Skipped(arm.name, seed, equal.learning_rate, reason))
            elif steps == equal.steps and "tokens" in plan.section.budgets:
                specs.append(_as_seconds(equal))
            else:
                specs.append(_spec(plan, arm, "seconds", seed, equal.learning_rate, steps))
    return specs, skipped


def downstream_specs(plan: Plan, choices: Mapping[str, Choice]) -> list[RunSpec]:
    """Return the runs on other text: from random weights, and from each arm's of equal tokens."""
    section = plan.section.downstream
    if section is None or "tokens" not in plan.section.budgets:
        return []
    by_tokens = {(spec.arm, spec.seed): spec for spec in token_specs(plan, choices)}
    specs = []
    for seed in plan.section.seeds:
        for name in (RANDOM_START, *plan.arms):
            before = by_tokens.get((name, seed))
            if before is None and name != RANDOM_START:
                continue
            arm = plan.arms.get(name, plan.baseline)
            config = arm.config
            if name == RANDOM_START or config.Schedule.switch != "never":
                config = dense_config(config)
            steps = steps_of_tokens(section.tokens, config)
            values: dict[str, Any] = {
                "Data.dataset.input_dir": section.data,
                "Engine.save_load.ckpt_dir": str(before.dir) if before else None,
            }
            specs.append(
                _make(plan, name, config, "downstream", seed, section.max_lr, steps, values=values)
            )
    return specs


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the configuration with some dotted keys set."""
    whole = config.model_dump()
    for dotted, value in values.items():
        *blocks, name = dotted.split(".")
        inner = whole
        for block in blocks:
            inner = inner[block]
        inner[name] = value
    return Config.model_validate(whole)


def _steps_of_seconds(base: RunSpec, equal: RunSpec, paces: Mapping[str, Pace]) -> int | None:
    """Return the steps of an arm in the seconds of the baseline's run of equal tokens."""
    if base == equal:
        return base.steps
    seen, pace = base.history(), paces[base.arm]
    dense = planned_dense_steps(base.config.Schedule, base.steps)
    if seen.ended_at == base.steps:
        seconds = seen.seconds(base.steps, pace.stage1, pace.dense)
    elif dense is not None:
        seconds = pace.seconds(dense, base.steps)
    else:
        return None
    own = equal.history()
    return equal_seconds_steps(
        seconds,
        equal.config.Schedule,
        paces[equal.arm],
        own if own.ended_at == equal.steps else None,
    )


def _rate(choices: Mapping[str, Choice], arm: Arm) -> float | None:
    choice = choices.get(arm.name)
    return choice.learning_rate if choice else None


def _spec(
    plan: Plan, arm: Arm, budget: str, seed: int, rate: float, steps: int, below: str = ""
) -> RunSpec:
    return _make(plan, arm.name, arm.config, budget, seed, rate, steps, below=below)


def _make(
    plan: Plan,
    name: str,
    config: Config,
    budget: str,
    seed: int,
    rate: float,
    steps: int,
    *,
    below: str = "",
    values: Mapping[str, Any] | None = None,
) -> RunSpec:
    folder = plan.out_dir / RUNS_DIR / budget / name / (below or f"seed-{seed}")
    lr = config.Optimizer.lr
    made = {
        "Global.seed": seed,
        "Global.cpu_threads": plan.threads,
        "Engine.max_steps": steps,
        "Engine.eval_freq": -(-steps // plan.section.evaluations),
        "Engine.eval_iters": plan.section.eval_iters,
        "Engine.logging_freq": max(1, steps // LOG_LINES),
        "Engine.save_load.output_dir": str(folder),
        "Engine.save_load.keep_last": 1,
        "Optimizer.lr.max_lr": rate,
        "Optimizer.lr.min_lr": rate * (lr.min_lr / lr.max_lr),
        "Optimizer.lr.decay_steps": None,
        **(values or {}),
    }
    return RunSpec(name, budget, seed, rate, steps, folder, with_values(config, made))


def _as_seconds(spec: RunSpec) -> RunSpec:
    return RunSpec(
        spec.arm, "seconds", spec.seed, spec.learning_rate, spec.steps, spec.dir, spec.config
    )
