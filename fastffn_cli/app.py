"""The Typer app. Imports nothing heavy: commands import paddle, numpy, pydantic when they run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fastffn_cli import __version__, ui
from fastffn_cli.commands import (
    bench,
    compare,
    config,
    convert,
    doctor,
    eval,
    generate,
    inspect,
    launch,
    posttrain,
    prepare,
    pretrain,
    rank_table,
)
from fastffn_cli.distributed.failure import as_lost_peer, leave_record
from fastffn_cli.errors import FastFFNError, OutOfMemory, is_out_of_memory

TRAIN = "Train and use a model"
LOOK = "Look before you run"
SMALLER = "Try a smaller --batch-size or --seq-len, or fewer prompts at once."

app = typer.Typer(
    name="fastffn",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    installed = {}
    for package in ("paddlepaddle", "paddlepaddle-gpu", "paddle-custom-npu"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    builds = ", ".join(f"{name} {version}" for name, version in installed.items()) or "no paddle"
    python = ".".join(str(part) for part in sys.version_info[:3])
    ui.data(f"fastffn {__version__} ({builds}, python {python})")
    raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            metavar="",
            callback=_print_version,
            is_eager=True,
            help="Print the versions of fastffn, paddle and python.",
        ),
    ] = False,
) -> None:
    """Train GPT-like models faster: cheap low-rank feed-forward layers first, dense at the end.

    A whole run is three commands: `pretrain`, `convert`, `posttrain`; or the first of them alone,
    with a `Schedule`.
    """


for name, module, panel in (
    ("prepare", prepare, TRAIN),
    ("pretrain", pretrain, TRAIN),
    ("convert", convert, TRAIN),
    ("posttrain", posttrain, TRAIN),
    ("eval", eval, TRAIN),
    ("generate", generate, TRAIN),
    ("launch", launch, TRAIN),
    ("bench", bench, LOOK),
    ("compare", compare, LOOK),
    ("inspect", inspect, LOOK),
    ("config", config, LOOK),
    ("doctor", doctor, LOOK),
):
    context = getattr(module, "CONTEXT", None)
    app.command(name, rich_help_panel=panel, context_settings=context)(module.run)
app.add_typer(rank_table.app, name="rank-table", rich_help_panel=LOOK)


def _with_resume_value(arguments: list[str]) -> list[str]:
    """Let `--resume` stand alone: Typer has no option with an optional value."""
    completed = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else "-"
        completed.append(argument)
        if argument == "--resume" and following.startswith("-"):
            completed.append("auto")
    return completed


def main() -> None:
    """Run the command line; errors the user can act on become a message and an exit code."""
    try:
        app(args=_with_resume_value(sys.argv[1:]))
    except FastFFNError as error:
        leave_record(error)
        ui.show_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our stdout went away (`fastffn generate ... | head`): not an error.
        sys.stdout = None
        sys.exit(0)
    except Exception as error:
        if not is_out_of_memory(error):
            leave_record(error)
            lost = as_lost_peer(error)
            if lost is None:
                raise
            ui.show_error(lost)
            sys.exit(lost.exit_code)
        # Training says more (fastffn_cli.engine.out_of_memory); this is for every other command.
        memory = OutOfMemory("there was no memory left for this", hint=SMALLER)
        leave_record(memory)
        ui.show_error(memory)
        sys.exit(memory.exit_code)
