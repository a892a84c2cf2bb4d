"""Steps of a run: of a number of tokens, or of as many seconds as the baseline takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastffn_cli.config.schema import Config
from fastffn_cli.config.schema_training import ScheduleSection

if TYPE_CHECKING:
    from fastffn_cli.comparison.history import History


@dataclass(frozen=True)
class Pace:
    """Seconds of an arm's step with its own model and with the dense one."""

    stage1: float
    dense: float

    def seconds(self, dense_steps: int, steps: int, extra: float = 0.0) -> float:
        """Return the seconds of a run of `steps`, `dense_steps` of them dense."""
        return (steps - dense_steps) * self.stage1 + dense_steps * self.dense + extra


def steps_of_tokens(tokens: float, config: Config) -> int:
    """Return the whole steps in a budget of tokens, at least one."""
    return max(1, int(tokens // config.Data.tokens_per_step))


def planned_dense_steps(schedule: ScheduleSection, steps: int) -> int | None:
    """Count the dense steps of a run before it begins; None where a measurement will decide."""
    if schedule.switch == "never":
        return 0
    if schedule.switch != "fraction":
        return None
    first, end = schedule.dense_start_steps(steps), schedule.latest_switch(steps)
    # Stage 1 has a step, however late it begins.
    return min(steps, first + steps - min(steps, max(end, first + 1)))


def equal_seconds_steps(
    seconds: float, schedule: ScheduleSection, pace: Pace, seen: History | None
) -> int | None:
    """Return the steps with which an arm's run is nearest to `seconds`, one a stage at least.

    `seen` is the arm's run of the same seed at equal tokens, to its end: what changes of the model
    cost is taken from it, and where a measurement decides about them, their share of the run.
    None without it where that has to be known.
    """
    fixed = per_step = 0.0
    share = None
    if seen is not None and seen.ended_at:
        changes = {step for step, _ in seen.changes}
        slowness = seen.slowness(pace.stage1, pace.dense)
        fixed = sum(cost for step, cost in seen.extra if step in changes) / slowness
        checks = sum(cost for step, cost in seen.extra if step not in changes) / slowness
        per_step = checks / seen.ended_at
        share = seen.dense_steps(seen.ended_at) / seen.ended_at

    def total(steps: int) -> float | None:
        dense = planned_dense_steps(schedule, steps)
        if dense is None:
            if share is None:
                return None
            dense = round(share * steps)
        return pace.seconds(dense, steps, fixed + per_step * steps)

    fewest = 1 if schedule.switch == "never" else schedule.fewest_steps()
    if total(fewest) is None:
        return None
    low, high = fewest, 2 * fewest
    while (at_high := total(high)) is not None and at_high < seconds:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        at_middle = total(middle)
        assert at_middle is not None, "what is known of one step is known of all"
        low, high = (middle, high) if at_middle <= seconds else (low, middle)
    return min((low, high), key=lambda steps: (abs((total(steps) or 0.0) - seconds), steps))
