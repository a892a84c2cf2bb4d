"""What says when stage 1 ends: a share of the run, or a measurement of what dense training gains.

Of all runs with one switch the one that switches where stage 1's loss falls as fast, per second, as
that of dense training *from the same loss* is the quickest to any lower loss. `Slope`, `Fork` and
`Blocked` ask for that point with more or less trouble: see docs/schedules.md for what each of them
measures and costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from fastffn_cli.engine.measured_criterion import Asking
from fastffn_cli.engine.switch_criteria import Blocked, Fork, Slope
from fastffn_cli.engine.switch_probes import fork_dense, held_out_loss, probe_gradients

if TYPE_CHECKING:
    from fastffn_cli.engine.session import Session


class Criterion(Protocol):
    """Sees every update of stage 1 and says when to switch.

    `last_check` are the numbers of the measurement that the last `switch_now` made, if it made one.
    """

    last_check: dict[str, Any] | None

    def observe(self, step: int, loss: float, seconds: float) -> None:
        """Take in an update: its loss in nats a token, its seconds."""

    def switch_now(self, step: int) -> str | None:
        """Say in one line why stage 1 ends behind update `step`; None while it does not."""

    def state(self) -> dict[str, Any]:
        """Return what has been seen, as JSON."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; what another criterion has seen is left alone."""


class Fraction:
    """Stage 1 ends after a fixed share of the run's steps: free of cost."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.last_check: dict[str, Any] | None = None

    def observe(self, step: int, loss: float, seconds: float) -> None:
        """Nothing is measured."""

    def switch_now(self, step: int) -> str | None:
        """Switch behind the last of the steps."""
        return f"stage 1 ends at step {self.steps}" if step >= self.steps else None

    def state(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


def build_criterion(session: Session) -> Criterion:
    """Return the criterion that the run's `Schedule` names.

    Raises `KeyError` for a `switch` that none stands for, `never` included.
    """
    schedule, max_steps = session.planned.Schedule, session.plan.max_steps
    latest = schedule.latest_switch(max_steps)
    asking = Asking(
        earliest=max(1, round(schedule.earliest * max_steps)),
        latest=latest,
        freq=schedule.check_freq,
        patience=schedule.patience,
    )
    steps = schedule.fork_steps
    fork = partial(fork_dense, session, steps)
    makers: dict[str, Callable[[], Criterion]] = {
        "fraction": lambda: Fraction(latest),
        "slope": lambda: Slope(asking, steps, fork=fork),
        "fork": lambda: Fork(asking, steps, fork=fork, held_out=partial(held_out_loss, session)),
        "blocked": lambda: Blocked(asking, probe=partial(probe_gradients, session)),
    }
    return makers[schedule.switch]()
