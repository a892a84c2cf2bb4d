"""Tables of a comparison's report: step times, learning rates, training on other text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from fastffn_cli import ui
from fastffn_cli.comparison.plan_schema import RANDOM_START
from fastffn_cli.comparison.report_document import Block, Heading, Paragraph, Table
from fastffn_cli.comparison.report_evidence import find_baseline, is_finished, runs_of
from fastffn_cli.comparison.results import ArmResult, Results, RunResult
from fastffn_cli.comparison.statistics import Spread, spread

UNKNOWN = "–"


def tabulate_steps(results: Results) -> Iterator[Block]:
    """Measured step times of every arm, and what FLOPs alone would promise."""
    yield Heading("Step times")
    rows = []
    for arm in results.arms:
        measured, expected = _whole_runs(results, arm)
        stage1, dense = arm.stage1_step, arm.dense_step
        rows.append(
            (
                arm.name,
                arm.description,
                ui.number(arm.parameters),
                f"{stage1.seconds:.4g} ({stage1.low:.4g}–{stage1.high:.4g})",
                f"{dense.seconds:.4g} ({dense.low:.4g}–{dense.high:.4g})",
                f"{dense.seconds / stage1.seconds:.3f}" if stage1.seconds > 0 else UNKNOWN,
                f"{arm.dense_flops_per_token / arm.stage1_flops_per_token:.3f}",
                format_spread(measured, ".3f", alone=""),
                format_spread(expected, ".3f", alone=""),
            )
        )
    yield Table(
        ("arm", "what", "parameters", "s a step, stage 1 (range)", "s a step, dense (range)",
         "stage 1: measured", "by FLOPs", "whole run: measured", "by FLOPs"),
        tuple(rows),
        left=2,
    )  # fmt: skip
    yield Paragraph(
        "Ratios above 1 are faster. Stage 1: the dense form of the arm over its cheap form. Whole "
        "run: the baseline over the arm, at equal tokens, in calibrated seconds. By FLOPs: what "
        "the ratio would be if only the FLOPs of matrix products took time."
    )


def tabulate_sweep(results: Results) -> Iterator[Block]:
    """Every learning rate that was tried, and which arms have their best at an edge."""
    if not any(arm.sweep for arm in results.arms):
        return
    yield Heading("Learning rates")
    rates = sorted({run.learning_rate for arm in results.arms for run in arm.sweep})
    rows = [(arm.name, *(_sweep_cell(arm, rate) for rate in rates)) for arm in results.arms]
    yield Table(("arm", *(format_rate(rate) for rate in rates)), tuple(rows))
    yield Paragraph("Final loss of each run of the sweep; the chosen rate is marked by an arrow.")
    at_edge = [arm.name for arm in results.arms if arm.at_edge]
    if at_edge:
        yield Paragraph(
            f"* The best rate of {', '.join(at_edge)} lies at an edge of the sweep: a better one "
            "may lie beyond it, and the comparison may be unjust to that arm."
        )


def tabulate_downstream(results: Results) -> Iterator[Block]:
    """Losses of the runs on other text, with and without pre-training."""
    if not results.downstream:
        return
    yield Heading("On other text")
    yield Paragraph(
        f"The final weights of each arm, trained further on {results.downstream_data or 'it'}."
    )
    names = list(dict.fromkeys(run.arm for run in results.downstream))
    baseline = {
        run.seed: run.final_loss
        for run in results.downstream
        if run.arm == results.baseline and is_finished(run)
    }
    rows = []
    for name in names:
        runs = [run for run in results.downstream if run.arm == name]
        losses = {run.seed: run.final_loss for run in runs if is_finished(run)}
        known = {seed: loss for seed, loss in losses.items() if loss is not None}
        differences = [
            loss - other
            for seed, loss in known.items()
            if (other := baseline.get(seed)) is not None and name != results.baseline
        ]
        rows.append(
            (
                "no pre-training" if name == RANDOM_START else name,
                f"{len(known)} of {len(runs)}",
                format_spread(spread(list(known.values())), ".4f") if known else UNKNOWN,
                format_spread(_perplexity(known.values()), ".2f", alone="") if known else UNKNOWN,
                format_difference(spread(differences)) if differences else UNKNOWN,
            )
        )
    yield Table(
        ("begun from", "seeds", "loss", "perplexity", "difference to baseline (error)"),
        tuple(rows),
    )


def format_spread(sample: Spread | None, form: str, alone: str = " (one seed)") -> str:
    """Mean ± standard deviation; a single value is followed by `alone`."""
    if sample is None:
        return UNKNOWN
    if sample.deviation is None:
        return f"{sample.mean:{form}}{alone}"
    return f"{sample.mean:{form}} ± {sample.deviation:{form}}"


def format_difference(sample: Spread) -> str:
    """Mean of paired differences, with its standard error in brackets."""
    error = " (one seed)" if sample.error is None else f" ({sample.error:.4f})"
    return f"{sample.mean:+.4f}{error}"


def format_rate(rate: float | None) -> str:
    """A learning rate as people write it."""
    return UNKNOWN if rate is None else f"{rate:g}"


def _whole_runs(results: Results, arm: ArmResult) -> tuple[Spread | None, Spread | None]:
    """Ratio of the baseline's run to the arm's at equal tokens: calibrated seconds, FLOPs."""
    reference = find_baseline(results)
    if reference is None:
        return None, None
    baseline = runs_of(results, reference, "tokens")
    measured, expected = [], []
    for seed, run in runs_of(results, arm, "tokens").items():
        other = baseline.get(seed)
        if other is None or not is_finished(run) or not is_finished(other):
            continue
        if run.evals[-1].seconds > 0:
            measured.append(other.evals[-1].seconds / run.evals[-1].seconds)
        expected.append(_flops(reference, other) / _flops(arm, run))
    return (spread(measured) if measured else None, spread(expected) if expected else None)


def _flops(arm: ArmResult, run: RunResult) -> float:
    """Forward FLOPs of a finished run's training."""
    dense = run.dense_steps / run.steps
    per_token = (1 - dense) * arm.stage1_flops_per_token + dense * arm.dense_flops_per_token
    return run.evals[-1].tokens * per_token


def _sweep_cell(arm: ArmResult, rate: float) -> str:
    runs = [run for run in arm.sweep if run.learning_rate == rate]
    if not runs:
        return UNKNOWN
    finished = [run.final_loss for run in runs if is_finished(run) and run.final_loss is not None]
    cell = format_spread(spread(finished), ".4f", alone="") if finished else ""
    problems = [run.problem or "no finite loss" for run in runs if not is_finished(run)]
    cell = "; ".join([part for part in (cell, *problems) if part])
    return f"→ {cell}" if rate == arm.learning_rate else cell


def _perplexity(losses: Iterable[float]) -> Spread:
    return spread([math.exp(min(loss, 700.0)) for loss in losses])
