"""What the report of a comparison says, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from fastffn_cli import ui
from fastffn_cli.comparison.figures import Curve, Line, draw_losses
from fastffn_cli.comparison.report_document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Paragraph,
    Table,
)
from fastffn_cli.comparison.report_evidence import (
    Evidence,
    budgets,
    is_diverged,
    is_finished,
    planned_runs,
    runs_of,
    weigh,
)
from fastffn_cli.comparison.report_tables import (
    UNKNOWN,
    format_difference,
    format_rate,
    format_spread,
    tabulate_downstream,
    tabulate_steps,
    tabulate_sweep,
)
from fastffn_cli.comparison.report_verdict import RULE
from fastffn_cli.comparison.results import ArmResult, Results, RunResult
from fastffn_cli.comparison.statistics import Spread

TITLES = {"tokens": "Equal tokens", "seconds": "Equal seconds"}
SECONDS = (
    "Seconds are calibrated: the steps of a run times the median seconds of such a step, timed on "
    "one machine, in one process, all forms of the model in turn (the table of step times), so "
    "that a machine that was busy during one run does not decide. What changing the model and "
    "asking when to change it took is added as measured. Evaluations, saves and start are not in "
    "them; the seconds that each run really took are listed under All runs."
)


def compose(results: Results, sentence: str) -> list[Block]:
    """Return the whole report; unfinished, diverged and missing runs are named, never filled in."""
    blocks: list[Block] = [Heading(f"Comparison: {results.name}", 1), Paragraph(sentence, True)]
    for budget in budgets(results):
        blocks += _budget(results, budget)
    blocks += tabulate_steps(results)
    blocks += tabulate_sweep(results)
    blocks += tabulate_downstream(results)
    blocks += _problems(results)
    blocks += _method(results)
    blocks += _runs(results)
    return blocks


def _budget(results: Results, budget: str) -> Iterator[Block]:
    evidence = weigh(results, budget)
    yield Heading(TITLES[budget])
    budget_tokens = f"{ui.number(results.tokens)} tokens"
    if budget == "tokens":
        yield Paragraph(f"Every run trains on {budget_tokens}.")
    else:
        yield Paragraph(
            f"Every run may take the seconds that the baseline takes for {budget_tokens}."
        )
    yield Table(
        ("arm", "learning rate", "seeds", "final loss", "difference to baseline (error)",
         "time to its loss", "time to its loss, paired"),
        tuple(_loss_row(results, each) for each in evidence),
    )  # fmt: skip
    yield Paragraph(
        "Final loss: mean ± standard deviation over the finished seeds. Difference: paired by "
        "seed, with its standard error in brackets; below zero is better. Time to its loss: "
        "seconds until the mean of the baseline's final losses is reached, as a share of the "
        "baseline's whole time; paired: until the baseline's final loss of the same seed."
    )
    if budget == "tokens":
        yield from _figure(results, budget, "tokens")
    yield from _figure(results, budget, "seconds")


def _loss_row(results: Results, each: Evidence) -> tuple[str, ...]:
    arm = each.arm
    is_baseline = arm.name == results.baseline
    seeds = f"{len(each.finished)} of {len(results.seeds)}"
    if each.diverged:
        seeds += f", {each.diverged} diverged"
    difference = UNKNOWN
    if each.difference is not None and not is_baseline:
        difference = format_difference(each.difference)
    return (
        arm.name + (" (baseline)" if is_baseline else ""),
        format_rate(arm.learning_rate) + (" *" if arm.at_edge else ""),
        seeds,
        format_spread(each.final, ".4f"),
        difference,
        "100%" if is_baseline else _time(each.to_mean, each.reached_mean, len(each.finished)),
        "100%" if is_baseline else _time(each.to_paired, each.reached, each.pairs),
    )


def _time(share: Spread | None, reached: int, seeds: int) -> str:
    if not seeds:
        return UNKNOWN
    if share is None:
        return "not reached"
    missed = f", not reached with {seeds - reached} of {seeds} seeds" if reached < seeds else ""
    return format_spread(share, ".1%") + missed


def _figure(results: Results, budget: str, axis: str) -> Iterator[Block]:
    lines = [_line(results, arm, budget, axis) for arm in results.arms]
    if not any(line.curves for line in lines):
        return
    x_label = "tokens" if axis == "tokens" else "calibrated seconds"
    title = f"{TITLES[budget]}: mean over seeds, band from the lowest to the highest"
    yield Figure(
        file=f"figures/equal-{budget}-loss-by-{axis}.svg",
        alt=f"Validation loss against {x_label}, {TITLES[budget].lower()}",
        svg=draw_losses(lines, x_label=x_label, title=title),
    )


def _line(results: Results, arm: ArmResult, budget: str, axis: str) -> Line:
    """Curves of the finished runs; where none is finished, of what there is."""
    runs = [run for run in runs_of(results, arm, budget).values() if run.evals]
    finished = [run for run in runs if is_finished(run)]
    name = arm.name if finished else f"{arm.name} (not finished)"
    curves = tuple(_curve(run, axis) for run in finished or runs)
    return Line(name, tuple(curve for curve in curves if curve), arm.name == results.baseline)


def _curve(run: RunResult, axis: str) -> Curve:
    return [
        (float(point.tokens if axis == "tokens" else point.seconds), point.loss)
        for point in run.evals
        if math.isfinite(point.loss)
    ]


def _problems(results: Results) -> Iterator[Block]:
    lines = [
        f"{arm}, equal {budget}, seed {seed}: not run"
        for (arm, budget, seed), run in planned_runs(results).items()
        if run is None
    ]
    for run in _all_runs(results):
        if not is_finished(run):
            lines.append(f"{_name(run)}: {run.problem or 'no final loss'}")
    if lines:
        yield Heading("Not finished, or failed")
        yield Bullets(tuple(lines))


def _method(results: Results) -> Iterator[Block]:
    yield Heading("How this was made")
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    yield Bullets(
        (
            f"Model: {results.model}",
            f"Text: {results.data or 'not recorded by the version that began it'}",
            f"Budget: {results.tokens:,} tokens a run, {results.tokens_per_step:,} a step",
            f"Seeds: {', '.join(map(str, results.seeds))}",
            *(f"{arm.name}: {arm.description}" for arm in results.arms),
            f"Machine: {results.machine}",
            f"Versions: {versions or 'unknown'}",
            f"Commit: {results.commit or 'not in a git checkout'}",
        )
    )
    yield Paragraph(SECONDS)
    yield Paragraph(f"Rule of the recommendation: {RULE}")


def _runs(results: Results) -> Iterator[Block]:
    rows = tuple(_run_row(results, run) for run in _all_runs(results))
    if rows:
        yield Heading("All runs")
        yield Table(
            ("arm", "budget", "folder", "seed", "learning rate", "steps", "switch at step",
             "final loss", "calibrated s", "wall s", "end"),
            rows,
            left=3,
        )  # fmt: skip


def _run_row(results: Results, run: RunResult) -> tuple[str, ...]:
    end = "finished" if is_finished(run) else run.problem or "no final loss"
    return (
        run.arm,
        run.budget,
        _relative(run.dir, results.out_dir),
        str(run.seed),
        format_rate(run.learning_rate),
        f"{run.steps:,}",
        UNKNOWN if run.switched_at is None else f"{run.switched_at:,}",
        UNKNOWN if run.final_loss is None else f"{run.final_loss:.4f}",
        f"{run.evals[-1].seconds:.1f}" if run.evals else UNKNOWN,
        UNKNOWN if run.wall_seconds is None else f"{run.wall_seconds:.1f}",
        "diverged" if is_diverged(run) and run.problem is None else end,
    )


def _all_runs(results: Results) -> Iterator[RunResult]:
    for arm in results.arms:
        yield from arm.sweep
        yield from arm.runs
    yield from results.downstream


def _name(run: RunResult) -> str:
    return (
        f"{run.arm}, {run.budget}, seed {run.seed}, learning rate {format_rate(run.learning_rate)}"
    )


def _relative(folder: Path, base: Path) -> str:
    return str(folder.relative_to(base)) if folder.is_relative_to(base) else str(folder)
