"""What is shown while a comparison runs: a row for each run that is being made, and when it ends.

The time left is that of all runs to come, by calibrated seconds, times what the clock has said of
the runs so far over what was calibrated for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastffn_cli import ui
from fastffn_cli.comparison.budget import Pace, planned_dense_steps, steps_of_tokens
from fastffn_cli.comparison.history import History
from fastffn_cli.comparison.plan import Plan
from fastffn_cli.comparison.runs import RunSpec

COLUMNS = ("arm", "budget", "seed", "lr", "step", "validation loss", "tokens/s")
START_S = 4.0  # seconds until a process makes its first step, about


class Outlook:
    """Knows all runs of a plan, those of later phases by estimate."""

    def __init__(self, plan: Plan, paces: dict[str, Pace]) -> None:
        self._plan, self._paces = plan, paces
        self._later: dict[str, list[float]] = {}
        self._known: dict[str, list[RunSpec]] = {}
        self._over: dict[Path, History] = {}
        section = plan.section
        tokens = {
            name: self._estimate(name, steps_of_tokens(section.tokens, arm.config))
            for name, arm in plan.arms.items()
        }
        seeds = len(section.seeds)
        if "tokens" in section.budgets:
            self._later["tokens"] = list(tokens.values()) * seeds
        if "seconds" in section.budgets:
            others = len(tokens) - ("tokens" in section.budgets)
            self._later["seconds"] = [tokens[section.baseline]] * others * seeds
        if section.downstream is not None and "tokens" in section.budgets:
            config = plan.baseline.config
            steps = steps_of_tokens(section.downstream.tokens, config)
            each = steps * paces[section.baseline].dense
            self._later["downstream"] = [each] * (len(tokens) + 1) * seeds

    def know(self, phase: str, specs: Sequence[RunSpec]) -> None:
        """Take in the runs of a phase, instead of the estimate."""
        self._later.pop(phase, None)
        self._known[phase] = list(specs)

    @property
    def runs(self) -> int:
        """Number of runs of the plan."""
        return sum(map(len, self._known.values())) + sum(map(len, self._later.values()))

    def over(self) -> int:
        """Count the runs that are over."""
        return sum(self._history(spec).is_over(spec.steps) for spec in self._all())

    def remaining_s(self) -> float:
        """Seconds until the last run ends."""
        calibrated = clock = left = 0.0
        waiting = 0
        for spec in self._all():
            history = self._history(spec)
            whole = self._estimate(spec.arm, spec.steps)
            done = whole * min(1.0, history.step / spec.steps)
            if history.wall_seconds is not None and history.step:
                calibrated, clock = calibrated + done, clock + history.wall_seconds
            if not history.is_over(spec.steps):
                left += whole - done
                waiting += not history.begun
        for estimates in self._later.values():
            left, waiting = left + sum(estimates), waiting + len(estimates)
        factor = clock / calibrated if calibrated else 1.0
        jobs = self._plan.section.jobs
        # Runs at a time slow each other down: the clock has it in it, once there is a run.
        return (left * factor + waiting * START_S) / jobs

    def _all(self) -> Iterable[RunSpec]:
        return (spec for specs in self._known.values() for spec in specs)

    def _history(self, spec: RunSpec) -> History:
        """Read a run's history; once only when it is over, for the table is drawn every second."""
        history = self._over.get(spec.dir) or spec.history()
        if history.is_over(spec.steps):
            self._over[spec.dir] = history
        return history

    def _estimate(self, arm: str, steps: int) -> float:
        name = arm if arm in self._plan.arms else self._plan.section.baseline
        schedule = self._plan.arms[name].config.Schedule
        dense = planned_dense_steps(schedule, steps)
        if dense is None:
            dense = schedule.dense_start_steps(steps) + steps - schedule.latest_switch(steps)
        return self._paces[name].seconds(dense, steps)


def rows(specs: Sequence[RunSpec]) -> list[tuple[str, ...]]:
    """Return the table of the runs that are being made, from their metrics."""
    table: list[tuple[str, ...]] = []
    for spec in specs:
        history = spec.history()
        loss = f"{history.evals[-1][1]:.4f}" if history.evals else "-"
        rate = f"{history.tokens_per_s:,.0f}" if history.tokens_per_s is not None else "-"
        table.append(
            (
                spec.arm,
                spec.budget,
                str(spec.seed),
                f"{spec.learning_rate:g}",
                f"{history.step:,}/{spec.steps:,}",
                loss,
                rate,
            )
        )
    return table


def title(outlook: Outlook) -> str:
    """Return the line above the table."""
    left = ui.duration(outlook.remaining_s())
    return f"{outlook.over()} of {outlook.runs} runs are over, about {left} left"
