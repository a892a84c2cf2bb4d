"""The command behind `fastffn launch ... --`: what can be known of it before it is started."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.config.schema import Config
    from fastffn_cli.distributed.launcher import Job

TRAINING = ("pretrain", "posttrain")
SINGLE = ("eval", "generate")  # of one process
EXAMPLE = "fastffn launch --nproc 2 -- pretrain -c my.yaml"


@dataclass(frozen=True)
class LaunchedCommand:
    """A checked command line: its words, and its options as the command itself reads them."""

    words: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The command: `pretrain`."""
        return self.words[0]

    @cached_property
    def config(self) -> Config | None:
        """The configuration it will train with; None for a command that has none."""
        return self._load(processes=None)

    @property
    def device(self) -> str:
        """The kind of device its processes run on: `cpu`, `gpu`, `npu`, `auto`."""
        named = self.options.get("device")
        if named is None:
            named = "auto" if self.config is None else self.config.Global.device
        kind, _, index = named.strip().lower().partition(":")
        if index:
            raise UserError(
                f"device {named} names one card for every process",
                hint=f"Write {kind} behind the command, and --devices {index} before it.",
            )
        return kind

    @property
    def degrees(self) -> Mapping[str, int] | None:
        """The degrees of parallelism that its configuration asks for."""
        if self.config is None:
            return None
        section = self.config.Distributed
        return {
            "dp_degree": section.dp_degree,
            "sharding_degree": section.sharding.sharding_degree,
            "mp_degree": section.mp_degree,
            "pp_degree": section.pp_degree,
        }

    def check(self, processes: int) -> None:
        """Raise `UserError` if it cannot run in so many processes."""
        self._load(processes=processes)

    def job(self, launch_options: Sequence[str] = ()) -> Job:
        """Return the command lines of its processes, the first time and after a failure.

        They are told of the launch's own options, to say how to continue.
        """
        from fastffn_cli.distributed.job import LAUNCH_OPTIONS
        from fastffn_cli.distributed.launcher import Job
        from fastffn_cli.engine.own_process import own_command

        return Job(
            own_command(*self.words),
            own_command(*self._words_again()),
            self._progress,
            {LAUNCH_OPTIONS: shlex.join(launch_options)},
        )

    def _load(self, *, processes: int | None) -> Config | None:
        if self.name not in TRAINING:
            return None
        from fastffn_cli.config.load import load_config

        options = self.options
        return load_config(
            options["config"],
            options.get("override") or (),
            device=options.get("device"),
            processes=processes,
        ).config

    @cached_property
    def _run_dir(self) -> Path | None:
        if self.config is None:
            return None
        resume = self.options.get("resume")
        if resume in (None, "auto"):
            return Path(self.config.Engine.save_load.output_dir)
        # A run folder, or one of its checkpoints, which the run will have passed by then.
        named = Path(resume)
        return named.parent.parent if named.name.startswith("step-") else named

    def _words_again(self) -> tuple[str, ...]:
        from fastffn_cli.engine.run import holds_run

        resume, run_dir = self.options.get("resume"), self._run_dir
        if run_dir is None:
            return self.words
        if resume is None:
            # A run that was there before is not ours to continue: let the command refuse it.
            return self.words if holds_run(run_dir) else (*self.words, "--resume", "auto")
        value = "auto" if resume == "auto" else str(run_dir)
        return (*_without_resume(self.words), "--resume", value)

    def _progress(self) -> str:
        from fastffn_cli.engine.find import newest_of_run

        checkpoint = None if self._run_dir is None else newest_of_run(self._run_dir)[0]
        return "from the beginning" if checkpoint is None else f"from {checkpoint}"


def _without_resume(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--resume" and not word.startswith("--resume="):
            kept.append(word)
        skip = word == "--resume" and not skip
    return kept


def read_command(words: Sequence[str]) -> LaunchedCommand:
    """Read a command line as the command itself would, without running it.

    Raises `UserError` for a command that is missing or not for many processes, and click's own
    error for options that it does not have.
    """
    from typer.main import get_command

    from fastffn_cli.app import app

    if not words:
        raise UserError("what shall be launched?", hint=f"Type: {EXAMPLE}")
    name, *arguments = words
    if name in SINGLE:
        raise UserError(f"{name} runs in one process", hint=f"Type: fastffn {shlex.join(words)}")
    if name not in TRAINING:
        raise UserError(
            f"{name} is no command to launch: it must be one of {', '.join(TRAINING)}",
            hint=f"Type: {EXAMPLE}",
        )
    group: Any = get_command(app)
    context = group.commands[name].make_context(f"fastffn {name}", list(arguments))
    command = LaunchedCommand(tuple(words), context.params)
    if context.params.get("config") == "-":
        raise UserError(
            "-c -: several processes cannot read one stdin", hint="Write the YAML into a file."
        )
    if context.params.get("dry_run"):
        raise UserError(
            f"{name} --dry-run needs no launch",
            hint=f"Type: fastffn {shlex.join(words)}\n"
            "The processes, and not the run, are shown by launch --dry-run before the --.",
        )
    return command
