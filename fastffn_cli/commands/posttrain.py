"""`fastffn posttrain`: stage 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastffn_cli.commands.options import ConfigOption, DeviceOption, OverrideOption
from fastffn_cli.commands.pretrain import DryRunOption, ResumeOption
from fastffn_cli.commands.stage import train


def run(
    config: ConfigOption,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Checkpoint or run folder to start from; without it, the newest converted "
            "checkpoint below the current folder.",
        ),
    ] = None,
    override: OverrideOption = None,
    resume: ResumeOption = None,
    dry_run: DryRunOption = False,
    device: DeviceOption = None,
) -> None:
    """Stage 2: train on, dense, from the weights that `convert` merged.

    Optimizer and schedule start anew, as the configuration says.

    **Examples**

    `fastffn posttrain -c demo-post`

    `fastffn posttrain -c gpt-124m-post --from runs/gpt-124m-fastffn`
    """
    train(
        "posttrain",
        config=config,
        overrides=override,
        device=device,
        resume=resume,
        start_from=start_from,
        dry_run=dry_run,
    )
