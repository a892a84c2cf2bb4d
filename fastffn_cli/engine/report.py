"""What a run tells: metrics.jsonl, log.txt, the person watching, optional sinks, the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastffn_cli.config.ffn import describe_approximations
from fastffn_cli.engine.logline import stamped, train_line
from fastffn_cli.engine.meter import Rates
from fastffn_cli.engine.plot import plot_losses
from fastffn_cli.engine.run import PLOT_FILE, Bystander, Run, read_metrics, series, steps_of
from fastffn_cli.engine.sinks import Sink, open_sinks


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


def open_report(run: Run | Bystander, view: View, sinks: Sequence[str]) -> Report | Silence:
    """Return the report of a run; of a process that writes nothing, one that tells nothing."""
    return Report(run, view, sinks) if isinstance(run, Run) else Silence()


class Silence:
    """The report of a process whose main one tells everything."""

    def step(self, values: Mapping[str, Any], rates: Rates, **_more: Any) -> None:
        """Tell nothing."""

    def evaluation(self, step: int, loss: float, tokens: int, metrics: Mapping[str, float]) -> None:
        """Tell nothing."""

    def switch(self, step: int, **_values: Any) -> None:
        """Tell nothing."""

    def checkpoint(self, step: int, path: Path) -> None:
        """Tell nothing."""

    def event(self, name: str, **values: Any) -> None:
        """Tell nothing."""

    def note(self, text: str) -> None:
        """Tell nothing."""

    def draw(self) -> None:
        """Draw nothing."""

    def close(self) -> None:
        """There is nothing to close."""


class Report:
    """Tells every event of a run to all who want to know; writes into the run folder only."""

    def __init__(self, run: Run, view: View, sinks: Sequence[str]) -> None:
        self._run, self._view = run, view
        self._sinks: list[Sink] = open_sinks(sinks, run.dir)

    def step(
        self,
        values: Mapping[str, Any],
        rates: Rates,
        *,
        batch: int,
        next_rate: float,
        tokens_per_s: float | None,
        remaining_s: float | None,
        data_degree: int = 1,
    ) -> None:
        """Tell a log point; `values` are the fields of its record in metrics.jsonl."""
        speed = rates.tokens_per_s if rates.warm else None
        self._run.record(
            "train", **values, tokens_per_s=speed, step_s=rates.step_s, reader_s=rates.reader_s
        )
        step, loss = values["step"], values["loss"]
        scalars = {key: values[key] for key in ("loss", "learning_rate", "grad_norm")}
        self._send("train", step, scalars if speed is None else {**scalars, "tokens_per_s": speed})
        line = stamped(
            train_line(
                step=step,
                epoch=values["epoch"],
                batch=batch,
                loss=loss,
                rates=rates,
                next_rate=next_rate,
                data_degree=data_degree,
            )
        )
        self._run.log(line)
        self._view.step(line, step, loss, tokens_per_s, remaining_s)

    def evaluation(self, step: int, loss: float, tokens: int, metrics: Mapping[str, float]) -> None:
        """Tell an evaluation."""
        self._run.record("eval", step=step, loss=loss, tokens=tokens, **metrics)
        self._send("eval", step, {"loss": loss, **metrics})
        shown = "".join(f", {name}: {value:.4f}" for name, value in metrics.items())
        self.note(f"[eval] step {step}, loss: {loss:.9f}{shown}, tokens: {tokens}")

    def switch(
        self, step: int, *, stage: str, reason: str | None, after: Mapping[str, Any], **values: Any
    ) -> None:
        """Tell that the run goes on with another model, of the parts `after`."""
        self._run.record("switch", step=step, stage=stage, reason=reason, after=after, **values)
        self.note(
            f"[switch] after step {step} ({reason}): {describe_approximations(after)} from here, "
            f"max |logit difference|: {values['logit_difference']:.3e}, {values['seconds']:.2f} s"
        )

    def checkpoint(self, step: int, path: Path) -> None:
        """Tell that a checkpoint was written."""
        self._run.record("checkpoint", step=step, path=path.name)
        self.note(f"saved {path}")

    def event(self, name: str, **values: Any) -> None:
        """Put any other event into metrics.jsonl."""
        self._run.record(name, **values)

    def note(self, text: str) -> None:
        """Tell a message, with its time, to the log and the person watching."""
        line = stamped(text)
        self._run.log(line)
        self._view.note(line)

    def draw(self) -> None:
        """Draw the loss curves so far; a picture that cannot be written ends no run."""
        records = read_metrics(self._run.dir)
        curves = {
            "train": series(records, "train", "loss"),
            "valid": series(records, "eval", "loss"),
        }
        if not curves["train"]:
            return
        try:
            plot_losses(
                curves,
                self._run.dir / PLOT_FILE,
                title=self._run.dir.name,
                marks=[(step, "switch") for step in steps_of(records, "switch")],
            )
        except OSError as error:
            self._view.note(stamped(f"{PLOT_FILE} could not be written: {error}"))

    def close(self) -> None:
        """Close the sinks; the run belongs to the caller."""
        for sink in self._sinks:
            sink.close()

    def _send(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.scalars(step, {f"{group}/{name}": value for name, value in values.items()})
