"""What the runs of a comparison show of each arm, seed by seed against the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastffn_cli.comparison.results import ArmResult, Results, RunResult
from fastffn_cli.comparison.statistics import Spread, seconds_to_loss, spread

BUDGETS = ("tokens", "seconds")


@dataclass(frozen=True)
class Evidence:
    """One arm under one budget.

    `final` is the last loss over all finished seeds. The rest is against the baseline: `pairs`
    counts the seeds that it finished and the arm finished or diverged in; `difference` is the final
    loss minus the baseline's of the same seed. Times are calibrated seconds over those of the
    baseline's whole run: `to_mean` until the mean of the baseline's final losses, over the
    `reached_mean` finished seeds that came there; `to_paired` until its final loss of the same
    seed, over the `reached` pairs that came there.
    """

    arm: ArmResult
    budget: str
    finished: tuple[RunResult, ...]
    diverged: int
    pairs: int
    final: Spread | None
    difference: Spread | None
    reached_mean: int
    to_mean: Spread | None
    reached: int
    to_paired: Spread | None

    @property
    def always_reached(self) -> bool:
        """Whether every pair came to the baseline's final loss."""
        return self.pairs > 0 and self.reached == self.pairs


def budgets(results: Results) -> tuple[str, ...]:
    """The budgets that arms were compared under, equal tokens first."""
    others = [arm for arm in results.arms if arm.name != results.baseline]
    seen = {run.budget for arm in others for run in arm.runs}
    seen = seen or {run.budget for arm in results.arms for run in arm.runs}
    return tuple(budget for budget in BUDGETS if budget in seen)


def find_baseline(results: Results) -> ArmResult | None:
    """The arm that the others are compared with, None where it has not been set up."""
    return next((arm for arm in results.arms if arm.name == results.baseline), None)


def runs_of(results: Results, arm: ArmResult, budget: str) -> dict[int, RunResult]:
    """The arm's runs of a budget by seed.

    The seconds of the budget are those that the baseline takes for its tokens: its runs at equal
    tokens are its runs at equal seconds too.
    """
    runs = {run.seed: run for run in arm.runs if run.budget == budget}
    if budget == "seconds" and arm.name == results.baseline:
        runs = {run.seed: run for run in arm.runs if run.budget == "tokens"} | runs
    return runs


def planned_runs(results: Results) -> dict[tuple[str, str, int], RunResult | None]:
    """What became of every (arm, budget, seed) that the comparison asks for, None where not run."""
    compared = budgets(results) or BUDGETS[:1]
    return {
        (arm.name, budget, seed): runs_of(results, arm, budget).get(seed)
        for arm in results.arms
        for budget in (compared[:1] if arm.name == results.baseline else compared)
        for seed in results.seeds
    }


def is_finished(run: RunResult) -> bool:
    """Whether a run came to its end with a finite loss."""
    return (
        run.problem is None
        and bool(run.evals)
        and run.final_loss is not None
        and math.isfinite(run.final_loss)
    )


def is_diverged(run: RunResult) -> bool:
    """Whether a run ended for want of a finite loss: a result, unlike an unfinished one."""
    if run.problem is not None:
        return run.problem.startswith("diverged")
    return run.final_loss is not None and not math.isfinite(run.final_loss)


def last_loss(run: RunResult) -> float:
    """Loss of a finished run's last evaluation, measured as the rest of its curve."""
    return run.evals[-1].loss


def weigh(results: Results, budget: str) -> list[Evidence]:
    """Compare every arm with the baseline, in the order of the plan."""
    reference = find_baseline(results)
    baseline = {
        seed: run
        for seed, run in (runs_of(results, reference, budget) if reference else {}).items()
        if is_finished(run)
    }
    return [
        _weigh_arm(arm, budget, runs_of(results, arm, budget), baseline) for arm in results.arms
    ]


def _weigh_arm(
    arm: ArmResult, budget: str, runs: dict[int, RunResult], baseline: dict[int, RunResult]
) -> Evidence:
    finished = {seed: run for seed, run in runs.items() if is_finished(run)}
    diverged = {seed for seed, run in runs.items() if is_diverged(run)}
    both = [seed for seed in finished if seed in baseline]
    paired = [
        _share(finished[seed], last_loss(baseline[seed]), baseline[seed].evals[-1].seconds)
        for seed in both
    ]
    to_mean: list[float | None] = []
    if baseline:
        target = spread([last_loss(run) for run in baseline.values()]).mean
        whole = spread([run.evals[-1].seconds for run in baseline.values()]).mean
        to_mean = [_share(run, target, whole) for run in finished.values()]
    return Evidence(
        arm=arm,
        budget=budget,
        finished=tuple(finished.values()),
        diverged=len(diverged),
        pairs=len(both) + len(diverged & baseline.keys()),
        final=_spread([last_loss(run) for run in finished.values()]),
        difference=_spread([last_loss(finished[s]) - last_loss(baseline[s]) for s in both]),
        reached_mean=sum(share is not None for share in to_mean),
        to_mean=_spread(to_mean),
        reached=sum(share is not None for share in paired),
        to_paired=_spread(paired),
    )


def _share(run: RunResult, target: float, whole: float) -> float | None:
    seconds = seconds_to_loss([(point.seconds, point.loss) for point in run.evals], target)
    return None if seconds is None or whole <= 0 else seconds / whole


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None
