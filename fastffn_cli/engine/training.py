"""From a resolved configuration to a session that `fit` can run: both stages share it."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import paddle

from fastffn_cli import __version__
from fastffn_cli.config.load import Resolved
from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.data.token_files import TokenFolder, open_tokens
from fastffn_cli.engine.checkpoint import (
    CONFIG_FILE,
    Checkpoint,
    set_weights,
)
from fastffn_cli.engine.compatibility import check_resume, fit_positions
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.memory import MemoryEstimate, estimate_memory
from fastffn_cli.engine.model import build_model, gpt_config
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.engine.precision import Precision, choose_precision
from fastffn_cli.engine.run import Run, holds_run, refuse_existing
from fastffn_cli.engine.schedule import Schedule, build_schedule
from fastffn_cli.engine.session import Plan, Progress, Session
from fastffn_cli.engine.sinks import check_sinks
from fastffn_cli.engine.stages import Stages, dense_config
from fastffn_cli.engine.starting_point import find_resume, find_start
from fastffn_cli.errors import ConfigError, DataError, is_out_of_memory
from fastffn_cli.tasks.task import TaskFactory
from models.gpt import GPTConfig


@dataclass(frozen=True)
class Blueprint:
    """All that is known about a run before anything is built or written: the `--dry-run`."""

    stage: str
    resolved: Resolved
    config: Config
    device: Device
    model: GPTConfig
    folder: TokenFolder
    train: TokenDataset
    valid: TokenDataset | None
    plan: Plan
    schedule: Schedule
    precision: Precision
    memory: MemoryEstimate
    free_memory: int | None
    run_dir: Path
    start_from: Checkpoint | None = None
    resume_from: Checkpoint | None = None
    continues: bool = False
    notices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def draw_blueprint(
    resolved: Resolved,
    device: Device,
    *,
    stage: str,
    resume: str | None = None,
    start_from: Path | None = None,
    dry_run: bool = False,
) -> Blueprint:
    """Check everything about a run: data, model, memory, where it starts and continues.

    `resume` is None, "auto", or a run or checkpoint folder. Raises the `FastFFNError` of whatever
    does not fit, an existing run included (a dry run only notes that one); writes nothing.
    """
    config = resolved.config
    notices, warnings = list(resolved.notices), list(resolved.warnings)
    run_dir, resume_from = find_resume(Path(config.Engine.save_load.output_dir), resume, notices)
    if resume is None and not dry_run:
        refuse_existing(run_dir)
    elif resume is None and holds_run(run_dir):
        notices.append(f"{run_dir} holds a run already; this one needs --resume or another folder")
    check_sinks(config.Engine.log_sinks)
    config, folder, train, valid = _open_data(config, notices)
    model = gpt_config(config)
    start = None
    if resume_from is not None:
        check_resume(resume_from, config, train.num_tokens, notices)
    else:
        begun_with = dense_config(config) if Stages.begin(config.Schedule).is_dense else config
        start = find_start(begun_with, stage, start_from, notices)
    precision, warning = choose_precision(config.Engine.mix_precision, device)
    if warning:
        warnings.append(warning)
    plan = _plan(config, train)
    trained = [model]
    if config.Schedule.switch != "never":
        trained.append(gpt_config(dense_config(config)))
    memory = max(
        (
            estimate_memory(
                each,
                config.Data.dataset.max_seq_len,
                half=precision.multi_precision,
                on_host=device.type == "cpu",
            )
            for each in trained
        ),
        key=lambda estimate: estimate.total(config.Data.batch_size.micro_batch_size),
    )
    return Blueprint(
        stage=stage,
        resolved=resolved,
        config=config,
        device=device,
        model=model,
        folder=folder,
        train=train,
        valid=valid,
        plan=plan,
        schedule=build_schedule(config.Optimizer.lr, plan.max_steps),
        precision=precision,
        memory=memory,
        free_memory=device.free_memory(),
        run_dir=run_dir,
        start_from=start,
        resume_from=resume_from,
        continues=resume is not None and holds_run(run_dir),
        notices=notices,
        warnings=warnings,
    )


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


def _open_data(
    config: Config, notices: list[str]
) -> tuple[Config, TokenFolder, TokenDataset, TokenDataset | None]:
    options = config.Data.dataset
    if options.input_dir is None:
        raise ConfigError(
            "the configuration",
            ["Data.dataset.input_dir is required: the folder that `fastffn prepare` wrote"],
            hint="Type: -o Data.dataset.input_dir=DIR",
        )
    folder = open_tokens(Path(options.input_dir), vocab_size=config.Model.vocab_size)
    vocab_size = config.Model.vocab_size or folder.vocab_size
    if vocab_size is None:
        raise ConfigError(
            "the configuration",
            [f"Model.vocab_size is required: {options.input_dir} does not tell its vocabulary"],
        )

    def part(name: str, *, shuffle: bool) -> TokenDataset:
        return TokenDataset(
            folder,
            split=options.split,
            part=name,
            seq_len=options.max_seq_len,
            seed=config.Global.seed,
            shuffle=shuffle,
            eos_id=options.eos_id,
        )

    train = part("train", shuffle=True)
    if train.eos_id is None:
        notices.append(
            f"{options.input_dir} does not tell its end-of-text id: every token is predicted "
            "(Data.dataset.eos_id masks the token behind it)"
        )
    masked = config.Model.masked_token_id
    if masked is not None and train.eos_id not in (None, masked):
        notices.append(
            f"Model.masked_token_id is {masked}, and end-of-text is {train.eos_id} in "
            f"{options.input_dir}: it is not the one that attention hides"
        )
    valid = None
    if config.Engine.eval_freq > 0:
        try:
            valid = part("valid", shuffle=False)
        except DataError as error:
            notices.append(f"no evaluation during training: {error.message}")
    resolved_model = config.Model.model_copy(update={"vocab_size": vocab_size})
    return config.model_copy(update={"Model": resolved_model}), folder, train, valid


def _plan(config: Config, train: TokenDataset) -> Plan:
    engine = config.Engine
    batch_size = config.Data.batch_size.local_batch_size
    assert batch_size is not None, "load_config derives it"
    steps_per_epoch = -(-train.num_samples // batch_size)
    return Plan(
        max_steps=engine.max_steps or engine.num_train_epochs * steps_per_epoch,
        batch_size=batch_size,
        eval_batch_size=config.Data.batch_size.micro_batch_size,
        logging_freq=engine.logging_freq,
        eval_freq=engine.eval_freq,
        eval_iters=engine.eval_iters,
        save_steps=engine.save_load.save_steps,
        keep_last=engine.save_load.keep_last,
        seed=config.Global.seed,
    )


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
