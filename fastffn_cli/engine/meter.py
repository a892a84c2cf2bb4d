"""Throughput from a clock that is handed in, so that tests can hold it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Averages over the steps of one log window.

    Seconds per step waiting for data and in all, steps and tokens per second. `warm` is False while
    the window holds the first step of the process, which builds kernels and fills caches.
    """

    reader_s: float
    step_s: float
    tokens_per_s: float
    warm: bool

    @property
    def steps_per_s(self) -> float:
        """Steps per second."""
        return 1.0 / self.step_s if self.step_s > 0 else 0.0


class Meter:
    """Times steps; evaluation and checkpoints between two steps do not count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps_seen = 0
        self._begun = self._read = 0.0
        self._window_steps = self._window_tokens = 0
        self._window_reader_s = self._window_s = 0.0
        self._window_warm = True
        self.warm_steps = self.warm_tokens = 0
        self.warm_s = 0.0

    def begin(self) -> None:
        """The step begins: it asks for data."""
        self._begun = self._clock()

    def data_ready(self) -> None:
        """The batch has arrived."""
        self._read = self._clock()

    def end(self, tokens: int) -> float:
        """The step is done and its loss is known; return its seconds."""
        now = self._clock()
        seconds = now - self._begun
        self._window_steps += 1
        self._window_tokens += tokens
        self._window_s += seconds
        self._window_reader_s += self._read - self._begun
        if self._steps_seen == 0:
            self._window_warm = False
        else:
            self.warm_steps += 1
            self.warm_tokens += tokens
            self.warm_s += seconds
        self._steps_seen += 1
        return seconds

    def restart(self) -> None:
        """The next step runs another model, whose kernels have to be built: a first one again."""
        self._steps_seen = 0

    def window(self) -> Rates:
        """Averages since the last call."""
        steps, seconds = max(self._window_steps, 1), self._window_s
        rates = Rates(
            reader_s=self._window_reader_s / steps,
            step_s=seconds / steps,
            tokens_per_s=self._window_tokens / seconds if seconds > 0 else 0.0,
            warm=self._window_warm,
        )
        self._window_steps = self._window_tokens = 0
        self._window_reader_s = self._window_s = 0.0
        self._window_warm = True
        return rates

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second over all steps but the first; None before the second."""
        return self.warm_tokens / self.warm_s if self.warm_s > 0 else None

    def remaining_s(self, steps: int) -> float | None:
        """Seconds that `steps` further steps should take; None before the second step."""
        return steps * self.warm_s / self.warm_steps if self.warm_steps else None
