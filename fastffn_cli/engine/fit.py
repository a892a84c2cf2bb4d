"""The training loop: read a batch, make a step, log, evaluate, save; stop when asked.

Everything random in a step comes from `step_seed(seed, step)`, and everything read from the data
cursor, so the state of a run is its weights, its optimizer and three numbers.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import Batch, TokenDataset
from fastffn_cli.data.loader import iterate
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.evaluate import evaluate
from fastffn_cli.engine.find import newest_of_run
from fastffn_cli.engine.interrupt import StopRequest, listen
from fastffn_cli.engine.memory import MemoryEstimate
from fastffn_cli.engine.meter import Meter
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.report import Report, View
from fastffn_cli.engine.run import Run
from fastffn_cli.engine.schedule import Schedule
from fastffn_cli.engine.step import StepResult, TrainStep
from fastffn_cli.errors import Diverged, Interrupted, OutOfMemory, is_out_of_memory
from fastffn_cli.tasks.task import Task


@dataclass(frozen=True)
class Plan:
    """What the loop does when."""

    max_steps: int
    batch_size: int
    eval_batch_size: int
    logging_freq: int
    eval_freq: int
    eval_iters: int
    save_steps: int
    keep_last: int
    seed: int


@dataclass
class Progress:
    """How far a run is: updates made, samples read, tokens read."""

    step: int = 0
    cursor: int = 0
    tokens: int = 0


@dataclass
class Session:
    """Everything that `fit` needs, built by `fastffn_cli.engine.training`."""

    config: Config
    task: Task
    optimizer: AdamW
    precision: Precision
    schedule: Schedule
    train: TokenDataset
    valid: TokenDataset | None
    plan: Plan
    run: Run
    device: Device
    memory: MemoryEstimate
    trainer: dict[str, Any]
    tokenizer_dir: Path | None
    continue_command: str
    progress: Progress = field(default_factory=Progress)
    free_memory: int | None = None


@dataclass(frozen=True)
class Summary:
    """The end of a run: last training and evaluation loss, speed without the first step."""

    step: int
    tokens: int
    loss: float | None
    eval_loss: float | None
    tokens_per_s: float | None
    checkpoint: Path


def fit(session: Session, view: View) -> Summary:
    """Train until `plan.max_steps`, then evaluate, save and draw the curve.

    Raises `Interrupted` after saving when a signal asked to stop, `Diverged` when a number is not
    finite and `OutOfMemory` with advice; the newest checkpoint stays usable in each case.
    """
    report = Report(session.run, view, session.config.Engine.log_sinks)
    loop = _Loop(session, report)
    with closing(report), listen(report.note) as stop:
        view.begin(session.progress.step, session.plan.max_steps)
        try:
            return loop.run(stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise loop.out_of_memory() from error
        finally:
            view.end()


def step_seed(seed: int, step: int) -> int:
    """Seed of the random numbers of one update, well mixed over both arguments."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


