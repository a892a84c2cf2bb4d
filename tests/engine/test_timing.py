"""Rounds over several models: interleaved, after a warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastffn_cli.engine.timing import time_rounds


def test_models_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[tuple[str, int]] = []

    class Scripted:
        def __init__(self, name: str, seconds: list[float]) -> None:
            self.name, self.script = name, seconds

        def seconds(self, batches: Sequence[Any]) -> float:
            calls.append((self.name, len(batches)))
            return self.script.pop(0)

    names = ("a", "b", "c")
    arms = {name: Scripted(name, [99.0, 1.0, 2.0]) for name in names}
    batches: dict[str, list[Any]] = {name: [None] * 4 for name in names}
    said: list[str] = []
    times = time_rounds(
        arms, batches, steps=4, rounds=2, say=said.append, show=lambda last: f"{last['a']:g}"
    )
    assert calls == [(name, 2) for name in names] + [(name, 4) for name in names] * 2
    assert times == {name: [1.0, 2.0] for name in names}
    assert said == ["round 1/2: 1", "round 2/2: 2"]
