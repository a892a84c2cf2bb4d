"""Ctrl-C and SIGTERM ask the loop to stop after the step; a second Ctrl-C stops at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from fastffn_cli.errors import EXIT_SIGINT, EXIT_SIGTERM, Interrupted


class StopRequest:
    """Filled by the signal handler; `exit_code` is None while nobody asked."""

    def __init__(self) -> None:
        self.exit_code: int | None = None


@contextlib.contextmanager
def listen(
    announce: Callable[[str], object], *, at_once: Callable[[], str | None] = lambda: None
) -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM inside the block and restore the old handlers after it.

    `announce(text)` is called once, when the first signal arrives. A second Ctrl-C ends the block
    with `Interrupted`, whose hint `at_once()` gives.
    """
    request = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.exit_code is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        request.exit_code = EXIT_SIGINT if number == signal.SIGINT else EXIT_SIGTERM
        # A signal that lands inside a write to the same stream makes Python refuse the second one.
        with contextlib.suppress(RuntimeError):
            announce("finishing this step, then saving (Ctrl-C again to stop at once)")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    except KeyboardInterrupt:
        raise Interrupted("stopped at once", hint=at_once()) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `Interrupted` inside the block, so that unfinished files are removed."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted("stopped by SIGTERM; nothing was written", exit_code=EXIT_SIGTERM)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
