"""The process that is `paddle.distributed.launch`: it starts one watcher a rank and joins nodes.

A process of its own because Paddle's launcher takes over signals, arguments and environment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from fastffn_cli.distributed.failure import PARENT_VARIABLE, leave_record
from fastffn_cli.distributed.lifeline import end_with_parent
from fastffn_cli.errors import FastFFNError, UserError


def main() -> None:
    """Run Paddle's launcher; sys.argv: device, number of processes, cards or "", its arguments."""
    end_with_parent(signal.SIGTERM)
    device, count, cards, *arguments = sys.argv[1:]
    try:
        _prepare(device, int(count), [card for card in cards.split(",") if card])
    except FastFFNError as error:
        leave_record(error)
        sys.exit(error.exit_code)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    sys.argv = ["paddle.distributed.launch", *arguments]
    from paddle.distributed.launch.main import launch

    launch()


def _prepare(device: str, count: int, cards: Sequence[str]) -> None:
    """Import paddle, and see to it that the cards are there; for a CPU, that none is looked for."""
    from fastffn_cli.engine.device import resolve_device
    from fastffn_cli.engine.paddle_build import import_paddle

    import_paddle()
    from paddle.distributed.launch.context.device import Device, DeviceType

    if device == "cpu":
        # A build for GPUs would hand out cards, and have the processes talk over NCCL.
        Device.parse_device = classmethod(lambda kind: kind(dtype=DeviceType.CPU))
        return
    if device != "auto":
        resolve_device(device)
    labels = [str(label) for label in Device.parse_device().labels]
    absent = [card for card in cards if card not in labels]
    if absent:
        there = f"has {', '.join(labels)}" if labels else "shows Paddle no cards"
        raise UserError(
            f"--devices: there is no card {', '.join(absent)}; this machine {there}",
            hint="Processes on the CPU: --nproc N, and --device cpu behind the command",
        )
    if labels and count > len(labels):
        raise UserError(
            f"{count} processes, and this machine has {len(labels)} cards: {', '.join(labels)}",
            hint="Processes on the CPU: --device cpu behind the command",
        )
