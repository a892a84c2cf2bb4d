"""What a run will do, before its first step: the rows of the run card and of `--dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastffn_cli.config.ffn import describe_approximations
from fastffn_cli.ui import number, size
from models.gpt import count_parameters, flops_per_token

if TYPE_CHECKING:
    from fastffn_cli.engine.blueprint import Blueprint


def card_rows(blueprint: Blueprint) -> list[tuple[str, str]]:
    """Return (label, text) rows; every number comes from the blueprint's shapes."""
    rows = [
        ("device", _device(blueprint)),
        ("model", _model(blueprint)),
        ("parameters", _parameters(blueprint)),
        ("compute", _compute(blueprint)),
        ("data", _data(blueprint)),
        ("batch", _batch(blueprint)),
        ("budget", _budget(blueprint)),
        *_stages(blueprint),
        ("learning rate", _learning_rate(blueprint)),
        *_memory_rows(blueprint),
        ("checkpoints", _checkpoints(blueprint)),
    ]
    if blueprint.resume_from is not None:
        step = blueprint.resume_from.step
        rows.append(("continues", f"{blueprint.resume_from.path} (step {step})"))
    changed = ", ".join(blueprint.resolved.overrides)
    if changed:
        rows.append(("changed", f"{changed} (-o)"))
    return rows


def _device(blueprint: Blueprint) -> str:
    if blueprint.planned:  # on cards of its own, whose precision stands beside them
        return blueprint.device.describe()
    return f"{blueprint.device.describe()} · {blueprint.precision.describe()}"


def _model(blueprint: Blueprint) -> str:
    model = blueprint.model
    parts = describe_approximations(model.approximations)
    return (
        f"GPT {model.num_layers} layers x {model.hidden_size}, {model.num_attention_heads} heads, "
        f"vocabulary {model.vocab_size:,}, {model.max_position_embeddings} positions · {parts}"
    )


def _parameters(blueprint: Blueprint) -> str:
    from fastffn_cli.engine.model import dense_counterpart

    own = count_parameters(blueprint.model)
    dense = count_parameters(dense_counterpart(blueprint.model))
    if own == dense:
        return number(own)
    return f"{number(own)} (dense {number(dense)}, {100 * (own / dense - 1):+.1f} %)"


def _compute(blueprint: Blueprint) -> str:
    own = 3 * flops_per_token(blueprint.model, blueprint.config.Data.dataset.max_seq_len)
    ratio = _flops_ratio(blueprint)
    text = f"{number(own)}FLOP a token, forward and backward"
    return text if ratio == 1 else f"{text} · at most {ratio:.3f} x faster than dense by FLOPs"


def _data(blueprint: Blueprint) -> str:
    train, valid = blueprint.train, blueprint.valid
    checked = f"{valid.num_tokens:,}" if valid is not None else "no"
    return (
        f"{blueprint.folder.path} · {train.num_tokens:,} training tokens in {train.num_samples:,} "
        f"sequences of {train.seq_len}, {checked} validation tokens"
    )


def _batch(blueprint: Blueprint) -> str:
    sizes, seq_len = blueprint.config.Data.batch_size, blueprint.config.Data.dataset.max_seq_len
    data = blueprint.config.Distributed.data_degree
    rounds = blueprint.plan.batch_size // data // sizes.micro_batch_size
    text = (
        f"{blueprint.plan.batch_size * seq_len:,} tokens a step = {sizes.micro_batch_size} "
        f"sequences x {seq_len} x {rounds} accumulated"
    )
    return text if data == 1 else f"{text} x {data} data parallel"


def _budget(blueprint: Blueprint) -> str:
    plan, train = blueprint.plan, blueprint.train
    tokens = plan.max_steps * plan.batch_size * train.seq_len
    epochs = plan.max_steps * plan.batch_size / train.num_samples
    return f"{plan.max_steps:,} steps = {number(tokens)} tokens = {epochs:.2f} epochs"


