"""Measurements on a merged copy: they leave no trace, and they measure what they say."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from fastffn_cli.config.load import load_config
from fastffn_cli.engine import switch_probes
from fastffn_cli.engine.blueprint import draw_blueprint
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.device import use_device
from fastffn_cli.engine.measured_criterion import Measured
from fastffn_cli.engine.run import read_metrics, series
from fastffn_cli.engine.session import Session
from fastffn_cli.engine.stage_change import commit, prepare_switch
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.engine.switch_probes import (
    blocked_shares,
    fork_dense,
    held_out_loss,
    probe_gradients,
)
from fastffn_cli.engine.training import build_session
from fastffn_cli.errors import Diverged
from fastffn_cli.tasks.causal_lm import CausalLM
from models import ffn
from models.ffn.parameters import to_float64
from tests.conftest import Outcome, Workplace

KINDS = {
    "low_rank": "{kind: low_rank, rank: 4}",
    "thin": "{kind: thin, rank: 4, width: 16}",
    "narrow": "{kind: narrow, width: 16}",
    "monarch": "{kind: monarch, blocks: 4}",
    "block_diagonal": "{kind: block_diagonal, blocks: 4}",
    "guided": "{kind: guided, inner: low_rank, rank: 4}",
}
SHORT = (
    *("-o", "Engine.max_steps=20", "-o", "Engine.save_load.save_steps=5"),
    *("-o", "Engine.save_load.keep_last=0"),
)

MakeSession = Callable[..., Session]


@pytest.fixture
def make_session(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeSession]:
    """`make_session(*overrides)` builds one and makes three updates of stage 1."""
    monkeypatch.chdir(workplace.dir)
    sessions: list[Session] = []

    def make(*overrides: str) -> Session:
        resolved = load_config(
            "tiny.yaml",
            [
                f"Engine.save_load.output_dir=runs/{len(sessions)}",
                *("Engine.max_steps=40", "Schedule.switch=fork", *overrides),
            ],
        )
        blueprint = draw_blueprint(resolved, use_device("cpu"), stage="pretrain")
        session = build_session(blueprint, CausalLM)
        sessions.append(session)
        train(session, 3)
        return session

    yield make
    for session in sessions:
        session.run.close()


def train(session: Session, steps: int) -> None:
    """Make updates as the training loop does."""
    update = TrainStep(
        session.task,
        session.optimizer,
        session.precision,
        micro_batch_size=session.config.Data.batch_size.micro_batch_size,
        grad_clip=session.config.Optimizer.grad_clip,
    )
    session.task.model.train()
    for _ in range(steps):
        step, size = session.progress.step + 1, session.plan.batch_size
        seed = session.seed_of(step)
        paddle.seed(seed)
        session.task.begin_step((step - 1) / session.plan.max_steps, seed)
        session.stages.set_rates(session.optimizer, step, session.planned.Schedule)
        update(session.train.batch(session.progress.cursor, size), session.learning_rate(step))
        session.progress.step = step
        session.progress.cursor += size


def everything(session: Session) -> dict[str, Any]:
    """All that a measurement must leave alone, as bytes and numbers."""
    arrays = {**model_tensors(session.task.model), **session.optimizer.state()}
    rates = {
        name: parameter.optimize_attr["learning_rate"]
        for name, parameter in session.optimizer.parameters.items()
    }
    gradients = [p.name for p in session.optimizer.parameters.values() if p.grad is not None]
    return {
        "arrays": {name: array.tobytes() for name, array in arrays.items()},
        "rates": rates,
        "gradients": gradients,
        "progress": vars(session.progress).copy(),
        "stages": copy.deepcopy(vars(session.stages)),
        "trainer": copy.deepcopy(session.trainer),
        "random": [numbers_of(state) for state in paddle.get_rng_state()],
        "training": [layer.training for layer in session.task.model.sublayers()],
        "config": session.config,
    }


def numbers_of(state: Any) -> list[str]:
    """A generator's state without the address that it has in memory."""
    return [word for word in str(state).split() if not word.startswith("0x")]


@pytest.mark.parametrize("kind", KINDS)
def test_measurements_leave_no_trace(make_session: MakeSession, kind: str) -> None:
    session = make_session(f"Model.ffn={KINDS[kind]}")
    before = everything(session)
    drawn = paddle.get_rng_state()
    expected = paddle.rand([4]).numpy()
    paddle.set_rng_state(drawn)
    for measure in (lambda: fork_dense(session, 2), lambda: probe_gradients(session)):
        measure()
        assert everything(session) == before
    assert paddle.rand([4]).numpy().tolist() == expected.tolist()


def test_a_fork_is_what_the_run_would_become(make_session: MakeSession) -> None:
    forked, switched = make_session(), make_session()
    result = fork_dense(forked, 3)
    begin = forked.progress.cursor + 3 * forked.plan.batch_size
    assert result.loss_before == held_out_loss(forked, first=begin)
    commit(switched, prepare_switch(switched))
    train(switched, 3)
    assert result.loss_after == held_out_loss(switched)
    assert result.step_s is not None and 0 < result.step_s < result.seconds


