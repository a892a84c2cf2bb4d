"""Signals ask the loop to stop; the second Ctrl-C stops at once."""

from __future__ import annotations

import signal

import pytest

from fastffn_cli.engine.interrupt import listen
from fastffn_cli.errors import Interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_announced_once(number: signal.Signals, code: int) -> None:
    said: list[str] = []
    with listen(said.append) as stop:
        assert stop.exit_code is None
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.exit_code == code
    assert len(said) == 1
    assert "saving" in said[0]


def test_a_second_ctrl_c_stops_at_once() -> None:
    with (
        pytest.raises(Interrupted, match="stopped at once") as caught,
        listen(lambda text: None, at_once=lambda: "this is left"),
    ):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == 130
    assert caught.value.hint == "this is left"


def test_the_handlers_of_before_come_back_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="loop"), listen(lambda text: None):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        raise ValueError("loop")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
