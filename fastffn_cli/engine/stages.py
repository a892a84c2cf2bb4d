"""Both stages in one run: which model is trained when.

    dense_start   the dense model, for a share of the run (the sandwich; usually none)
    stage1        the model that `Model` describes, with cheap feed-forwards
    stage2        the dense model that stage 1 merges into

The learning rate is one curve over all stages; only weights that a change made anew have a factor
of their own for some steps. `fastffn_cli.engine.stage_change` makes the changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fastffn_cli.config.ffn import DENSE
from fastffn_cli.config.schema import Config
from fastffn_cli.config.schema_training import ScheduleSection
from fastffn_cli.engine.compatibility import PLANNED
from fastffn_cli.engine.conversion import with_approximations
from fastffn_cli.engine.handover import rewarm_factor
from fastffn_cli.engine.optimizer import AdamW

DENSE_START, STAGE1, STAGE2 = "dense_start", "stage1", "stage2"


@dataclass
class Stages:
    """Where a run stands between its stages: what `trainer.json` keeps under `stages`.

    `start_rates` are the factors of weights that the last change made, at the update behind it.
    `reason` says why the next change is due; None while none is. `criterion` is the state of what
    decides that.
    """

    stage: str
    changed_at: int = 0
    start_rates: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    criterion: dict[str, Any] | None = None

    @classmethod
    def begin(cls, schedule: ScheduleSection) -> Stages:
        """The stages of a new run."""
        sandwich = schedule.switch != "never" and schedule.dense_start > 0
        return cls(DENSE_START if sandwich else STAGE1)

    @classmethod
    def resume(cls, record: Mapping[str, Any] | None) -> Stages:
        """The stages that a checkpoint's `stages` record holds; of a run without it, stage 1."""
        if not record:
            return cls(STAGE1)
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return cls(**known)

    @property
    def is_dense(self) -> bool:
        """Whether the dense model is being trained in the place of the configured one."""
        return self.stage != STAGE1

    def record(self, planned: Config) -> dict[str, Any]:
        """Return the JSON form, with what the run's checkpoints need of its configuration.

        Empty for a run that has no stages.
        """
        if planned.Schedule.switch == "never" and not self.changed_at:
            return {}
        sections = {name: getattr(planned, name).model_dump(mode="json") for name in PLANNED}
        return {**asdict(self), "planned": sections}

    def learning_rate_factor(self, step: int, schedule: ScheduleSection) -> float:
        """Return the factor on the schedule's learning rate at update `step`.

        `lr_factor` in a dense stage, 1 in stage 1, and a straight line of `rewarm_steps` between.
        """
        now, before = (schedule.lr_factor, 1.0) if self.is_dense else (1.0, schedule.lr_factor)
        if not self.changed_at:
            return now
        share = rewarm_factor(step - self.changed_at, schedule.rewarm_steps)
        return before + (now - before) * share

    def set_rates(self, optimizer: AdamW, step: int, schedule: ScheduleSection) -> None:
        """Set, before update `step`, the learning rate factors of weights that are still new."""
        since, over = step - self.changed_at, schedule.rewarm_steps
        if self.start_rates and since <= over + 1:
            optimizer.set_rate_factors(
                {
                    name: rewarm_factor(since, over, start)
                    for name, start in self.start_rates.items()
                    if name in optimizer.parameters  # a pipeline stage has some of them
                }
            )


def dense_config(planned: Config) -> Config:
    """Return the configuration of a run's dense stages: that of a dense run, without a switch."""
    return with_approximations(planned, DENSE)


def dense_start_over(step: int, schedule: ScheduleSection, max_steps: int) -> str | None:
    """Say why the dense start ends after update `step`; None while it does not."""
    steps = schedule.dense_start_steps(max_steps)
    return f"{steps} dense steps are made" if step >= steps else None
