"""What the measuring criteria for the end of stage 1 share: when they ask, and how they compare.

All of them compare decreases of the loss per second, and all seconds are those of stage 1's updates
of late, times a ratio for dense ones: how much longer a dense update takes is a fact about two
models and a machine, of which each measurement gives an estimate. The median of all of them is
used, so that a moment in which the machine was busy does not decide.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

# Updates whose median duration stands for the duration of an update of stage 1.
RECENT = 101


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
            "criterion": self.name,
            "asked": self.asked,
            "in_a_row": self.in_a_row,
            "recent_s": self.recent_s,
            "time_ratios": self.time_ratios,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; what another criterion has seen is of no use."""
        if state.get("criterion") == self.name:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
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
