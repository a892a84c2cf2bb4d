"""FleetX's log line, digit for digit (the form of July 2022)."""

from __future__ import annotations

from datetime import datetime

from fastffn_cli.engine.meter import Rates


def train_line(
    *,
    step: int,
    epoch: int,
    batch: int,
    loss: float,
    rates: Rates,
    next_rate: float,
    data_degree: int = 1,
) -> str:
    """Return the text of a log point without its time stamp.

    As in FleetX the learning rate is the one of the *next* update, and both `ips_total` (all
    processes) and `ips` (one of `data_degree` that read sequences of their own) are sequence
    positions per second.
    """
    return (
        f"global step {step}, epoch: {epoch}, batch: {batch}, loss: {loss:.9f}, "
        f"avg_reader_cost: {rates.reader_s:.5f} sec, avg_batch_cost: {rates.step_s:.5f} sec, "
        f"speed: {rates.steps_per_s:.2f} step/s, ips_total: {rates.tokens_per_s:.0f} tokens/s, "
        f"ips: {rates.tokens_per_s / data_degree:.0f} tokens/s, learning rate: {next_rate:.5e}"
    )


def stamped(line: str, moment: datetime | None = None) -> str:
    """Put FleetX's `[date time,ms] [    INFO] - ` in front of a line."""
    now = moment or datetime.now()
    return f"[{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}] [{'INFO':>8}] - {line}"
