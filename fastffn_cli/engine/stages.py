"""Both stages in one run: which model is trained when, and the change from one to the next.

    dense_start   the dense model, for a share of the run (the sandwich; usually none)
    stage1        the model that `Model` describes, with cheap feed-forwards
    stage2        the dense model that stage 1 merges into

A change makes a new model and a new optimizer beside the old ones, checks what must not change, and
puts them into the session at last: whatever fails leaves the run as it was. The learning rate is
one curve over all stages; only weights that a change made anew have a factor of their own for some
steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from fastffn_cli.config.ffn import DENSE
from fastffn_cli.config.schema import Config
from fastffn_cli.config.schema_training import ScheduleSection
from fastffn_cli.engine.checkpoint import model_tensors, set_weights
from fastffn_cli.engine.compatibility import PLANNED
from fastffn_cli.engine.conversion import (
    PROBE_LOGITS,
    Difference,
    Probe,
    compare,
    outputs,
    with_approximations,
)
from fastffn_cli.engine.handover import (
    hand_down,
    hand_over,
    merged_parameters,
    rewarm_factor,
    start_rates,
)
from fastffn_cli.engine.model import build_model, gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.errors import MergeCheckFailed
from fastffn_cli.tasks.task import Task
from models import ffn
from models.factoring import factor

if TYPE_CHECKING:
    from fastffn_cli.engine.session import Session

DENSE_START, STAGE1, STAGE2 = "dense_start", "stage1", "stage2"
# Largest |logit difference| of a merge, over the largest |logit|; half precision has 8 to 11 bits.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2


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
                }
            )


@dataclass(frozen=True)
class Switch:
    """The next stage, ready to be trained, and how its model differs from the one before.

    `config` is the session's with the model that is now trained.
    """

    stage: str
    config: Config
    task: Task
    optimizer: AdamW
    start_rates: dict[str, float]
    difference: Difference


def prepare_switch(session: Session) -> Switch:
    """Make the dense model of the run's stage 1, with its optimizer; the session stays as it is.

    Grown hidden units are drawn from the seed of the step. Raises `MergeCheckFailed` where the
    merged model is another function on tokens of the step to come.
    """
    schedule, precision = session.planned.Schedule, session.precision
    before = session.task.model
    paddle.seed(session.seed_of(session.progress.step))
    merged = copy.deepcopy(before)
    ffn.merge(merged)
    task = session.make_task(merged)
    lifts = schedule.handover == "lift"
    optimizer = _optimizer(session, merged)
    probes = _dense_gradients(session, task, optimizer) if lifts and schedule.probe_batches else {}
    state = hand_over(
        session.optimizer.state(),
        before,
        schedule.handover,
        options=session.config.Optimizer,
        probes=probes or None,
        model_after=merged,
    )
    _load(optimizer, merged, state)
    difference = _difference(session, task)
    tolerance = HALF_TOLERANCE if precision.enabled else TOLERANCE
    if not difference.relative <= tolerance:
        raise MergeCheckFailed(
            f"step {session.progress.step}: the merged model is another one: max |logit "
            f"difference| {difference.logits:.3e} at logits up to {difference.scale:.3g}, over "
            f"the tolerance {tolerance:g}",
            hint="Merge the last checkpoint by hand: fastffn convert --dtype float64",
        )
    rates = start_rates(before, schedule.handover)
    return Switch(STAGE2, dense_config(session.planned), task, optimizer, rates, difference)


def prepare_stage1(session: Session) -> Switch:
    """Factor the dense model that the run began with into the configured one.

    The new model is built as a resumed run builds it, and differs from the dense one: `difference`
    says by how much.
    """
    planned, schedule = session.planned, session.planned.Schedule
    before = session.task.model
    approximated = copy.deepcopy(before)
    if planned.Model.ffn.kind != "dense":
        ffn.approximate(approximated, **planned.Model.ffn.model_dump())
    factor(
        approximated,
        attention_rank=planned.Model.attention_rank,
        embedding_rank=planned.Model.embedding_rank,
    )
    policy = "lift" if schedule.handover == "lift" else "reset"
    state = hand_down(
        session.optimizer.state(), before, approximated, policy, options=planned.Optimizer
    )
    cheap = build_model(gpt_config(planned), planned.Global.seed)
    set_weights(cheap, model_tensors(approximated), "the factored model")
    session.precision.decorate(cheap)
    optimizer = _optimizer(session, cheap)
    _load(optimizer, cheap, state)
    task = session.make_task(cheap)
    start = 0.0 if schedule.handover == "rewarm" else 1.0
    shapes = {name: parameter.shape for name, parameter in before.named_parameters()}
    new = [name for name, each in optimizer.parameters.items() if shapes.get(name) != each.shape]
    rates = dict.fromkeys(new, start)
    return Switch(STAGE1, planned, task, optimizer, rates, _difference(session, task))


def dense_config(planned: Config) -> Config:
    """Return the configuration of a run's dense stages: that of a dense run, without a switch."""
    return with_approximations(planned, DENSE)


