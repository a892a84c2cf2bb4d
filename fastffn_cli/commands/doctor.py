"""`fastffn doctor`: what this machine can do, with a remedy for every problem."""

from __future__ import annotations

from typing import Annotated

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import JsonOption
from fastffn_cli.errors import EXIT_USAGE


def run(
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="DEVICE", help="auto, cpu, gpu[:id] or npu[:id]: the one to try."
        ),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check this machine: installation, device, speed, and one tiny training run.

    Exit code 0 when training can start, 2 when a problem stops it; every problem comes with its
    remedy.

    **Examples**

    `fastffn doctor`

    `fastffn doctor --device npu --json`
    """
    from dataclasses import asdict

    from fastffn_cli.engine.diagnose import diagnose

    checks = []
    for check in diagnose(device):
        checks.append(check)
        if not as_json:
            ui.data(f"{check.status:<8} {check.name:<15} {check.detail}")
            if check.remedy:
                indented = check.remedy.replace("\n", "\n" + " " * 25)
                ui.data(f"{'':<8} {'':<15} -> {indented}")
    problems = sum(check.status == "problem" for check in checks)
    if as_json:
        ui.data_json({"ok": not problems, "checks": [asdict(check) for check in checks]})
    elif problems:
        ui.data(f"\n{problems} problem{'s' if problems > 1 else ''} to solve before training")
    else:
        ui.data("\nready to train")
    if problems:
        raise typer.Exit(EXIT_USAGE)