def test_held_out_tokens_are_those_behind_the_fork(make_session: MakeSession) -> None:
    session = make_session()
    size = switch_probes.HELD_OUT_BATCHES * session.plan.batch_size
    batch = session.train.batch(session.progress.cursor, size)
    session.task.model.eval()
    expected = float(session.task.loss(batch).item()) / session.task.weight(batch)
    session.task.model.train()
    assert held_out_loss(session) == pytest.approx(expected, rel=1e-6)


def test_a_fork_that_diverges_says_so_and_leaves_no_trace(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    before = everything(session)

    def diverge(*arguments: Any) -> float:
        raise Diverged("loss is nan")

    monkeypatch.setattr(switch_probes, "_fork_step", diverge)
    result = fork_dense(session, 2)
    assert (result.loss_after, result.step_s) == (None, None)
    assert everything(session) == before


def test_promises_are_first_order_decreases(make_session: MakeSession) -> None:
    """A sign update by one batch's gradient lowers the other batch's loss as promised."""
    session = make_session(
        "Model.hidden_dropout_prob=0", "Model.attention_probs_dropout_prob=0",
        "Optimizer.lr={name: constant, max_lr: 1e-6, warmup_steps: 0}",
    )  # fmt: skip
    probe = probe_gradients(session)
    merged = copy.deepcopy(session.task.model)
    ffn.merge(merged)
    for model, promised in (
        (session.task.model, probe.stage1_decrease),
        (merged, probe.dense_decrease),
    ):
        found = np.mean([sign_step_decrease(session, model, asks) for asks in (0, 1)])
        assert promised == pytest.approx(found, rel=0.02)
    assert probe.time_ratio > 0


def sign_step_decrease(session: Session, model: paddle.nn.Layer, asks: int) -> float:
    """The decrease of one batch's loss by the sign update of the other's gradient, in float64."""
    trial = copy.deepcopy(model)
    trial.to(dtype="float64")
    trial.eval()
    task = CausalLM(trial)
    size, cursor = session.plan.batch_size, session.progress.cursor
    batches = [session.train.batch(cursor + index * size, size) for index in range(2)]

    def loss(index: int) -> paddle.Tensor:
        return task.loss(batches[index]) / task.weight(batches[index])

    loss(asks).backward()
    before = float(loss(1 - asks).item())
    rate = session.schedule(session.progress.step + 1)
    with paddle.no_grad():
        for parameter in trial.parameters():
            if parameter.grad is not None:
                parameter.set_value(parameter - rate * paddle.sign(parameter.grad))
    return before - float(loss(1 - asks).item())


def test_the_learning_rate_factor_counts_for_the_dense_promise_alone(
    make_session: MakeSession,
) -> None:
    plain = probe_gradients(make_session())
    double = probe_gradients(make_session("Schedule.lr_factor=2"))
    assert double.dense_decrease == pytest.approx(2 * plain.dense_decrease, rel=1e-6)
    assert double.stage1_decrease == pytest.approx(plain.stage1_decrease, rel=1e-6)


def gradients_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, paddle.Tensor]:
    random = np.random.default_rng(5)
    return {
        name: paddle.to_tensor(random.standard_normal(shape), dtype="float32")
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("kind", ["low_rank", "thin", "narrow", "guided"])
def test_blocked_share_is_what_no_update_of_stage_1_can_follow(
    make_session: MakeSession, kind: str
) -> None:
    """Least squares: the gradient, minus the nearest change that the parameters can make."""
    small = ("Model.hidden_size=16", "Model.num_layers=1")
    session = make_session(f"Model.ffn={KINDS[kind]}", *small)
    merged = copy.deepcopy(session.task.model)
    ffn.merge(merged)
    shapes = {name: tuple(p.shape) for name, p in merged.named_parameters()}
    gradients = gradients_of(shapes)
    shares = blocked_shares(session.task.model, gradients)
    assert len(shares) == 2
    for name, share in shares.items():
        gradient = to_float64(gradients[name])
        source = name.replace(".linear", ".inner.linear") if kind == "guided" else name
        left_over = unreachable(session.task.model, source.removesuffix(".weight"), gradient)
        assert share == pytest.approx(left_over, rel=1e-6)


def unreachable(model: paddle.nn.Layer, path: str, gradient: np.ndarray) -> float:
    own = dict(model.named_parameters())
    if f"{path}.weight" in own:
        rows, columns = own[f"{path}.weight"].shape
        reached = np.zeros_like(gradient)
        reached[:rows, :columns] = gradient[:rows, :columns]
    else:
        left, right = (to_float64(own[f"{path}.{side}"]) for side in ("left", "right"))
        rows, columns = left.shape[0], right.shape[1]
        moves = np.concatenate(
            [np.kron(np.eye(rows), right.T), np.kron(left, np.eye(columns))], axis=1
        )
        target = gradient[:rows, :columns].reshape(-1)
        nearest = moves @ np.linalg.lstsq(moves, target, rcond=1e-9)[0]
        reached = np.zeros_like(gradient)
        reached[:rows, :columns] = nearest.reshape(rows, columns)
    return float(np.square(gradient - reached).sum() / np.square(gradient).sum())


def test_grids_of_blocks_tell_no_blocked_share(make_session: MakeSession) -> None:
    probe = probe_gradients(make_session(f"Model.ffn={KINDS['monarch']}"))
    assert probe.blocked_share is None
    assert probe.dense_decrease > 0


def test_attention_and_embedding_factors_have_their_share(make_session: MakeSession) -> None:
    session = make_session("Model.attention_rank=8", "Model.embedding_rank=8")
    merged = copy.deepcopy(session.task.model)
    ffn.merge(merged)
    gradients = gradients_of({name: tuple(p.shape) for name, p in merged.named_parameters()})
    shares = blocked_shares(session.task.model, gradients)
    assert len(shares) == 2 * (2 + 2) + 1
    assert all(0 < share < 1 for share in shares.values())


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["slope", "fork", "blocked"])
def test_a_run_decides_records_and_trains_as_if_it_had_not_measured(
    workplace: Workplace, fastffn: Callable[..., Outcome], switch: str
) -> None:
    options = (
        "-o", f"Schedule={{switch: {switch}, at: 0.9, check_freq: 3, fork_steps: 2, patience: 99}}",
        "-o", "Engine.max_steps=60", "-o", "Engine.eval_freq=0",
        "-o", "Engine.save_load.save_steps=0",
    )  # fmt: skip
    done = fastffn("pretrain", "-c", "tiny.yaml", *options)
    assert done.code == 0, done.err
    records = read_metrics(workplace.run_dir)
    checks = [each for each in records if each["event"] == "switch_check"]
    assert checks and {each["criterion"] for each in checks} == {switch}
    assert all(each["step"] >= 6 for each in checks)
    (changed,) = [each for each in records if each["event"] == "switch"]
    assert changed["step"] == 54
    assert changed["reason"].startswith(f"step 54 is the latest, {len(checks)} answers of {switch}")

    fixed = ("-o", "Schedule={switch: fraction, at: 0.9}", *options[2:])
    other = ("-o", "Engine.save_load.output_dir=runs/fixed")
    assert fastffn("pretrain", "-c", "tiny.yaml", *fixed, *other).code == 0
    plain = read_metrics(workplace.dir / "runs" / "fixed")
    assert series(records, "train", "loss") == series(plain, "train", "loss")


