"""From the blueprint of a run to a session that `fit` can run: both stages share it."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from fastffn_cli import __version__
from fastffn_cli.distributed import job
from fastffn_cli.distributed.parallelism import ALONE, Parallelism
from fastffn_cli.engine.blueprint import Blueprint
from fastffn_cli.engine.checkpoint import (
    CONFIG_FILE,
    set_weights,
)
from fastffn_cli.engine.compatibility import fit_positions
from fastffn_cli.engine.model import gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.engine.run import Bystander, Run
from fastffn_cli.engine.session import Progress, Session
from fastffn_cli.engine.stages import Stages, dense_config
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import is_out_of_memory
from fastffn_cli.tasks.task import TaskFactory
from models.gpt import GPT


def build_session(
    blueprint: Blueprint, make_task: TaskFactory, parallelism: Parallelism = ALONE
) -> Session:
    """Build model, task and optimizer, open the run folder and load what the run starts from.

    The main process alone writes into the folder, once all of them have come that far.
    Raises `OutOfMemory` with advice when not even the model finds room.
    """
    try:
        return _build_session(blueprint, make_task, parallelism)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise advise(
            blueprint.memory,
            micro_batch_size=blueprint.config.Data.batch_size.micro_batch_size,
            local_batch_size=blueprint.plan.batch_size,
            free=blueprint.free_memory,
        ) from error


def _build_session(
    blueprint: Blueprint, make_task: TaskFactory, parallelism: Parallelism
) -> Session:
    planned, plan, resume_from = blueprint.config, blueprint.plan, blueprint.resume_from
    stages, config = Stages.begin(planned.Schedule), planned
    if resume_from is not None:
        stages = Stages.resume(resume_from.trainer.get("stages"))
    if stages.is_dense:
        config = dense_config(planned)
    model = parallelism.build(gpt_config(config), config.Global.seed)
    if blueprint.start_from is not None:
        origin = blueprint.start_from
        tensors = fit_positions(origin.weights(), blueprint.model, origin.path)
        _set_part(model, tensors, origin.path, parallelism)
    if resume_from is not None:
        _set_part(model, resume_from.weights(), resume_from.path, parallelism)
    precision = blueprint.precision
    precision.decorate(model)
    optimizer = AdamW(
        model,
        config.Optimizer,
        multi_precision=precision.multi_precision,
        owned=parallelism.share_out(model),
    )
    progress = Progress()
    if resume_from is not None:
        state = resume_from.optimizer_tensors()
        mine = (name for name in state if name.rpartition(".")[0] in optimizer.owned)
        optimizer.load_state(parallelism.part({name: state[name] for name in mine}))
        precision.load_state(resume_from.trainer.get("scaler"))
        progress = Progress(
            *(int(resume_from.trainer[key]) for key in ("step", "cursor", "tokens"))
        )
    # Nobody looks for a run in the folder any more when all have come here.
    parallelism.check_alike(
        f"{blueprint.run_dir.absolute()} at step {progress.step}",
        hint="All machines need the same output_dir, on storage that they share",
    )
    run = _open_run(blueprint) if parallelism.is_main else Bystander(blueprint.run_dir)
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
        parallelism=parallelism,
    )
    run.record(
        "resume" if resume_from is not None else "start",
        step=progress.step,
        stage=blueprint.stage,
        max_steps=plan.max_steps,
        device=blueprint.device.describe(),
        processes=parallelism.mesh.layout.cards,
        layout=parallelism.mesh.layout.describe(),
        versions=versions(),
        start_from=str(blueprint.start_from.path) if blueprint.start_from else None,
    )
    return session


def _set_part(
    model: GPT,
    tensors: Mapping[str, np.ndarray | StoredTensor],
    origin: Path,
    parallelism: Parallelism,
) -> None:
    """Copy into this process's part of a model what it has of the whole tensors; read no more."""
    if parallelism.divides_model:
        held = (name for name, _ in model.named_parameters() if name in tensors)
        tensors = parallelism.part({name: tensors[name] for name in held})
    set_weights(model, tensors, origin)


def continue_command(blueprint: Blueprint) -> str:
    """The command line that continues this run on this machine, ready to paste."""
    resolved = blueprint.resolved
    options = job.launch_options()
    # Another launcher's processes have no options; `launch` counts them by the degrees.
    launch = ["launch", *options, "--"] if options or job.world_size() > 1 else []
    words = ["fastffn", *launch, blueprint.stage]
    if Path(resolved.source).is_file():
        words += ["-c", resolved.source]
        for override in resolved.overrides:
            words += ["-o", override]
    else:  # it came from stdin; the run folder has it, overrides included
        words += ["-c", str(blueprint.run_dir / CONFIG_FILE)]
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
