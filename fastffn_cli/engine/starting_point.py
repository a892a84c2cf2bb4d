"""Where a run begins: random weights, another run's weights, or its own last checkpoint."""

from __future__ import annotations

from pathlib import Path

from fastffn_cli.config.schema import Config
from fastffn_cli.engine.checkpoint import Checkpoint, read_checkpoint
from fastffn_cli.engine.compatibility import check_start
from fastffn_cli.engine.find import find_checkpoint, newest_of_run
from fastffn_cli.engine.run import holds_run
from fastffn_cli.errors import CheckpointError


def find_resume(
    run_dir: Path, resume: str | None, notices: list[str]
) -> tuple[Path, Checkpoint | None]:
    """Return the run folder and the checkpoint that `--resume` means; None: from the beginning.

    `run_dir` is the configuration's; `resume` is None, "auto", or a run or checkpoint folder.
    Raises `CheckpointError` for a folder that is no run, or a checkpoint that the run has passed.
    """
    if resume is None:
        return run_dir, None
    named = None if resume == "auto" else Path(resume)
    if named is not None:
        if not named.exists():
            raise CheckpointError(f"--resume {named}: there is no such folder")
        is_checkpoint = (named / "trainer.json").exists() or named.name.startswith("step-")
        run_dir = named.parent.parent if is_checkpoint else named
        if not holds_run(run_dir):
            raise CheckpointError(f"--resume {named}: {run_dir} is not a run folder")
    newest, remarks = newest_of_run(run_dir)
    for remark in remarks:
        notices.append(remark)
    if newest is None:
        if holds_run(run_dir):
            notices.append(f"{run_dir} has no checkpoint yet: its run starts from step 0")
        return run_dir, None
    if named is not None and named.name.startswith("step-") and named.name != newest.name:
        raise CheckpointError(
            f"--resume {named}: the run has gone on to {newest}, which would be overwritten",
            hint=f"Continue from there with --resume {run_dir}, or start a new run with "
            f"-o Engine.save_load.ckpt_dir={named} -o Engine.save_load.output_dir=...",
        )
    return run_dir, read_checkpoint(newest, checksums=False)


def find_start(
    config: Config, stage: str, start_from: Path | None, notices: list[str]
) -> Checkpoint | None:
    """Return the checkpoint whose weights a new run begins with; None: with random ones.

    `start_from` beats `ckpt_dir`; without either, `posttrain` takes the newest converted
    checkpoint of its kind. Raises `CheckpointError` when there is none or it does not fit
    the configuration.
    """
    wanted = start_from
    if wanted is None and config.Engine.save_load.ckpt_dir is not None:
        wanted = Path(config.Engine.save_load.ckpt_dir)
    if wanted is None and stage == "pretrain":
        return None
    dense = config.Model.is_dense
    path = find_checkpoint(
        wanted,
        dense=dense,
        low_rank=not dense,
        # Left to itself, stage 2 goes on from a merge, not from some dense baseline nearby.
        converted=wanted is None,
        action="start from",
    )
    checkpoint = read_checkpoint(path)
    check_start(checkpoint, config, notices)
    notices.append(f"starts from the weights of {path} (step {checkpoint.step})")
    return checkpoint
