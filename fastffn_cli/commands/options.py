"""Options that several commands share, defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastffn_cli.config.complete import complete_config_name, complete_override

ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file, the bare name of a shipped config, or - for stdin.",
        autocompletion=complete_config_name,
        rich_help_panel="Configuration",
    ),
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        metavar="Section.key=value",
        help="Set one key, parsed by the rules of the file. May be repeated.",
        autocompletion=complete_override,
        rich_help_panel="Configuration",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, gpu[:id] or npu[:id]; Global.device where a configuration is read.",
        rich_help_panel="Configuration",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", metavar="", help="One JSON value on stdout instead of text.")
]
CheckpointArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="CKPT",
        help="A checkpoint or run folder; without it, the newest checkpoint of the newest run.",
    ),
]
