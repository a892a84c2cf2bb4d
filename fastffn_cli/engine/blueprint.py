"""From a resolved configuration to all that is known about a run before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from fastffn_cli.config.load import Resolved
from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.data.token_files import TokenFolder, open_tokens
from fastffn_cli.distributed import job
from fastffn_cli.distributed.layout import read_layout
from fastffn_cli.distributed.planner import CardPlan, estimate_card
from fastffn_cli.engine.checkpoint import (
    Checkpoint,
)
from fastffn_cli.engine.compatibility import check_resume
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.memory import MemoryEstimate, count_fixed, estimate_memory
from fastffn_cli.engine.model import gpt_config
from fastffn_cli.engine.precision import Precision, plan_precision, settle_precision
from fastffn_cli.engine.run import holds_run, refuse_existing
from fastffn_cli.engine.schedule import Schedule, build_schedule
from fastffn_cli.engine.session import Plan
from fastffn_cli.engine.sinks import check_sinks
from fastffn_cli.engine.stages import Stages, dense_config
from fastffn_cli.engine.starting_point import find_resume, find_start
from fastffn_cli.errors import ConfigError, DataError
from models.gpt import GPTConfig
from models.kernels import library


@dataclass(frozen=True)
class Blueprint:
    """All that is known about a run before anything is built or written: the `--dry-run`.

    `cards` is the plan of several cards. `planned` says that it is only a plan, of cards that may
    be elsewhere; `processes_here` how many of them this machine has, None where it has too few.
    """

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
    cards: CardPlan | None = None
    planned: bool = False
    processes_here: int | None = 1

    @property
    def memory_here(self) -> int | None:
        """Bytes that the run takes of `free_memory`; None for cards of other machines.

        On a CPU all processes share the memory; of other devices each has its own.
        """
        if self.cards is None:
            return self.memory.total(self.config.Data.batch_size.micro_batch_size)
        if self.processes_here is None:
            return None
        return self.cards.memory * (self.processes_here if self.device.type == "cpu" else 1)

    @property
    def exceeds_memory(self) -> bool:
        """Whether the run needs more than is free on this machine, as far as both are known."""
        needed, free = self.memory_here, self.free_memory
        return needed is not None and free is not None and needed > free


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
    planned = dry_run and config.Distributed.processes > 1
    if planned:
        precision = plan_precision(config.Engine.mix_precision)
    else:
        precision, warning, notice = settle_precision(config, device)
        warnings += [warning] if warning else []
        notices += [notice] if notice else []
    plan = _plan(config, train)
    _check_stages(config, plan)
    trained = trained_models(config, model)
    cards = _plan_cards(config, trained, precision)
    if cards is not None:
        notices += cards.remarks
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
        memory=_estimate_memory(config, trained, precision, device),
        free_memory=device.free_memory(),
        run_dir=run_dir,
        start_from=start,
        resume_from=resume_from,
        continues=resume is not None and holds_run(run_dir),
        notices=notices,
        warnings=warnings,
        cards=cards,
        planned=planned,
        processes_here=_count_processes_here(config, device) if planned else job.local_size(),
    )


def trained_models(config: Config, model: GPTConfig) -> list[GPTConfig]:
    """Return the models of all stages of the run."""
    if config.Schedule.switch == "never":
        return [model]
    return [model, gpt_config(dense_config(config))]


def _count_processes_here(config: Config, device: Device) -> int | None:
    """Return the processes of a plan if this machine can have all of them."""
    processes = config.Distributed.processes
    return processes if processes <= device.count() else None


def _plan_cards(config: Config, trained: list[GPTConfig], precision: Precision) -> CardPlan | None:
    """Plan the stage of the run that needs most on each of several cards; None for one card."""
    layout = replace(read_layout(config), half=precision.multi_precision)
    seq_len = config.Data.dataset.max_seq_len
    if layout.cards == 1:
        return None
    plans = [estimate_card(each, seq_len, layout) for each in trained]
    return max(plans, key=lambda plan: plan.memory)


def _estimate_memory(
    config: Config, trained: list[GPTConfig], precision: Precision, device: Device
) -> MemoryEstimate:
    """Estimate the most that the run needs at a time, on one card.

    At the switch, and in a fork, the dense model is there beside stage 1, whose gradients are not.
    """
    half = precision.multi_precision
    estimates = [
        estimate_memory(
            each,
            config.Data.dataset.max_seq_len,
            half=half,
            on_host=device.type == "cpu",
            fused=device.type == "cpu" and library.path() is not None,
        )
        for each in trained
    ]
    if len(trained) > 1:
        stage1, dense = count_fixed(trained[0], half=half), estimates[-1]
        beside = stage1.total - stage1.gradients
        estimates.append(replace(dense, fixed=dense.fixed + beside))
    micro_batch_size = config.Data.batch_size.micro_batch_size
    return max(estimates, key=lambda estimate: estimate.total(micro_batch_size))


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


def _check_stages(config: Config, plan: Plan) -> None:
    """Raise `ConfigError` for a run that has not a step for each of its stages."""
    schedule = config.Schedule
    if schedule.switch != "never" and plan.max_steps < schedule.fewest_steps():
        raise ConfigError(
            "the configuration",
            [
                f"{plan.max_steps} steps are too few for {schedule.fewest_steps()} stages: raise "
                "Engine.max_steps, or set Schedule.switch to never"
            ],
        )


def _plan(config: Config, train: TokenDataset) -> Plan:
    engine = config.Engine
    batch_size = config.Data.batch_size.global_batch_size
    assert batch_size is not None, "load_config derives it"
    steps_per_epoch = -(-train.num_samples // batch_size)
    return Plan(
        max_steps=engine.max_steps or engine.num_train_epochs * steps_per_epoch,
        batch_size=batch_size,
        # Each data parallel process evaluates as much at a time as it trains with.
        eval_batch_size=config.Data.batch_size.micro_batch_size * config.Distributed.data_degree,
        logging_freq=engine.logging_freq,
        eval_freq=engine.eval_freq,
        eval_iters=engine.eval_iters,
        save_steps=engine.save_load.save_steps,
        keep_last=engine.save_load.keep_last,
        seed=config.Global.seed,
    )
