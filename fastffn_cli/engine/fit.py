"""The training loop: read a batch, make a step, log, evaluate, save; stop when asked.

Everything random in a step comes from `step_seed(seed, step)`, and everything read from the data
cursor, so the state of a run is its weights, its optimizer and three numbers.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from fastffn_cli.data.dataset import Batch
from fastffn_cli.data.loader import iterate
from fastffn_cli.distributed import job
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.evaluate import evaluate
from fastffn_cli.engine.find import newest_of_run
from fastffn_cli.engine.interrupt import StopRequest, listen
from fastffn_cli.engine.meter import Meter
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.engine.report import Report, Silence, View, open_report
from fastffn_cli.engine.session import Session
from fastffn_cli.engine.stage_change import commit, prepare_stage1, prepare_switch
from fastffn_cli.engine.stages import DENSE_START, STAGE1, dense_start_over
from fastffn_cli.engine.step import StepResult, TrainStep
from fastffn_cli.engine.switching import Criterion, build_criterion
from fastffn_cli.errors import Diverged, Interrupted, OutOfMemory, is_out_of_memory


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
    report = open_report(session.run, view, session.config.Engine.log_sinks)
    loop = _Loop(session, report)
    with closing(report), listen(report.note, at_once=loop.where_to_continue) as stop:
        view.begin(session.progress.step, session.plan.max_steps)
        try:
            return loop.run(stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise loop.out_of_memory() from error
        finally:
            view.end()


class _Loop:
    def __init__(self, session: Session, report: Report | Silence) -> None:
        self.session, self.report = session, report
        self.meter = Meter()
        self._begin_stage()
        self.last_loss: float | None = None
        self.last_eval: float | None = None
        self.saved: Path | None = None

    def _begin_stage(self) -> None:
        session = self.session
        self.train_step = TrainStep(
            session.task,
            session.optimizer,
            session.precision,
            micro_batch_size=session.config.Data.batch_size.micro_batch_size,
            grad_clip=session.config.Optimizer.grad_clip,
            parallelism=session.parallelism,
        )
        self.criterion: Criterion | None = None
        if session.stages.stage == STAGE1 and session.planned.Schedule.switch != "never":
            self.criterion = build_criterion(session)
            if session.stages.criterion is not None:
                self.criterion.load_state(session.stages.criterion)

    def run(self, stop: StopRequest) -> Summary:
        session, plan, progress = self.session, self.session.plan, self.session.progress
        session.task.model.train()
        batches = iterate(
            session.train,
            cursor=progress.cursor,
            batch_size=plan.batch_size,
            rows=session.parallelism.rows(plan.batch_size),
        )
        stop_code = 0
        with closing(batches):  # type: ignore[type-var]
            while progress.step < plan.max_steps and not stop_code:
                if session.stages.reason is not None:
                    self._change_stage()
                self.meter.begin()
                batch = next(batches)
                self.meter.data_ready()
                self._advance(batch)
                last = progress.step == plan.max_steps
                stop_code = session.parallelism.agree(stop.exit_code or 0)
                if _due(progress.step, plan.eval_freq) or (last and plan.eval_freq > 0):
                    self._evaluate()
                if _due(progress.step, plan.save_steps) or last or stop_code:
                    self._save()
        self.report.draw()
        if stop_code and progress.step < plan.max_steps:
            kept = self.saved or self._newest()
            raise Interrupted(
                f"stopped after step {progress.step}, saved {kept}. {self._how_to_continue()}",
                exit_code=stop_code,
            )
        return self._finish()

    def _advance(self, batch: Batch) -> None:
        session, progress = self.session, self.session.progress
        step = progress.step + 1
        paddle.seed(session.dropout_seed_of(step))
        session.task.begin_step((step - 1) / session.plan.max_steps, session.seed_of(step))
        rate = session.learning_rate(step)
        session.stages.set_rates(session.optimizer, step, session.planned.Schedule)
        try:
            result = self.train_step(batch, rate)
        except Diverged as error:
            raise self._diverged(step, error) from error
        tokens = batch.tokens_BS.size * session.parallelism.data_degree
        seconds = self.meter.end(tokens)
        progress.step, progress.tokens = step, progress.tokens + tokens
        progress.cursor += session.plan.batch_size
        self.last_loss = result.loss
        if _due(step, session.plan.logging_freq) or step == session.plan.max_steps:
            self._log(result, rate)
        self._ask_for_change(result, seconds)

    def _ask_for_change(self, result: StepResult, seconds: float) -> None:
        session, step = self.session, self.session.progress.step
        stages, schedule = session.stages, session.planned.Schedule
        if stages.stage == DENSE_START:
            stages.reason = dense_start_over(step, schedule, session.plan.max_steps)
        if self.criterion is None:
            return
        self.criterion.observe(step, result.loss, seconds)
        stages.reason = self.criterion.switch_now(step)
        if self.criterion.last_check is not None:
            self.report.event("switch_check", step=step, **self.criterion.last_check)

    def _change_stage(self) -> None:
        session, stages = self.session, self.session.stages
        step, before = session.progress.step, session.config.Model.approximations
        self._save()  # a change that fails can be made again from here
        begun = time.perf_counter()
        switch = (prepare_stage1 if stages.stage == DENSE_START else prepare_switch)(session)
        commit(session, switch)
        self._begin_stage()
        self.meter.restart()
        self.report.switch(
            step,
            stage=switch.stage,
            reason=stages.reason,
            before=before,
            after=switch.config.Model.approximations,
            handover=session.planned.Schedule.handover,
            logit_difference=switch.difference.logits,
            loss_difference=switch.difference.loss,
            seconds=time.perf_counter() - begun,
        )

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
            next_rate=session.learning_rate(progress.step + 1),
            tokens_per_s=self.meter.tokens_per_s,
            remaining_s=self.meter.remaining_s(session.plan.max_steps - progress.step),
            data_degree=session.parallelism.data_degree,
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
            parallelism=session.parallelism,
        )
        self.last_eval = loss
        metrics = session.task.metrics(loss)
        self.report.evaluation(session.progress.step, loss, tokens, metrics)

    def _save(self) -> None:
        session, progress = self.session, self.session.progress
        if self.saved == session.run.checkpoint_dir(progress.step):
            return
        if self.criterion is not None:
            session.stages.criterion = self.criterion.state()
        tensors = model_tensors(session.task.model)
        spoiled = [name for name, array in tensors.items() if not np.isfinite(array).all()]
        if session.parallelism.agree(len(spoiled)):
            first = f" (first: {spoiled[0]})" if spoiled else ""
            error = Diverged(f"the update made weights that are not finite{first}")
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
                "stages": session.stages.record(session.planned),
            },
            tensors=session.parallelism.gather(tensors),
            optimizer_state=session.parallelism.gather(session.optimizer.state()),
            tokenizer_dir=session.tokenizer_dir,
            keep_last=session.plan.keep_last,
        )
        self.report.checkpoint(progress.step, self.saved)
        session.parallelism.wait_for_main()

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

    def _how_to_continue(self) -> str:
        machines = " on every machine with its own launch, here" if job.node_count() > 1 else ""
        return f"Continue{machines} with:\n    {self.session.continue_command}"

    def where_to_continue(self) -> str:
        """Say what a training leaves behind that is ended in the middle of a step."""
        newest = self._newest()
        if newest is None:
            return "There is no checkpoint yet."
        return f"The newest checkpoint is {newest}. {self._how_to_continue()}"

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