def _stages(blueprint: Blueprint) -> list[tuple[str, str]]:
    from fastffn_cli.engine.roofline import whole_run_speedup
    from fastffn_cli.engine.stages import STAGE1, STAGE2, Stages

    schedule, steps = blueprint.config.Schedule, blueprint.plan.max_steps
    if schedule.switch == "never":
        return []
    begin, end = schedule.dense_start_steps(steps), schedule.latest_switch(steps)
    text = ""
    if blueprint.resume_from is not None:
        reached = Stages.resume(blueprint.resume_from.trainer.get("stages"))
        if reached.stage == STAGE2:
            return [("stages", f"dense since step {reached.changed_at:,}: the switch is over")]
        if reached.stage == STAGE1:
            begin = reached.changed_at
    if begin:
        text = f"dense to step {begin:,}, "
    if schedule.switch == "fraction":
        text += f"stage 1 to step {end:,}"
    else:
        first = max(begin, round(schedule.earliest * steps))
        text += f"stage 1 until {schedule.switch} ends it, at step {first:,} to {end:,}"
    whole = whole_run_speedup(_flops_ratio(blueprint), (end - begin) / steps)
    text += f", then dense · the whole run at most {whole:.3f} x faster than dense by FLOPs"
    return [("stages", f"{text} · handover {schedule.handover}")]


def _flops_ratio(blueprint: Blueprint) -> float:
    """Return a dense step's FLOPs over those of the configured model."""
    from fastffn_cli.engine.model import dense_counterpart

    seq_len = blueprint.config.Data.dataset.max_seq_len
    dense = flops_per_token(dense_counterpart(blueprint.model), seq_len)
    return dense / flops_per_token(blueprint.model, seq_len)


def _learning_rate(blueprint: Blueprint) -> str:
    schedule = blueprint.schedule
    text = f"{schedule.name} {schedule.max_lr:g}"
    if schedule.name != "constant":
        text += f" -> {schedule.min_lr:g} over {schedule.decay_steps:,} steps"
    return f"{text}, warm-up {schedule.warmup_steps:g} steps"


def _memory_rows(blueprint: Blueprint) -> list[tuple[str, str]]:
    from fastffn_cli.distributed.plan_text import card_plan_rows

    if blueprint.cards is not None:
        rows = card_plan_rows(blueprint.cards, blueprint.precision.describe())
        return [*rows, *_memory_here(blueprint)]
    return [("memory", _memory(blueprint))]


def _memory_here(blueprint: Blueprint) -> list[tuple[str, str]]:
    """Compare a layout with what is free on this machine, where its processes are here."""
    needed, free = blueprint.memory_here, blueprint.free_memory
    if needed is None or free is None:
        return []
    who = "a card"
    if blueprint.device.type == "cpu":
        who = f"for {blueprint.processes_here} processes"
    text = f"about {size(needed)} {who}, {size(free)} free ({blueprint.device.name})"
    return [("this machine", text + _excess(blueprint))]


def _memory(blueprint: Blueprint) -> str:
    needed, free = blueprint.memory_here, blueprint.free_memory
    assert needed is not None, "it runs here"
    if free is None:
        return f"about {size(needed)}"
    text = f"about {size(needed)}, {size(free)} free ({blueprint.device.name})"
    return text + _excess(blueprint)


def _excess(blueprint: Blueprint) -> str:
    return ": MORE THAN THERE IS, see micro_batch_size" if blueprint.exceeds_memory else ""


def _checkpoints(blueprint: Blueprint) -> str:
    plan = blueprint.plan
    often = f"every {plan.save_steps:,} steps" if plan.save_steps > 0 else "at the end"
    kept = f"newest {plan.keep_last} kept" if plan.keep_last else "all kept"
    return f"{often}, {kept} -> {blueprint.run_dir / 'checkpoints'}"
