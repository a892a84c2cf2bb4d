"""The training loop: read a batch, make a step, log, evaluate, save; stop when asked.

Everything random in a step comes from `step_seed(seed, step)`, and everything read from the data
cursor, so the state of a run is its weights, its optimizer and three numbers.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle

from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import Batch, TokenDataset
from fastffn_cli.data.loader import iterate
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.evaluate import evaluate
from fastffn_cli.engine.interrupt import StopRequest, listen
from fastffn_cli.engine.logline import stamped, train_line
from fastffn_cli.engine.memory import MemoryEstimate
from fastffn_cli.engine.meter import Meter
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.out_of_memory import advise, is_out_of_memory
from fastffn_cli.engine.plot import plot_losses
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.run import PLOT_FILE, Run, read_metrics, series
from fastffn_cli.engine.schedule import Schedule
from fastffn_cli.engine.step import StepResult, TrainStep
from fastffn_cli.errors import Diverged, Interrupted
from fastffn_cli.tasks.task import Task


class View(Protocol):
    """Who shows a run to people; `fastffn_cli.ui.TrainingView` is the real one."""

    def begin(self, step: int, max_steps: int) -> None:
        """The loop starts behind `step`."""

    def step(
        self, line: str, step: int, loss: float, rate: float | None, eta: float | None
    ) -> None:
        """A log point; `line` is its FleetX-style text."""

    def note(self, line: str) -> None:
        """An evaluation, a checkpoint or a message."""

    def end(self) -> None:
        """The loop is over."""


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
    loop = _Loop(session, view)
    with listen(view.note) as stop:
        view.begin(session.progress.step, session.plan.max_steps)
        try:
            return loop.run(stop)
        finally:
            view.end()


def step_seed(seed: int, step: int) -> int:
    """Seed of the random numbers of one update, well mixed over both arguments."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


class _Loop:
    def __init__(self, session: Session, view: View) -> None:
        self.session, self.view = session, view
        plan, config = session.plan, session.config
        self.meter = Meter()
        self.train_step = TrainStep(
            session.task,
            session.optimizer,
            session.precision,
            micro_batch_size=config.Data.batch_size.micro_batch_size,
            grad_clip=config.Optimizer.grad_clip,
        )
        self.steps_per_epoch = max(session.train.num_samples // plan.batch_size, 1)
        self.last_loss: float | None = None
        self.last_eval: tuple[int, float] | None = None
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
                if _due(progress.step, plan.save_steps) or last:
                    self._save()
        if stop.exit_code is not None and progress.step < plan.max_steps:
            self._save()
            self._draw()
            raise Interrupted(
                f"stopped after step {progress.step}, saved {self.saved}. Continue with:\n"
                f"    {session.continue_command}",
                exit_code=stop.exit_code,
            )
        return self._finish()

    def _advance(self, batch: Batch) -> None:
        session, progress = self.session, self.session.progress
        step = progress.step + 1
        paddle.seed(step_seed(session.plan.seed, step))
        rate = session.schedule(step)
        result = self._guarded(step, batch, rate)
        tokens = batch.tokens_BS.size
        self.meter.end(tokens)
        progress.step, progress.tokens = step, progress.tokens + tokens
        progress.cursor += session.plan.batch_size
        self.last_loss = result.loss
        if _due(step, session.plan.logging_freq) or step == session.plan.max_steps:
            self._log(result, rate)

    def _guarded(self, step: int, batch: Batch, rate: float) -> StepResult:
        session = self.session
        try:
            return self.train_step(batch, rate)
        except Diverged as error:
            session.run.record("diverged", step=step, message=error.message)
            self._draw()
            newest = self.saved or self._newest()
            kept = f"last good checkpoint: {newest}" if newest else "no checkpoint was saved yet"
            raise Diverged(
                f"step {step}: {error.message}; {kept}",
                hint=error.hint
                or f"Try -o Optimizer.lr.max_lr={session.schedule.max_lr / 3:.1e} or another seed.",
            ) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            batch_sizes = session.config.Data.batch_size
            raise advise(
                session.memory,
                micro_batch_size=batch_sizes.micro_batch_size,
                local_batch_size=session.plan.batch_size,
                free=session.free_memory,
                continue_command=session.continue_command if self.saved else None,
            ) from error

    def _log(self, result: StepResult, rate: float) -> None:
        session, progress = self.session, self.session.progress
        rates = self.meter.window()
        epoch, position = divmod(
            progress.cursor - session.plan.batch_size, session.train.num_samples
        )
        session.run.record(
            "train",
            step=progress.step,
            epoch=epoch,
            loss=result.loss,
            learning_rate=rate,
            grad_norm=result.grad_norm,
            tokens=progress.tokens,
            tokens_per_s=rates.tokens_per_s if rates.warm else None,
            step_s=rates.step_s,
            reader_s=rates.reader_s,
            **({"skipped": True} if result.skipped else {}),
        )
        line = train_line(
            step=progress.step,
            epoch=epoch,
            batch=position // session.plan.batch_size,
            loss=result.loss,
            rates=rates,
            next_rate=session.schedule(progress.step + 1),
        )
        line = stamped(line)
        session.run.log(line)
        remaining = self.meter.remaining_s(session.plan.max_steps - progress.step)
        self.view.step(line, progress.step, result.loss, self.meter.tokens_per_s, remaining)

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
        step = session.progress.step
        metrics = session.task.metrics(loss)
        session.run.record("eval", step=step, loss=loss, tokens=tokens, **metrics)
        self.last_eval = (step, loss)
        shown = "".join(f", {name}: {value:.4f}" for name, value in metrics.items())
        self._note(f"[eval] step {step}, loss: {loss:.9f}{shown}, tokens: {tokens}")

    def _save(self) -> None:
        session, progress = self.session, self.session.progress
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
            tensors=model_tensors(session.task.model),
            optimizer_state=session.optimizer.state(),
            tokenizer_dir=session.tokenizer_dir,
            keep_last=session.plan.keep_last,
        )
        session.run.record("checkpoint", step=progress.step, path=self.saved.name)
        self._note(f"saved {self.saved}")

    def _newest(self) -> Path | None:
        found = sorted(self.session.run.checkpoints_dir.glob("step-*"))
        return found[-1] if found else None

    def _note(self, text: str) -> None:
        line = stamped(text)
        self.session.run.log(line)
        self.view.note(line)

    def _draw(self) -> None:
        records = read_metrics(self.session.run.dir)
        curves = {
            "train": series(records, "train", "loss"),
            "valid": series(records, "eval", "loss"),
        }
        if curves["train"]:
            plot_losses(curves, self.session.run.dir / PLOT_FILE, title=self.session.run.dir.name)

    def _finish(self) -> Summary:
        session, progress = self.session, self.session.progress
        self._draw()
        saved = self.saved or self._newest()
        assert saved is not None, "the last step saves"
        evaluated = self.last_eval[1] if self.last_eval else None
        speed = self.meter.tokens_per_s
        session.run.record(
            "end", step=progress.step, loss=self.last_loss, eval_loss=evaluated, tokens_per_s=speed
        )
        return Summary(progress.step, progress.tokens, self.last_loss, evaluated, speed, saved)


def _due(step: int, frequency: int) -> bool:
    return frequency > 0 and step % frequency == 0