@pytest.mark.slow
@pytest.mark.parametrize(("switch", "expected"), [("fork", 10), ("blocked", 8)])
def test_a_run_switches_where_the_answers_in_a_row_are_enough(
    workplace: Workplace,
    fastffn: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
    expected: int,
) -> None:
    # Dense updates that take no time: whatever they gain is more per second.
    monkeypatch.setattr(Measured, "_time_ratio", lambda self: 1e-6)
    schedule = f"Schedule={{switch: {switch}, at: 0.9, check_freq: 4, fork_steps: 2, patience: 2}}"
    done = fastffn("pretrain", "-c", "tiny.yaml", "-o", schedule, *SHORT)
    assert done.code == 0, done.err
    (changed,) = [each for each in read_metrics(workplace.run_dir) if each["event"] == "switch"]
    assert changed["step"] == expected
    assert "a second" in changed["reason"]


@pytest.mark.slow
def test_a_run_resumed_between_a_fork_and_its_answer_judges_the_same_fork(
    workplace: Workplace, fastffn: Callable[..., Outcome]
) -> None:
    schedule = "Schedule={switch: fork, at: 0.9, check_freq: 4, fork_steps: 3, patience: 99}"
    options = ("-o", schedule, *SHORT)
    done = fastffn("pretrain", "-c", "tiny.yaml", *options)
    assert done.code == 0, done.err
    file = workplace.run_dir / "checkpoints/step-00000010/trainer.json"
    pending = json.loads(file.read_text())["stages"]["criterion"]["pending"]
    assert pending["step"] == 8
    straight = told_at(workplace.run_dir, 11)
    go_back(workplace.run_dir, 10)
    done = fastffn("pretrain", "-c", "tiny.yaml", *options, "--resume")
    assert done.code == 0, done.err
    again = told_at(workplace.run_dir, 11)
    same = ("forked_at", "loss_before", "loss_stage1", "loss_dense", "dense_step_s")
    assert [again[key] for key in same] == [straight[key] for key in same]


def told_at(run_dir: Path, step: int) -> dict[str, Any]:
    """The last check that the run recorded at a step."""
    found = [
        each
        for each in read_metrics(run_dir)
        if each["event"] == "switch_check" and each["step"] == step
    ]
    return found[-1]


def go_back(run_dir: Path, step: int) -> None:
    """Leave the run as a kill behind the checkpoint of a step would."""
    for later in (run_dir / "checkpoints").glob("step-*"):
        if later.name > f"step-{step:08d}":
            shutil.rmtree(later)
    (run_dir / "checkpoints/latest").write_text(f"step-{step:08d}\n")
