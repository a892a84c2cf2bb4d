"""What dense training would gain, measured on a merged copy that is thrown away afterwards.

No measurement leaves a trace: weights, optimizer, loss scale, data cursor and random numbers of the
run are afterwards what they were, to the bit.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.handover import merging_layers
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.stage_change import prepare_switch
from fastffn_cli.engine.stages import STAGE2, Stages
from fastffn_cli.engine.step import TrainStep, micro_batches
from fastffn_cli.errors import Diverged, MergeCheckFailed
from models import ffn
from models.ffn.moments import MergedParameter, blocked_share
from models.ffn.parameters import rate_scale, to_float64

if TYPE_CHECKING:
    from fastffn_cli.engine.session import Session
    from fastffn_cli.tasks.task import Task

# Batches of a whole step on which losses are compared: as many as make the same tokens' losses,
# before and after some steps, differ by more than by chance.
HELD_OUT_BATCHES = 4
FACTORS = ["left", "right"]


@dataclass(frozen=True)
class DenseFork:
    """Some dense updates: held-out loss before and after, seconds an update and of it all.

    `loss_after` is None where they did not come to a finite end, `step_s` where none was made.
    """

    loss_before: float
    loss_after: float | None
    step_s: float | None
    seconds: float


@dataclass(frozen=True)
class GradientProbe:
    """What the next update promises, in nats a token, to first order in the learning rate.

    The promise of parameters p is Σ η_p·sign(g)·h, of gradients g and h from two batches: the
    decrease on one batch by the sign-like update that the other one asks for. (Σ η_p·|g| of a
    single batch counts its noise as gain, which a dense model has more of.) `time_ratio` is how
    much longer dense gradients take; `blocked_share` the median over matrices of the share of the
    dense gradient's square that stage 1's parameters cannot follow, None where no kind tells it.
    """

    stage1_decrease: float
    dense_decrease: float
    time_ratio: float
    blocked_share: float | None
    seconds: float


def fork_dense(session: Session, steps: int) -> DenseFork:
    """Train a merged copy for some steps as the run would, on the batches that come next."""
    begun = time.perf_counter()
    behind = session.progress.cursor + steps * session.plan.batch_size
    seconds: list[float] = []
    after: float | None = None
    with _undisturbed(session):
        before = held_out_loss(session, first=behind)
        try:
            switch = prepare_switch(session)
            stages = Stages(
                STAGE2, changed_at=session.progress.step, start_rates=switch.start_rates
            )
            for index in range(steps):
                seconds.append(_fork_step(session, switch.task, switch.optimizer, stages, index))
            after = held_out_loss(session, switch.task, first=behind)
        except (Diverged, MergeCheckFailed):
            pass  # dense training gains nothing here; at a real switch the user is told why
    if after is not None and not math.isfinite(after):
        after = None
    # The first update builds kernels and moments.
    step_s = statistics.median(seconds[1:] or seconds) if seconds else None
    return DenseFork(before, after, step_s, time.perf_counter() - begun)


def _fork_step(session: Session, task: Task, optimizer: AdamW, stages: Stages, index: int) -> float:
    """Make the update of a step to come; return its seconds, without reading the batch."""
    size, schedule = session.plan.batch_size, session.planned.Schedule
    step = session.progress.step + 1 + index
    batch = session.train.batch(session.progress.cursor + index * size, size)
    seed = session.seed_of(step)
    begun = time.perf_counter()
    paddle.seed(seed)
    task.begin_step((step - 1) / session.plan.max_steps, seed)
    stages.set_rates(optimizer, step, schedule)
    rate = session.schedule(step) * stages.learning_rate_factor(step, schedule)
    _train_step(session, task, optimizer)(batch, rate)
    return time.perf_counter() - begun


def held_out_loss(session: Session, task: Task | None = None, first: int | None = None) -> float:
    """Return the mean loss, in nats a token and without dropout, on batches not trained on yet.

    They begin at sample `first` (by default the run's next one); `task` is by default the run's.
    """
    task = task if task is not None else session.task
    first = first if first is not None else session.progress.cursor
    size = session.plan.batch_size
    total = weight = 0.0
    task.model.eval()
    try:
        with paddle.no_grad():
            for cursor in range(first, first + HELD_OUT_BATCHES * size, size):
                for micro in micro_batches(session.train.batch(cursor, size), _micro(session)):
                    with session.precision.autocast():
                        total += float(task.loss(micro).item())
                    weight += task.weight(micro)
    finally:
        task.model.train()
    return total / max(weight, 1.0)


def probe_gradients(session: Session) -> GradientProbe:
    """Take the gradients of the next two batches, of stage 1 and of the model it merges to."""
    begun = time.perf_counter()
    step, size = session.progress.step, session.plan.batch_size
    cursor = session.progress.cursor
    batches = session.train.batch(cursor, size), session.train.batch(cursor + size, size)
    factor = session.planned.Schedule.lr_factor
    with _undisturbed(session):
        stage1 = _promise(session, session.task, session.optimizer, batches)
        paddle.seed(session.seed_of(step))
        merged = copy.deepcopy(session.task.model)
        ffn.merge(merged)
        # Its moments are made by the first update, which never comes.
        optimizer = AdamW(
            merged, session.config.Optimizer, multi_precision=session.precision.multi_precision
        )
        dense = _promise(session, session.make_task(merged), optimizer, batches)
        shares = blocked_shares(session.task.model, dense.gradients)
    rate = session.schedule(step + 1) / session.precision.loss_scale
    return GradientProbe(
        stage1_decrease=stage1.decrease * rate,
        dense_decrease=dense.decrease * rate * factor,
        time_ratio=dense.seconds / stage1.seconds,
        blocked_share=statistics.median(shares.values()) if shares else None,
        seconds=time.perf_counter() - begun,
    )


def blocked_shares(model: nn.Layer, gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Return, for merged matrices, the share of the gradient that stage 1 cannot follow.

    `gradients` are those of the merged model, by name. Of factors it is `models.ffn.moments.
    blocked_share`, of hidden units that are still to be grown all of their gradient. Matrices of
    which neither is the whole story, as a grid of blocks, are left out.
    """
    own = dict(model.named_parameters())
    shares = {}
    for prefix, layer in merging_layers(model):
        for name, parameter in layer.merged_parameters().items():
            if len(parameter.shape) != 2 or prefix + name not in gradients:
                continue
            gradient = to_float64(gradients[prefix + name])
            share = _blocked(prefix, name, parameter, own, gradient)
            if share is not None:
                shares[prefix + name] = share
    return shares


def _blocked(
    prefix: str,
    name: str,
    parameter: MergedParameter,
    own: Mapping[str, Tensor],
    gradient: np.ndarray,
) -> float | None:
    leaves = [source.rpartition(".")[2] for source in parameter.sources]
    energy = float(np.square(gradient).sum())
    if energy == 0:
        return 0.0
    if leaves[:2] == FACTORS:
        left, right = (own[prefix + source] for source in parameter.sources[:2])
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            return None
        trained = gradient[: left.shape[0], : right.shape[1]]
        within = blocked_share(to_float64(left), to_float64(right), trained)
    elif leaves[0] == name.rpartition(".")[2] and own[prefix + parameter.sources[0]].ndim == 2:
        rows, columns = own[prefix + parameter.sources[0]].shape
        trained, within = gradient[:rows, :columns], 0.0
    else:
        return None
    return 1.0 - (1.0 - within) * float(np.square(trained).sum()) / energy


class _Promise(NamedTuple):
    """Σ scale·sign(g)·h over all parameters, seconds of one batch, gradients of the first one."""

    decrease: float
    seconds: float
    gradients: dict[str, Tensor]


def _promise(
    session: Session, task: Task, optimizer: AdamW, batches: tuple[Batch, Batch]
) -> _Promise:
    """Take a model's gradients, times the loss scale, with the random numbers of steps to come."""
    (first, _), (second, seconds) = (
        _gradients(session, task, optimizer, batch, ahead) for ahead, batch in enumerate(batches, 1)
    )
    decrease = 0.0
    for name in first.keys() & second.keys():
        g, h = (each[name].astype("float32") for each in (first, second))
        # Either batch may be the one that asks, so that both are used twice.
        both = paddle.sum(paddle.sign(g) * h + paddle.sign(h) * g)
        decrease += 0.5 * rate_scale(optimizer.parameters[name]) * float(both.item())
    # The first batch built kernels: the second one's seconds are those that count.
    return _Promise(decrease, seconds, first)


def _gradients(
    session: Session, task: Task, optimizer: AdamW, batch: Batch, ahead: int
) -> tuple[dict[str, Tensor], float]:
    paddle.seed(session.seed_of(session.progress.step + ahead))
    session.device.synchronize()
    begun = time.perf_counter()
    _train_step(session, task, optimizer).accumulate_gradients(batch)
    session.device.synchronize()
    seconds = time.perf_counter() - begun
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in optimizer.parameters.items()
        if parameter.grad is not None
    }
    optimizer.clear_gradients()
    return gradients, seconds


def _train_step(session: Session, task: Task, optimizer: AdamW) -> TrainStep:
    return TrainStep(
        task,
        optimizer,
        session.precision,
        micro_batch_size=_micro(session),
        grad_clip=session.config.Optimizer.grad_clip,
    )


def _micro(session: Session) -> int:
    return session.config.Data.batch_size.micro_batch_size


@contextmanager
def _undisturbed(session: Session) -> Iterator[None]:
    """Give the run its random numbers and its loss scale back."""
    random_state, scaler = paddle.get_rng_state(), session.precision.state()
    try:
        yield
    finally:
        session.precision.load_state(scaler)
        paddle.set_rng_state(random_state)
