"""The boot file of a ModelArts training job: `fastffn launch`, from the job's environment.

ModelArts is pointed to this file, in the code folder of the job or in an image that has fastffn
installed (docs/modelarts.md). The platform adds flags of its own, which are left out with a notice.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run as a file: import from where the package is, not from inside of it.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastffn_cli import ui
from fastffn_cli.distributed.cluster import Node
from fastffn_cli.distributed.modelarts import (
    must_stand_by,
    read_arguments,
    read_layout,
    runs_on_modelarts,
)
from fastffn_cli.distributed.rank_table import RESERVE, make_rank_table, merge_rank_tables
from fastffn_cli.errors import FastFFNError, UserError

COMMANDS = ("pretrain", "posttrain")
OVERRIDE = re.compile(r"--([A-Z]\w*(?:\.\w+)+=.*)", re.DOTALL)  # --Engine.max_steps=100


class OwnFlags(NamedTuple):
    """What the job says to this file, and not to the command."""

    command: str
    max_restarts: int
    dry_run: bool


def main() -> None:
    """Start this machine's processes of the job, and end with their exit code."""
    if must_stand_by(os.environ):
        ui.say("another process of this machine starts its workers; this one ends")
        return
    with tempfile.TemporaryDirectory(prefix="fastffn-") as folder:
        try:
            words = launch_words(os.environ, sys.argv[1:], Path(folder) / "rank_table.json")
        except FastFFNError as error:
            ui.show_error(error)
            sys.exit(error.exit_code)
        from fastffn_cli.app import main as run_program

        sys.argv = ["fastffn", *words]
        run_program()


def launch_words(
    environment: Mapping[str, str], arguments: Sequence[str], table: Path
) -> list[str]:
    """Return the `launch ...` that a job's environment and flags mean.

    Where the platform names no rank table, one is written into `table`. Raises `UserError` for an
    environment or flags that do not make a job.
    """
    if not runs_on_modelarts(environment):
        raise UserError(
            "this is no ModelArts job: none of the platform's variables is there",
            hint="Elsewhere: fastffn launch",
        )
    layout = read_layout(environment)
    named = environment.get("RANK_TABLE_FILE", "").strip()
    if not named:
        table.write_text(_write_table(layout.nodes), encoding="utf-8")
    own, rest = _read_own_flags(arguments)
    given = read_arguments(_spell_overrides(rest))
    for notice in given.notices:
        ui.notice(notice)
    places = {
        "Data.dataset.input_dir": given.input_dir,
        "Engine.save_load.output_dir": given.output_dir,
    }
    logs = environment.get("MA_LOG_DIR", "").strip()
    return [
        *["launch", "--rank-table", named or str(table), "--node", layout.node.host],
        *["--max-restarts", str(own.max_restarts), *(["--dry-run"] if own.dry_run else [])],
        *(["--log-dir", str(Path(logs) / "fastffn-launch")] if logs else []),
        *["--", own.command],
        *[word for key, value in places.items() if value for word in ("-o", f"{key}={value}")],
        *given.passed_on,
    ]


def _write_table(nodes: Sequence[Node]) -> str:
    tables = [
        make_rank_table(node.devices, [RESERVE] * len(node.devices), node.host) for node in nodes
    ]
    return merge_rank_tables(tables).text


def _spell_overrides(arguments: Sequence[str]) -> list[str]:
    """Turn `--Section.key=value` into `-o`: a job form takes a flag once, -o comes repeatedly."""
    return [
        f"--override={found[1]}" if (found := OVERRIDE.fullmatch(word)) else word
        for word in arguments
    ]


def _read_own_flags(arguments: Sequence[str]) -> tuple[OwnFlags, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--command", choices=COMMANDS, default=COMMANDS[0])
    parser.add_argument("--max_restarts", "--max-restarts", type=int, default=0)
    parser.add_argument("--dry_run", "--dry-run", action="store_true")
    own, rest = parser.parse_known_args(list(arguments))
    return OwnFlags(own.command, own.max_restarts, own.dry_run), rest


if __name__ == "__main__":
    main()
