"""From the blueprint of a run to a session that `fit` can run: both stages share it."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import paddle

from fastffn_cli import __version__
from fastffn_cli.engine.blueprint import Blueprint
from fastffn_cli.engine.checkpoint import (
    CONFIG_FILE,
    set_weights,
)
from fastffn_cli.engine.compatibility import fit_positions
from fastffn_cli.engine.model import build_model, gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.engine.run import Run
from fastffn_cli.engine.session import Progress, Session
from fastffn_cli.engine.stages import Stages, dense_config
from fastffn_cli.errors import is_out_of_memory
from fastffn_cli.tasks.task import TaskFactory


def build_session(blueprint: Blueprint, make_task: TaskFactory) -> Session:
    """Build model, task and optimizer, open the run folder and load what the run starts from.

    Raises `OutOfMemory` with advice when not even the model finds room.
    """
    try:
        return _build_session(blueprint, make_task)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise advise(
            blueprint.memory,
            micro_batch_size=blueprint.config.Data.batch_size.micro_batch_size,
            local_batch_size=blueprint.plan.batch_size,
            free=blueprint.free_memory,
        ) from error


def _build_session(blueprint: Blueprint, make_task: TaskFactory) -> Session:
    planned, plan, resume_from = blueprint.config, blueprint.plan, blueprint.resume_from
    stages, config = Stages.begin(planned.Schedule), planned
    if resume_from is not None:
        stages = Stages.resume(resume_from.trainer.get("stages"))
    if stages.is_dense:
        config = dense_config(planned)
    model = build_model(gpt_config(config), config.Global.seed)
    if blueprint.start_from is not None:
        origin = blueprint.start_from
        tensors = fit_positions(origin.tensors(), blueprint.model, origin.path)
        set_weights(model, tensors, origin.path)
    if resume_from is not None:
        set_weights(model, resume_from.tensors(), resume_from.path)
    precision = blueprint.precision
    precision.decorate(model)
    optimizer = AdamW(model, config.Optimizer, multi_precision=precision.multi_precision)
    progress = Progress()
    if resume_from is not None:
        optimizer.load_state(resume_from.optimizer_state())
        precision.load_state(resume_from.trainer.get("scaler"))
        progress = Progress(
            *(int(resume_from.trainer[key]) for key in ("step", "cursor", "tokens"))
        )
    run = _open_run(blueprint)
    session = Session(
        planned=planned,
        config=config,
        stages=stages,
        make_task=make_task,
        task=make_task(model),
        optimizer=optimizer,
        precision=precision,
        schedule=blueprint.schedule,
        train=blueprint.train,
        valid=blueprint.valid,
        plan=plan,
        run=run,
        device=blueprint.device,
        memory=blueprint.memory,
        trainer=_trainer_record(blueprint) | config.Model.approximations,
        tokenizer_dir=blueprint.folder.tokenizer_dir,
        continue_command=continue_command(blueprint),
        progress=progress,
        free_memory=blueprint.free_memory,
    )
    run.record(
        "resume" if resume_from is not None else "start",
        step=progress.step,
        stage=blueprint.stage,
        max_steps=plan.max_steps,
        device=blueprint.device.describe(),
        versions=versions(),
        start_from=str(blueprint.start_from.path) if blueprint.start_from else None,
    )
    return session


def continue_command(blueprint: Blueprint) -> str:
    """The command line that continues this run, ready to paste."""
    resolved = blueprint.resolved
    if Path(resolved.source).is_file():
        words = ["fastffn", blueprint.stage, "-c", resolved.source]
        for override in resolved.overrides:
            words += ["-o", override]
    else:  # it came from stdin; the run folder has it, overrides included
        words = ["fastffn", blueprint.stage, "-c", str(blueprint.run_dir / CONFIG_FILE)]
    if (resolved.origins["Global.device"].text or "").startswith("--device"):
        words += ["--device", resolved.config.Global.device]
    words.append("--resume")
    if Path(resolved.config.Engine.save_load.output_dir) != blueprint.run_dir:
        words.append(str(blueprint.run_dir))
    return shlex.join(words)


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {
        "fastffn": __version__,
        "python": platform.python_version(),
        "paddle": paddle.__version__,
    }
    for package in ("numpy", "tokenizers", "paddle-custom-npu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "platform": f"{sys.platform} {platform.machine()}"}


def _open_run(blueprint: Blueprint) -> Run:
    if blueprint.continues:
        return Run.reopen(blueprint.run_dir)
    return Run.create(blueprint.run_dir, blueprint.config)


def _trainer_record(blueprint: Blueprint) -> dict[str, Any]:
    return {
        "stage": blueprint.stage,
        "run": blueprint.run_dir.name,
        "planned_steps": blueprint.plan.max_steps,
        "seed": blueprint.plan.seed,
        "rng": "paddle.seed(step_seed(seed, step)) before every step",
        "schedule": vars(blueprint.schedule),
        "precision": blueprint.precision.describe(),
        "data": {
            "input_dir": str(blueprint.folder.path.absolute()),
            "num_tokens": blueprint.train.num_tokens,
            "num_samples": blueprint.train.num_samples,
            "eos_id": blueprint.train.eos_id,
        },
        "versions": versions(),
    }
