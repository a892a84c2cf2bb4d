"""The one sentence that says which arm to pick, and the rule behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastffn_cli import ui
from fastffn_cli.comparison.report_evidence import (
    Evidence,
    budgets,
    find_baseline,
    is_diverged,
    is_finished,
    planned_runs,
    weigh,
)
from fastffn_cli.comparison.results import ArmResult, Results
from fastffn_cli.comparison.statistics import Spread, margin, seeds_needed

RULE = (
    "An arm is picked when, with every seed, it reached the final loss that the baseline had with "
    "the same seed, and the mean share of the baseline's time that it took for that lies below "
    "100 % by more than the noise: the 95 % interval of Student's t over the seeds, divided among "
    "all arms and budgets that are compared (Bonferroni). Of several such arms the fastest is "
    "picked. The baseline is picked when every other arm ended at a higher loss, reached its loss "
    "later, or diverged with every seed, at equal seconds, or at equal tokens where no runs at "
    "equal seconds are finished; beyond the 95 % interval, not divided here, for all arms have to. "
    "Everything else is undecided, and so is every comparison of one seed, which tells nothing of "
    "the noise. The noise is that of seeds; step times count as exact, and where those of the "
    "picked arm overlapped with dense ones from round to round, the recommendation says so."
)
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Verdict:
    """`pick` is the arm to take, None where nothing can be said."""

    outcome: Literal["arm", "baseline", "undecided", "nothing"]
    pick: str | None
    sentence: str


def judge(results: Results) -> Verdict:
    """Apply `RULE`.

    Undecided, the sentence names the nearest arm and how many seeds would settle it should mean
    and spread stay as they are.
    """
    reference, others = find_baseline(results), len(results.arms) - 1
    if reference is None or others < 1:
        return Verdict("nothing", None, "There is nothing to compare: the plan has only one arm.")
    evidence = [
        each
        for budget in budgets(results)
        for each in weigh(results, budget)
        if each.arm.name != results.baseline and each.pairs
    ]
    if not evidence:
        missing = _why_nothing(results)
        return Verdict("nothing", None, f"Nothing can be said: {missing}{_unfinished(results)}")
    comparisons = others * len(budgets(results))
    winners = [each for each in evidence if _is_faster(each, comparisons)]
    if winners:
        best = min(winners, key=_time)
        return Verdict("arm", best.arm.name, _arm_sentence(results, best, comparisons))
    if (budget := _where_baseline_wins(results, evidence)) is not None:
        sentence = _baseline_sentence(results, budget, evidence)
        return Verdict("baseline", results.baseline, sentence)
    return Verdict("undecided", None, _undecided_sentence(results, evidence, comparisons))


def _is_faster(each: Evidence, comparisons: int) -> bool:
    if not each.always_reached or each.to_paired is None:
        return False
    noise = margin(each.to_paired, comparisons)
    return noise is not None and each.to_paired.mean + noise < 1


def _where_baseline_wins(results: Results, evidence: Sequence[Evidence]) -> str | None:
    """The budget at which every other arm is worse beyond noise, None where there is none."""
    others = {arm.name for arm in results.arms if arm.name != results.baseline}
    budget = "seconds" if any(each.budget == "seconds" for each in evidence) else "tokens"
    worse = {each.arm.name for each in evidence if each.budget == budget and _why_worse(each)}
    return budget if worse == others else None


def _why_worse(each: Evidence) -> str | None:
    """What the arm did worse than the baseline, None where that may be noise.

    All arms have to be worse at once: no correction for their number is due.
    """
    if each.diverged == each.pairs:
        return "diverged" if each.pairs >= 2 else None
    if _is_above(each.difference, 0.0):
        return "ended at a higher loss"
    if each.always_reached and _is_above(each.to_paired, 1.0):
        return "reached its loss later"
    return None


def _is_above(sample: Spread | None, reference: float) -> bool:
    noise = margin(sample) if sample is not None else None
    return sample is not None and noise is not None and sample.mean - noise > reference


def _arm_sentence(results: Results, best: Evidence, comparisons: int) -> str:
    assert best.to_paired is not None and best.difference is not None
    noise = margin(best.to_paired, comparisons)
    assert noise is not None
    return (
        f"Pick {best.arm.name} ({best.arm.description}): it reached the final loss of "
        f"{results.baseline} in {best.to_paired.mean:.1%} ± {noise:.1%} of the time that took "
        f"({_interval(comparisons)}; runs at equal {best.budget}, "
        f"{_setting(results, best.pairs)}).{_caveats(results, best.arm.name)}"
    )


def _baseline_sentence(results: Results, budget: str, evidence: Sequence[Evidence]) -> str:
    here = [each for each in evidence if each.budget == budget]
    pairs = min(each.pairs for each in here)
    known = [each for each in here if each.difference is not None]
    near, reasons = "", _reasons(here)
    if known and (best := min(known, key=_loss)) and _loss(best) > 0:
        near = f"; the nearest, {best.arm.name}, ended {_loss(best):+.4f} nats from it"
    rest = "" if budget == "seconds" else " Equal seconds were not compared."
    return (
        f"Pick {results.baseline}: at equal {budget} every other arm "
        f"{' or '.join(reasons)}, beyond the noise of the seeds{near} "
        f"({_setting(results, pairs)}).{rest}{_caveats(results)}"
    )


def _reasons(evidence: Sequence[Evidence]) -> list[str]:
    reasons = [reason for each in evidence if (reason := _why_worse(each)) is not None]
    return list(dict.fromkeys(reasons))


def _undecided_sentence(results: Results, evidence: Sequence[Evidence], comparisons: int) -> str:
    reached = [each for each in evidence if each.always_reached]
    if reached:
        best = min(reached, key=_time)
        sample, reference = best.to_paired, 1.0
        finding = f"{best.arm.name} reached the final loss of {results.baseline} in"
        figure = f"{_time(best):.1%}"
        unit = " of the time that took"
    else:
        known = [each for each in evidence if each.difference is not None]
        if not known:
            return (
                f"The evidence does not decide: no other arm has a finished run beside "
                f"{results.baseline} ({_setting(results, evidence[0].pairs)})."
                f"{_unfinished(results)}"
            )
        best = min(known, key=_loss)
        sample, reference = best.difference, 0.0
        finding = f"no other arm always reached the final loss of {results.baseline}; the nearest, "
        finding += f"{best.arm.name}, ended"
        figure, unit = f"{_loss(best):+.4f}", f" nats from it at equal {best.budget}"
    assert sample is not None
    noise = margin(sample, comparisons)
    if noise is not None:
        figure += f" ± {noise:.1%}" if reached else f" ± {noise:.4f}"
        unit += f" ({_interval(comparisons)})"
    return (
        f"The evidence does not decide: {finding} {figure}{unit}; "
        f"{_advice(sample, reference, comparisons)} "
        f"({_setting(results, sample.count)}).{_unfinished(results)}"
    )


def _advice(sample: Spread, reference: float, comparisons: int) -> str:
    if sample.count == 1:
        return f"one seed tells nothing of the noise, run {LEAST_SEEDS} at least"
    needed = seeds_needed(sample, reference, comparisons)
    if needed is None:
        return "no number of seeds up to 1,000 would settle so small a difference"
    if needed <= sample.count:
        return "more seeds alone would not settle it"
    settled = "settle it" if reference else "show which of the two ends lower"
    return f"about {needed} seeds would {settled}, should mean and spread stay as they are"


def _interval(comparisons: int) -> str:
    among = f" over {comparisons} comparisons" if comparisons > 1 else ""
    return f"95 % interval{among}"


def _setting(results: Results, pairs: int) -> str:
    seeds = "1 seed" if pairs == 1 else f"{pairs} seeds"
    return f"{seeds}, {results.model}, {ui.number(results.tokens)} tokens a run"


def _caveats(results: Results, pick: str | None = None) -> str:
    names = [
        arm.name for arm in results.arms if arm.at_edge and arm.name in (pick, results.baseline)
    ]
    edge = f" The best learning rate of {' and '.join(names)} lies at an edge of the sweep."
    blurred = "".join(_blurred_times(arm) for arm in results.arms if arm.name == pick)
    return (edge if names else "") + blurred + _unfinished(results)


def _blurred_times(arm: ArmResult) -> str:
    stage1, dense = arm.stage1_step, arm.dense_step
    if stage1.low == stage1.high or dense.low == dense.high:
        return (
            " But its steps were timed in one round only, which says nothing of their spread: set "
            "calibration.rounds to 9 and time them again."
        )
    if max(stage1.low, dense.low) > min(stage1.high, dense.high):
        return ""
    return (
        f" But its step times were hard to tell apart (stage 1 {stage1.low:.4g} to "
        f"{stage1.high:.4g} s, dense {dense.low:.4g} to {dense.high:.4g} s, from round to round): "
        "time them again on a machine with nothing else to do."
    )


def _unfinished(results: Results) -> str:
    runs = planned_runs(results).values()
    missing = sum(run is None or not (is_finished(run) or is_diverged(run)) for run in runs)
    return f" {missing} of {len(runs)} runs are not finished." if missing else ""


def _why_nothing(results: Results) -> str:
    reference = find_baseline(results)
    assert reference is not None
    if any(is_finished(run) for run in reference.runs):
        return f"no other arm has a finished run with a seed that {results.baseline} finished."
    if any(is_diverged(run) for run in reference.runs):
        return f"the baseline {results.baseline} has diverged."
    return f"the baseline {results.baseline} has no finished run."


def _time(each: Evidence) -> float:
    assert each.to_paired is not None
    return each.to_paired.mean


def _loss(each: Evidence) -> float:
    assert each.difference is not None
    return each.difference.mean