class _Loop:
    def __init__(self, session: Session, report: Report) -> None:
        self.session, self.report = session, report
        config = session.config
        self.meter = Meter()
        self.train_step = TrainStep(
            session.task,
            session.optimizer,
            session.precision,
            micro_batch_size=config.Data.batch_size.micro_batch_size,
            grad_clip=config.Optimizer.grad_clip,
        )
        self.last_loss: float | None = None
        self.last_eval: float | None = None
        self.saved: Path | None = None

    def run(self, stop: StopRequest) -> Summary:
        session, plan, progress = self.session, self.session.plan, self.session.progress
        session.task.model.train()
        batches = iterate(session.train, cursor=progress.cursor, batch_size=plan.batch_size)
        with closing(batches):  # type: ignore[type-var]
            while progress.step < plan.max_steps and stop.exit_code is None:
                self.meter.begin()
                batch = next(batches)
                self.meter.data_ready()
                self._advance(batch)
                last = progress.step == plan.max_steps
                if _due(progress.step, plan.eval_freq) or (last and plan.eval_freq > 0):
                    self._evaluate()
                if _due(progress.step, plan.save_steps) or last or stop.exit_code is not None:
                    self._save()
        self.report.draw()
        if stop.exit_code is not None and progress.step < plan.max_steps:
            kept = self.saved or self._newest()
            raise Interrupted(
                f"stopped after step {progress.step}, saved {kept}. Continue with:\n"
                f"    {session.continue_command}",
                exit_code=stop.exit_code,
            )
        return self._finish()

    def _advance(self, batch: Batch) -> None:
        session, progress = self.session, self.session.progress
        step = progress.step + 1
        seed = step_seed(session.plan.seed, step)
        paddle.seed(seed)
        session.task.begin_step((step - 1) / session.plan.max_steps, seed)
        rate = session.schedule(step)
        try:
            result = self.train_step(batch, rate)
        except Diverged as error:
            raise self._diverged(step, error) from error
        tokens = batch.tokens_BS.size
        self.meter.end(tokens)
        progress.step, progress.tokens = step, progress.tokens + tokens
        progress.cursor += session.plan.batch_size
        self.last_loss = result.loss
        if _due(step, session.plan.logging_freq) or step == session.plan.max_steps:
            self._log(result, rate)

    def _log(self, result: StepResult, rate: float) -> None:
        session, progress = self.session, self.session.progress
        first_sample = progress.cursor - session.plan.batch_size
        epoch, position = divmod(first_sample, session.train.num_samples)
        values: dict[str, Any] = {
            "step": progress.step,
            "epoch": epoch,
            "loss": result.loss,
            "learning_rate": rate,
            "grad_norm": result.grad_norm,
            "tokens": progress.tokens,
        }
        if result.skipped:
            values["skipped"] = True
        self.report.step(
            values,
            self.meter.window(),
            batch=position // session.plan.batch_size,
            next_rate=session.schedule(progress.step + 1),
            tokens_per_s=self.meter.tokens_per_s,
            remaining_s=self.meter.remaining_s(session.plan.max_steps - progress.step),
        )

    def _evaluate(self) -> None:
        session, plan = self.session, self.session.plan
        if session.valid is None:
            return
        loss, tokens = evaluate(
            session.task,
            session.valid,
            session.precision,
            batches=plan.eval_iters,
            batch_size=plan.eval_batch_size,
        )
        self.last_eval = loss
        metrics = session.task.metrics(loss)
        self.report.evaluation(session.progress.step, loss, tokens, metrics)

    def _save(self) -> None:
        session, progress = self.session, self.session.progress
        tensors = model_tensors(session.task.model)
        spoiled = [name for name, array in tensors.items() if not np.isfinite(array).all()]
        if spoiled:
            error = Diverged(f"the update made weights that are not finite (first: {spoiled[0]})")
            raise self._diverged(progress.step, error)
        self.saved = session.run.save(
            config=session.config,
            trainer={
                **session.trainer,
                "step": progress.step,
                "cursor": progress.cursor,
                "tokens": progress.tokens,
                "loss": self.last_loss,
                "scaler": session.precision.state(),
            },
            tensors=tensors,
            optimizer_state=session.optimizer.state(),
            tokenizer_dir=session.tokenizer_dir,
            keep_last=session.plan.keep_last,
        )
        self.report.checkpoint(progress.step, self.saved)

    def _diverged(self, step: int, error: Diverged) -> Diverged:
        session = self.session
        self.report.event("diverged", step=step, message=error.message)
        self.report.draw()
        newest = self.saved or self._newest()
        kept = f"last good checkpoint: {newest}" if newest else "no checkpoint was saved yet"
        return Diverged(
            f"step {step}: {error.message}; {kept}",
            hint=error.hint
            or f"Try -o Optimizer.lr.max_lr={session.schedule.max_lr / 3:.1e} or another seed.",
        )

    def out_of_memory(self) -> OutOfMemory:
        """Advice for this run, whose memory just ran out."""
        session = self.session
        return advise(
            session.memory,
            micro_batch_size=session.config.Data.batch_size.micro_batch_size,
            local_batch_size=session.plan.batch_size,
            free=session.free_memory,
            continue_command=session.continue_command,
        )

    def _newest(self) -> Path | None:
        return newest_of_run(self.session.run.dir)[0]

    def _finish(self) -> Summary:
        progress, speed = self.session.progress, self.meter.tokens_per_s
        assert self.saved is not None, "the last step saves"
        self.report.event(
            "end",
            step=progress.step,
            loss=self.last_loss,
            eval_loss=self.last_eval,
            tokens_per_s=speed,
        )
        return Summary(
            progress.step, progress.tokens, self.last_loss, self.last_eval, speed, self.saved
        )


def _due(step: int, frequency: int) -> bool:
    return frequency > 0 and step % frequency == 0
