"""The measuring criteria for the end of stage 1: loss slope, fork and blocked gradient.

What they share is in `measured_criterion`, what they measure with in `switch_probes`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fastffn_cli.engine.loss_curve import LossCurve
from fastffn_cli.engine.measured_criterion import Answer, Asking, Measured
from fastffn_cli.engine.switch_probes import DenseFork, GradientProbe

# Questions after which `Slope` measures the dense slope anew, whatever stage 1 does.
STALE = 10
# Ratios of update times that `Slope` wants before it goes by them.
FEWEST_RATIOS = 3


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

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
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

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
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
