"""What a comparison has found so far: arms, their runs, their step times. Read by the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.comparison.budget import Pace
    from fastffn_cli.comparison.calibration import Calibration
    from fastffn_cli.comparison.plan import Plan
    from fastffn_cli.comparison.runs import Choice, RunSpec, Skipped


@dataclass(frozen=True)
class Point:
    """An evaluation: mean loss in nats a token; `seconds` are calibrated, not of a clock."""

    step: int
    tokens: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class RunResult:
    """One run of the plan, whatever became of it.

    `budget` is "tokens", "seconds", "sweep" or "downstream". `final_loss` is the last evaluation
    of a run that was made to its end, else None; `problem` says what became of any other.
    `wall_seconds` are those of the clock, evaluations and checkpoints included. `switched_at` is
    the step after which the model was dense for good, `dense_steps` are all steps of a dense model
    in the place of the arm's own, those before it included.
    """

    arm: str
    budget: str
    seed: int
    learning_rate: float
    steps: int
    evals: tuple[Point, ...]
    final_loss: float | None
    wall_seconds: float | None
    switched_at: int | None
    dense_steps: int
    problem: str | None
    dir: Path


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step: median of the rounds, and the smallest and largest of them."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmResult:
    """One arm: its model in both stages, the learning rate its sweep chose, its runs.

    FLOPs are of a forward pass, for one token. `learning_rate` is None while the sweep has not
    decided, and when all its runs diverged; `at_edge` says that no tried value lies beyond it.
    """

    name: str
    description: str
    parameters: int
    stage1_flops_per_token: int
    dense_flops_per_token: int
    stage1_step: StepTime
    dense_step: StepTime
    learning_rate: float | None
    at_edge: bool
    sweep: tuple[RunResult, ...]
    runs: tuple[RunResult, ...]


@dataclass(frozen=True)
class Results:
    """A whole comparison. `tokens` is the budget of one run, `tokens_per_step` the baseline's.

    `data` says what was trained on; blank where the comparison was begun by an earlier version.
    """

    name: str
    out_dir: Path
    baseline: str
    arms: tuple[ArmResult, ...]
    seeds: tuple[int, ...]
    tokens: int
    tokens_per_step: int
    downstream: tuple[RunResult, ...]
    downstream_data: str | None
    machine: str
    versions: dict[str, str]
    commit: str | None
    model: str
    data: str


def load_results(out_dir: Path) -> Results:
    """Read a comparison's folder, finished or not: plan.yaml, calibration.json and the runs.

    Runs that are still to be made are there, too, with their `problem`; arms whose steps were not
    timed yet are not. Raises `UserError` for a folder without a comparison that has begun.
    """
    # Here, because a plan needs paddle, and what reads results does not.
    from fastffn_cli.comparison.calibration import read_calibration
    from fastffn_cli.comparison.plan import PLAN_FILE, load_plan
    from fastffn_cli.comparison.runs import choose_rates, downstream_specs

    begin = "Begin it: fastffn compare -c PLAN --out DIR"
    if not (out_dir / PLAN_FILE).is_file():
        raise UserError(f"{out_dir} holds no comparison", hint=begin)
    plan = load_plan(str(out_dir / PLAN_FILE), out_dir=out_dir)
    calibration = read_calibration(out_dir)
    if calibration is None or plan.section.baseline not in calibration.arms:
        raise UserError(f"the comparison in {out_dir} has no results yet", hint=begin)
    paces, choices = calibration.paces(), choose_rates(plan)
    runs = _runs_of_arms(plan, choices, paces)
    section = plan.section
    return Results(
        name=plan.name,
        out_dir=out_dir,
        baseline=section.baseline,
        arms=tuple(
            _arm_result(name, calibration, choices.get(name), runs)
            for name in plan.arms
            if name in calibration.arms
        ),
        seeds=section.seeds,
        tokens=section.tokens,
        tokens_per_step=plan.baseline.config.Data.tokens_per_step,
        downstream=tuple(
            _run_result(spec, paces.get(spec.arm, paces[section.baseline]))
            for spec in downstream_specs(plan, choices)
        ),
        downstream_data=section.downstream.data if section.downstream else None,
        machine=calibration.machine,
        versions=calibration.versions,
        commit=calibration.commit,
        model=calibration.model,
        data=calibration.data,
    )


def _runs_of_arms(
    plan: Plan, choices: Mapping[str, Choice], paces: Mapping[str, Pace]
) -> list[RunResult]:
    """Return what became of all runs but the downstream ones, of arms whose steps were timed."""
    from fastffn_cli.comparison.runs import seconds_specs, sweep_specs, token_specs

    specs = sweep_specs(plan)
    skipped: list[Skipped] = []
    if "tokens" in plan.section.budgets:
        specs += token_specs(plan, choices)
    if "seconds" in plan.section.budgets:
        found, skipped = seconds_specs(plan, choices, paces)
        specs += found
    runs = [_run_result(spec, paces[spec.arm]) for spec in specs if spec.arm in paces]
    return runs + [_skipped_result(each, plan.out_dir) for each in skipped if each.arm in paces]


def _arm_result(
    name: str, calibration: Calibration, choice: Choice | None, runs: Sequence[RunResult]
) -> ArmResult:
    facts = calibration.arms[name]
    own = [run for run in runs if run.arm == name]
    return ArmResult(
        name=name,
        description=facts.description,
        parameters=facts.parameters,
        stage1_flops_per_token=facts.stage1_flops_per_token,
        dense_flops_per_token=facts.dense_flops_per_token,
        stage1_step=calibration.step_time(facts.stage1),
        dense_step=calibration.step_time(facts.dense),
        learning_rate=choice.learning_rate if choice else None,
        at_edge=choice.at_edge if choice else False,
        sweep=tuple(run for run in own if run.budget == "sweep"),
        runs=tuple(run for run in own if run.budget != "sweep"),
    )


def _run_result(spec: RunSpec, pace: Pace) -> RunResult:
    from fastffn_cli.comparison.runs import final_loss

    history = spec.history()
    tokens = spec.config.Data.tokens_per_step
    # Downstream runs of an arm that switched are dense from the start.
    stage1_s = pace.dense if spec.budget == "downstream" and spec.is_dense else pace.stage1
    return RunResult(
        arm=spec.arm,
        budget=spec.budget,
        seed=spec.seed,
        learning_rate=spec.learning_rate,
        steps=spec.steps,
        evals=tuple(
            Point(step, step * tokens, history.seconds(step, stage1_s, pace.dense), loss)
            for step, loss in history.evals
        ),
        final_loss=final_loss(history, spec.steps),
        wall_seconds=history.wall_seconds,
        switched_at=history.switched_at,
        dense_steps=history.dense_steps(history.step),
        problem=history.problem(spec.steps),
        dir=spec.dir,
    )


def _skipped_result(skipped: Skipped, out_dir: Path) -> RunResult:
    return RunResult(
        arm=skipped.arm,
        budget="seconds",
        seed=skipped.seed,
        learning_rate=skipped.learning_rate,
        steps=0,
        evals=(),
        final_loss=None,
        wall_seconds=None,
        switched_at=None,
        dense_steps=0,
        problem=f"skipped: {skipped.reason}",
        dir=out_dir,
    )
