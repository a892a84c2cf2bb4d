"""What became of a run, from its metrics.jsonl, and how long it takes by calibrated step times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastffn_cli.config.schema_training import ScheduleSection
from fastffn_cli.engine.run import read_metrics, series
from fastffn_cli.engine.stages import STAGE1, STAGE2


@dataclass(frozen=True)
class History:
    """A run so far: `step` is its last one that was logged, evaluated or saved.

    `changes` are (step behind which the model changed, whether it is dense since), and begin with
    (0, ...). `extra` are (step, seconds) of what came on top of the steps themselves: changes of
    the model, and measurements that decide about them, by the clock; `windows` are (step before,
    last step, seconds by the clock) of steps that were logged together. `wall_seconds` are of all
    sessions, each from its first step to its last record.
    """

    step: int
    evals: tuple[tuple[int, float], ...]
    changes: tuple[tuple[int, bool], ...]
    extra: tuple[tuple[int, float], ...]
    windows: tuple[tuple[int, int, float], ...]
    diverged_at: int | None
    ended_at: int | None
    wall_seconds: float | None
    loss: float | None
    tokens_per_s: float | None

    @property
    def begun(self) -> bool:
        """Whether the run has made a first record."""
        return self.wall_seconds is not None

    def is_over(self, steps: int) -> bool:
        """Whether the run has nothing left to do: it made its steps, or diverged."""
        return self.diverged_at is not None or self.ended_at == steps

    def problem(self, steps: int) -> str | None:
        """Say what keeps the run from being a whole one."""
        if self.diverged_at is not None:
            return f"diverged at step {self.diverged_at}"
        if self.ended_at == steps:
            return None
        return f"unfinished: step {self.step} of {steps}"

    @property
    def switched_at(self) -> int | None:
        """The step behind which the model was dense for good."""
        last, is_dense = self.changes[-1]
        return last if is_dense and last else None

    def dense_steps(self, step: int) -> int:
        """Count the updates up to `step` that the dense model made."""
        ends = [begin for begin, _ in self.changes[1:]] + [step]
        spans = zip(self.changes, ends, strict=True)
        return sum(max(0, min(end, step) - begin) for (begin, is_dense), end in spans if is_dense)

    def slowness(self, stage1_s: float, dense_s: float) -> float:
        """Return what the steps took by the clock over what they take at these seconds of each.

        1 where nothing was logged.
        """
        calibrated = sum(
            self._steps_s(end, stage1_s, dense_s) - self._steps_s(begin, stage1_s, dense_s)
            for begin, end, _ in self.windows
        )
        clock = sum(seconds for _, _, seconds in self.windows)
        return clock / calibrated if clock > 0 and calibrated > 0 else 1.0

    def seconds(self, step: int, stage1_s: float, dense_s: float) -> float:
        """Return the seconds of the first `step` updates, at these seconds of each.

        What came on top of them is in it, with the slowness of the machine at the time taken out.
        """
        extra = sum(seconds for at, seconds in self.extra if at < step)
        return self._steps_s(step, stage1_s, dense_s) + extra / self.slowness(stage1_s, dense_s)

    def _steps_s(self, step: int, stage1_s: float, dense_s: float) -> float:
        dense = self.dense_steps(step)
        return (step - dense) * stage1_s + dense * dense_s


def begins_dense(schedule: ScheduleSection) -> bool:
    """Whether a run of this schedule begins with a dense model in place of its own."""
    return schedule.switch != "never" and schedule.dense_start > 0


def read_history(run_dir: Path, *, dense_first: bool) -> History:
    """Read a run folder; one that is not there yet gives a history of nothing.

    `dense_first` says that the run begins with the dense model (`begins_dense`). What a resumed
    run did again counts once.
    """
    records, wall = _settled(read_metrics(run_dir))
    events: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        events.setdefault(str(record.get("event")), []).append(record)
    trained = events.get("train", [])
    changes = [(0, dense_first)]
    for record in events.get("switch", []):
        changes.append((int(record["step"]), record.get("stage", STAGE2) != STAGE1))
    extra = [
        (int(record["step"]), float(record["seconds"]))
        for event in ("switch", "switch_check")
        for record in events.get(event, [])
        if record.get("seconds") is not None
    ]
    # Only the last word counts: a diverged run that was continued may have come through.
    closing = [record for record in records if record.get("event") in ("diverged", "end")]
    last = closing[-1] if closing and closing[-1] is records[-1] else None
    return History(
        step=max((int(record["step"]) for record in records if "step" in record), default=0),
        evals=tuple(series(records, "eval", "loss")),
        changes=tuple(changes),
        extra=tuple(extra),
        windows=tuple(_windows(trained)),
        diverged_at=int(last["step"]) if last and last["event"] == "diverged" else None,
        ended_at=int(last["step"]) if last and last["event"] == "end" else None,
        wall_seconds=wall,
        loss=trained[-1].get("loss") if trained else None,
        tokens_per_s=trained[-1].get("tokens_per_s") if trained else None,
    )


def _windows(trained: list[dict[str, Any]]) -> Iterator[tuple[int, int, float]]:
    """Yield the log windows, but for those with a first step, which builds kernels."""
    before = 0
    for record in trained:
        step = int(record["step"])
        if record.get("tokens_per_s") is not None and record.get("step_s") is not None:
            yield before, step, (step - before) * float(record["step_s"])
        before = step


def _settled(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float | None]:
    """Leave out what a resumed run did again; return the rest and the seconds of all sessions."""
    kept: list[dict[str, Any]] = []
    wall, begun, latest = None, None, 0.0
    for record in records:
        if record.get("event") in ("start", "resume"):
            kept = [old for old in kept if old.get("step", 0) <= record["step"]]
            # A checkpoint holds its step as it was before a change of the model behind it.
            kept = [
                old for old in kept if old.get("event") != "switch" or old["step"] < record["step"]
            ]
            kept = [old for old in kept if old.get("event") not in ("diverged", "end")]
            wall = (wall or 0.0) + (latest - begun if begun is not None else 0.0)
            begun = float(record["time"])
        latest = float(record.get("time", latest))
        kept.append(record)
    if begun is not None:
        wall = (wall or 0.0) + latest - begun
    return kept, wall
