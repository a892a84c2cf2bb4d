"""The change of a run from one stage to the next: the other model, with its optimizer's state.

A change makes a new model and a new optimizer beside the old ones, checks what must not change, and
puts them into the session at last: whatever fails leaves the run as it was. Where a model is split
among processes, each of them makes the whole one of both stages for it, and takes its part of the
new one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import paddle

from fastffn_cli.config.schema import Config
from fastffn_cli.engine.checkpoint import hollow_model, model_tensors, set_weights
from fastffn_cli.engine.conversion import (
    PROBE_LOGITS,
    Difference,
    Probe,
    compare,
    outputs,
)
from fastffn_cli.engine.handover import hand_down, hand_over, merged_parameters, start_rates
from fastffn_cli.engine.model import build_model, gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.stages import STAGE1, STAGE2, Stages, dense_config
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.errors import MergeCheckFailed
from fastffn_cli.tasks.task import Task
from models import ffn
from models.factoring import factor
from models.gpt import GPT

if TYPE_CHECKING:
    from fastffn_cli.engine.session import Session

# Largest |logit difference| of a merge, over the largest |logit|; half precision has 8 to 11 bits.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2


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
    before = _whole_model(session)
    paddle.seed(session.seed_of(session.progress.step))
    merged = copy.deepcopy(before)
    ffn.merge(merged)
    task, optimizer = _take_part(session, merged)
    lifts = schedule.handover == "lift"
    probes = _dense_gradients(session, task, optimizer) if lifts and schedule.probe_batches else {}
    state = hand_over(
        session.parallelism.gather(session.optimizer.state(), everywhere=True),
        before,
        schedule.handover,
        options=session.config.Optimizer,
        probes=probes or None,
        model_after=merged,
    )
    _load(session, merged, task, optimizer, state)
    difference = _difference(session, before, merged)
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
    before = _whole_model(session)
    approximated = copy.deepcopy(before)
    if planned.Model.ffn.kind != "dense":
        ffn.approximate(approximated, **planned.Model.ffn.model_dump())
    factor(
        approximated,
        attention_rank=planned.Model.attention_rank,
        embedding_rank=planned.Model.embedding_rank,
    )
    policy = "lift" if schedule.handover == "lift" else "reset"
    state = session.parallelism.gather(session.optimizer.state(), everywhere=True)
    state = hand_down(state, before, approximated, policy, options=planned.Optimizer)
    cheap = build_model(gpt_config(planned), planned.Global.seed)
    set_weights(cheap, model_tensors(approximated), "the factored model")
    session.precision.decorate(cheap)
    task, optimizer = _take_part(session, cheap)
    _load(session, cheap, task, optimizer, state)
    start = 0.0 if schedule.handover == "rewarm" else 1.0
    shapes = {name: parameter.shape for name, parameter in before.named_parameters()}
    new = [name for name, each in cheap.named_parameters() if shapes.get(name) != each.shape]
    rates = dict.fromkeys(new, start)
    difference = _difference(session, before, cheap)
    return Switch(STAGE1, planned, task, optimizer, rates, difference)


def commit(session: Session, switch: Switch) -> None:
    """Go on with the model and the optimizer of `switch`."""
    session.task, session.optimizer, session.config = switch.task, switch.optimizer, switch.config
    session.trainer.update(switch.config.Model.approximations)
    session.stages = Stages(
        switch.stage, changed_at=session.progress.step, start_rates=switch.start_rates
    )
    session.task.model.train()


def _whole_model(session: Session) -> GPT:
    """Return the session's model itself, or the whole one of which this process has a part."""
    model = session.task.model
    if not session.parallelism.divides_model:
        return model
    whole = hollow_model(session.config)
    tensors = session.parallelism.gather(model_tensors(model), everywhere=True)
    set_weights(whole, tensors, "the model of all processes")
    session.precision.decorate(whole)
    return whole


def _take_part(session: Session, whole: GPT) -> tuple[Task, AdamW]:
    """Put this process's part of a model, which stays whole, to the task; new optimizer, too."""
    model = whole
    if session.parallelism.divides_model:
        model = session.parallelism.place(copy.deepcopy(whole))
    optimizer = AdamW(
        model,
        session.config.Optimizer,
        multi_precision=session.precision.multi_precision,
        owned=session.parallelism.share_out(model),
    )
    return session.make_task(model), optimizer


def _load(
    session: Session,
    whole: GPT,
    task: Task,
    optimizer: AdamW,
    state: Mapping[str, np.ndarray],
) -> None:
    """Load the part of a state, and the weights of which it keeps float32 masters, rounded once."""
    part = session.parallelism.part(state)
    optimizer.load_state(part)
    for model, values in ((task.model, part), (whole, state)):
        for name, parameter in model.named_parameters():
            master = values.get(f"{name}.master")
            if master is not None:
                parameter.set_value(paddle.to_tensor(master).astype(parameter.dtype))


def _difference(session: Session, model_before: GPT, model_after: GPT) -> Difference:
    """Compare two whole models on the first tokens of the next step.

    As many sequences as the logits of `PROBE_LOGITS` hold, at least one, at most a micro batch.
    """
    vocab_size = session.config.Model.vocab_size
    assert vocab_size is not None, "a run's configuration is resolved"
    rows = max(1, PROBE_LOGITS // (session.train.seq_len * vocab_size))
    size = min(rows, session.config.Data.batch_size.micro_batch_size)
    probe = Probe(session.train.batch(session.progress.cursor, size), "the next step's tokens")
    tasks = [session.make_task(model) for model in (model_before, model_after)]
    before, now = (_outputs(session, task, probe) for task in tasks)
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

    They are whole; nothing, where one of them is not finite.
    """
    step = TrainStep(
        task,
        optimizer,
        session.precision,
        micro_batch_size=session.config.Data.batch_size.micro_batch_size,
        grad_clip=session.config.Optimizer.grad_clip,
        parallelism=session.parallelism,
    )
    names = merged_parameters(session.task.model)
    gradients: dict[str, list[np.ndarray]] = {}
    for index in range(session.planned.Schedule.probe_batches):
        first = session.progress.cursor + index * session.plan.batch_size
        row, count = session.parallelism.rows(session.plan.batch_size)
        probe = step.probe(session.train.batch(first + row, count), names)
        for name, array in session.parallelism.gather(probe, everywhere=True).items():
            gradients.setdefault(name, []).append(array)
    finite = all(np.isfinite(array).all() for arrays in gradients.values() for array in arrays)
    return gradients if finite else {}