def commit(session: Session, switch: Switch) -> None:
    """Go on with the model and the optimizer of `switch`."""
    session.task, session.optimizer, session.config = switch.task, switch.optimizer, switch.config
    session.trainer.update(switch.config.Model.approximations)
    session.stages = Stages(
        switch.stage, changed_at=session.progress.step, start_rates=switch.start_rates
    )
    session.task.model.train()


def dense_start_over(step: int, schedule: ScheduleSection, max_steps: int) -> str | None:
    """Say why the dense start ends after update `step`; None while it does not."""
    steps = schedule.dense_start_steps(max_steps)
    return f"{steps} dense steps are made" if step >= steps else None


def _optimizer(session: Session, model: paddle.nn.Layer) -> AdamW:
    return AdamW(model, session.config.Optimizer, multi_precision=session.precision.multi_precision)


def _load(optimizer: AdamW, model: paddle.nn.Layer, state: Mapping[str, np.ndarray]) -> None:
    """Load a state, and the weights of which it keeps float32 masters, rounded once."""
    optimizer.load_state(state)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        master = state.get(f"{name}.master")
        if master is not None:
            parameter.set_value(paddle.to_tensor(master).astype(parameter.dtype))


def _difference(session: Session, after: Task) -> Difference:
    """Compare the session's model with another one on the first tokens of the next step.

    As many sequences as the logits of `PROBE_LOGITS` hold, at least one, at most a micro batch.
    """
    vocab_size = session.config.Model.vocab_size
    assert vocab_size is not None, "a run's configuration is resolved"
    rows = max(1, PROBE_LOGITS // (session.train.seq_len * vocab_size))
    size = min(rows, session.config.Data.batch_size.micro_batch_size)
    probe = Probe(session.train.batch(session.progress.cursor, size), "the next step's tokens")
    before, now = (_outputs(session, task, probe) for task in (session.task, after))
    return compare(before, now, probe)


def _outputs(session: Session, task: Task, probe: Probe) -> tuple[np.ndarray, float]:
    task.model.eval()
    try:
        with session.precision.autocast():
            return outputs(task, probe)
    finally:
        task.model.train()


def _dense_gradients(session: Session, task: Task, optimizer: AdamW) -> dict[str, list[np.ndarray]]:
    """Return the merged weights' gradients of the batches to come, as the optimizer would see them.

    Nothing, where one of them is not finite.
    """
    step = TrainStep(
        task,
        optimizer,
        session.precision,
        micro_batch_size=session.config.Data.batch_size.micro_batch_size,
        grad_clip=session.config.Optimizer.grad_clip,
    )
    names = merged_parameters(session.task.model)
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for index in range(session.planned.Schedule.probe_batches):
        first = session.progress.cursor + index * session.plan.batch_size
        probe = step.probe(session.train.batch(first, session.plan.batch_size), names)
        for name in names:
            gradients[name].append(probe[name])
    finite = all(np.isfinite(array).all() for arrays in gradients.values() for array in arrays)
    return gradients if finite else {}
