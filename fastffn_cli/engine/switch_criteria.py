"""The measuring criteria for the end of stage 1: loss slope, fork and blocked gradient.

All of them compare decreases of the loss per second, and all seconds are those of stage 1's updates
of late, times a ratio for dense ones: how much longer a dense update takes is a fact about two
models and a machine, of which each measurement gives an estimate. The median of all of them is
used, so that a moment in which the machine was busy does not decide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fastffn_cli.engine.loss_curve import LossCurve
from fastffn_cli.engine.switch_probes import DenseFork, GradientProbe

# Updates whose median duration stands for the duration of an update of stage 1.
RECENT = 101
# Questions after which `Slope` measures the dense slope anew, whatever stage 1 does.
STALE = 10
# Ratios of update times that `Slope` wants before it goes by them.
FEWEST_RATIOS = 3


@dataclass(frozen=True)
class Asking:
    """When a measurement is made, in steps: every `freq`, not before `earliest`.

    Behind `latest` stage 1 ends unasked; before it, `patience` answers in a row must say so.
    """

    earliest: int
    latest: int
    freq: int
    patience: int

    def due(self, step: int) -> bool:
        """Whether a measurement is to be made behind update `step`."""
        return self.earliest <= step < self.latest and step % self.freq == 0


@dataclass(frozen=True)
class Answer:
    """One measurement: whether dense training gains more per second, in words, and its numbers."""

    dense_wins: bool
    reason: str
    numbers: dict[str, Any]


class Measured:
    """What the measuring criteria share: when they ask, how many answers they have, and seconds."""

    name: str

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.last_check: dict[str, Any] | None = None
        self.asked = self.in_a_row = 0
        self.recent_s: list[float] = []
        self.time_ratios: list[float] = []

    def observe(self, step: int, loss: float, seconds: float) -> None:
        """Take in an update: its loss in nats a token, its seconds."""
        self.recent_s = [*self.recent_s[1 - RECENT :], seconds]

    def switch_now(self, step: int) -> str | None:
        """Measure if that is due; say why stage 1 ends, if it does."""
        self.last_check = None
        if step >= self.asking.latest:
            return f"step {step} is the latest, {self._describe_answers()}"
        answer = self._measure(step)
        if answer is None:
            return None
        self.asked += 1
        self.in_a_row = self.in_a_row + 1 if answer.dense_wins else 0
        # Half precision may overflow: JSON has no word for what is not finite.
        numbers = {
            name: value if value is None or math.isfinite(value) else None
            for name, value in answer.numbers.items()
        }
        self.last_check = {
            "criterion": self.name,
            **numbers,
            "dense_wins": answer.dense_wins,
            "in_a_row": self.in_a_row,
        }
        return answer.reason if self.in_a_row >= self.asking.patience else None

    def state(self) -> dict[str, Any]:
        """Return what has been seen, as JSON."""
        return {
            "asked": self.asked,
            "in_a_row": self.in_a_row,
            "recent_s": self.recent_s,
            "time_ratios": self.time_ratios,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.asked, self.in_a_row = int(state["asked"]), int(state["in_a_row"])
        self.recent_s = [float(seconds) for seconds in state["recent_s"]]
        self.time_ratios = [float(ratio) for ratio in state["time_ratios"]]

    def _measure(self, step: int) -> Answer | None:
        raise NotImplementedError

    def _compare(
        self, stage1_fall: float, dense_fall: float, words: str, numbers: dict[str, Any]
    ) -> Answer:
        """Compare decreases of the loss by one update of either form, in nats a token."""
        step_s, ratio = statistics.median(self.recent_s), self._time_ratio()
        cheap, dense = stage1_fall / step_s, dense_fall / (step_s * ratio)
        return Answer(
            dense > max(cheap, 0.0),
            words.format(cheap=f"{cheap:.3g}", dense=f"{dense:.3g}"),
            {
                "stage1_slope": cheap,
                "dense_slope": dense,
                "stage1_step_s": step_s,
                "time_ratio": ratio,
                **numbers,
            },
        )

    def _learn_ratio(self, dense_step_s: float | None, stage1_step_s: float) -> None:
        if dense_step_s is not None:
            self.time_ratios.append(dense_step_s / stage1_step_s)

    def _time_ratio(self) -> float:
        """Return the median; 1 before the first, when no dense update was ever made."""
        return statistics.median(self.time_ratios) if self.time_ratios else 1.0

    def _describe_answers(self) -> str:
        if not self.asked:
            return f"and {self.name} has measured nothing"
        return f"{self.asked} answers of {self.name}, the last {self.in_a_row} for dense training"


@dataclass(frozen=True)
class _Pending:
    """A fork whose counterpart stage 1 has yet to train."""

    step: int
    loss_before: float
    loss_dense: float | None
    dense_step_s: float | None
    seconds: float


class Fork(Measured):
    """Dense training on trial, against stage 1 on the same batches.

    A fork of `steps` dense updates is made and thrown away; the run then makes the same number of
    stage-1 updates on the same batches, which it would make anyway. Both begin with the same loss
    on the batches behind these, which neither trains on; the decreases are divided by the seconds.
    """

    name = "fork"

    def __init__(
        self,
        asking: Asking,
        steps: int,
        *,
        fork: Callable[[], DenseFork],
        held_out: Callable[[], float],
    ) -> None:
        super().__init__(asking)
        self.steps, self._fork, self._held_out = steps, fork, held_out
        self.pending: _Pending | None = None

    def _measure(self, step: int) -> Answer | None:
        answer = None
        if self.pending is not None and step >= self.pending.step + self.steps:
            answer, self.pending = self._judge(self.pending), None
            if answer.dense_wins and self.in_a_row + 1 >= self.asking.patience:
                return answer
        fits = step + self.steps < self.asking.latest
        if self.pending is None and fits and self.asking.due(step):
            fork = self._fork()
            self.pending = _Pending(
                step, fork.loss_before, fork.loss_after, fork.step_s, fork.seconds
            )
        return answer

    def _judge(self, fork: _Pending) -> Answer:
        loss = self._held_out()
        self._learn_ratio(fork.dense_step_s, statistics.median(self.recent_s[-self.steps :]))
        dense = fork.loss_dense if fork.loss_dense is not None else fork.loss_before
        return self._compare(
            (fork.loss_before - loss) / self.steps,
            (fork.loss_before - dense) / self.steps,
            "a dense fork's loss falls by {dense} a second, stage 1's by {cheap}",
            {
                "forked_at": fork.step,
                "loss_before": fork.loss_before,
                "loss_stage1": loss,
                "loss_dense": fork.loss_dense,
                "dense_step_s": fork.dense_step_s,
                "seconds": fork.seconds,
            },
        )

    def state(self) -> dict[str, Any]:
        """Return what has been seen, as JSON."""
        pending = asdict(self.pending) if self.pending is not None else None
        return {**super().state(), "pending": pending}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self.pending = _Pending(**state["pending"]) if state["pending"] is not None else None


class Slope(Measured):
    """Stage 1's slope, read off its own losses, against the dense slope of the last fork.

    The slope of dense training falls as its loss does, so that the last one measured (nats a dense
    update) is an upper bound of today's: while stage 1 falls faster, no dense step is made. Where
    it does not, a fork says what the dense slope is now. A falling learning rate can make the dense
    loss fall faster again, so the bound is not trusted for more than `STALE` questions.
    """

    name = "slope"

    def __init__(self, asking: Asking, steps: int, *, fork: Callable[[], DenseFork]) -> None:
        super().__init__(asking)
        self.steps, self._fork = steps, fork
        self.curve = LossCurve()
        self.bound: float | None = None
        self.bound_age = 0

    def observe(self, step: int, loss: float, seconds: float) -> None:
        """Take in an update: its loss in nats a token, its seconds."""
        super().observe(step, loss, seconds)
        self.curve.add(step, loss)

    def _measure(self, step: int) -> Answer | None:
        if not self.asking.due(step):
            return None
        fall = self.curve.fall_per_step()
        if fall is None:
            return None
        numbers: dict[str, Any] = {}
        trusted = len(self.time_ratios) >= FEWEST_RATIOS and self.bound_age < STALE
        if trusted and self.bound is not None and fall > self.bound / self._time_ratio():
            self.bound_age += 1
        else:
            numbers = self._renew_bound()
        assert self.bound is not None, "it was just measured"
        return self._compare(
            fall,
            self.bound,
            "stage 1's loss falls by {cheap} a second, a dense fork's by {dense}",
            {"dense_slope_age": self.bound_age, **numbers},
        )

    def _renew_bound(self) -> dict[str, Any]:
        fork = self._fork()
        self._learn_ratio(fork.step_s, statistics.median(self.recent_s))
        after = fork.loss_after if fork.loss_after is not None else fork.loss_before
        self.bound, self.bound_age = max(0.0, fork.loss_before - after) / self.steps, 0
        return {
            "loss_before": fork.loss_before,
            "loss_dense": fork.loss_after,
            "dense_step_s": fork.step_s,
            "seconds": fork.seconds,
        }

    def state(self) -> dict[str, Any]:
        """Return what has been seen, as JSON."""
        return {
            **super().state(),
            "curve": self.curve.state(),
            "bound": self.bound,
            "bound_age": self.bound_age,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self.curve.load_state(state["curve"])
        self.bound, self.bound_age = state["bound"], int(state["bound_age"])


class Blocked(Measured):
    """What the gradient of two batches promises either model, to first order: nothing is trained.

    See `switch_probes.GradientProbe`.
    """

    name = "blocked"

    def __init__(self, asking: Asking, *, probe: Callable[[], GradientProbe]) -> None:
        super().__init__(asking)
        self._probe = probe

    def _measure(self, step: int) -> Answer | None:
        if not self.asking.due(step):
            return None
        probe = self._probe()
        self.time_ratios.append(probe.time_ratio)
        share = probe.blocked_share
        blocked = f", {share:.0%} of the dense one blocked" if share is not None else ""
        return self._compare(
            probe.stage1_decrease,
            probe.dense_decrease,
            "dense gradients promise {dense} a second, stage 1's {cheap}" + blocked,
            {
                "stage1_decrease": probe.stage1_decrease,
                "dense_decrease": probe.dense_decrease,
                "blocked_share": share,
                "seconds": probe.seconds,
            },
        )
