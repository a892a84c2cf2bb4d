"""`fastffn pretrain`: stage 1."""

from __future__ import annotations

from typing import Annotated

import typer

from fastffn_cli.commands.options import ConfigOption, DeviceOption, OverrideOption
from fastffn_cli.commands.stage import train

ResumeOption = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="[auto|DIR]",
        help="Continue the run of output_dir (auto, also when nothing follows), or the one in DIR.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        metavar="",
        help="Check everything, print parameters, FLOPs, memory and budget, and stop.",
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        "--plan",
        metavar="CARDSxMEMORY",
        help="With --dry-run: propose layouts for so many cards, e.g. 32x32GB or 32x64GB:910B.",
    ),
]


def run(
    config: ConfigOption,
    override: OverrideOption = None,
    resume: ResumeOption = None,
    dry_run: DryRunOption = False,
    plan: PlanOption = None,
    device: DeviceOption = None,
) -> None:
    """Stage 1: train a GPT, with cheap feed-forward layers or dense ones.

    With a `Schedule` stage 2 follows in the same run (docs/schedules.md).

    **Examples**

    `fastffn pretrain -c demo -o Data.dataset.input_dir=data/book`

    `fastffn pretrain -c gpt-124m-fastffn --dry-run`

    `fastffn pretrain -c my.yaml --resume`
    """
    train(
        "pretrain",
        config=config,
        overrides=override,
        device=device,
        resume=resume,
        start_from=None,
        dry_run=dry_run,
        plan=plan,
    )
