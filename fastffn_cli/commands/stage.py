"""What `pretrain` and `posttrain` share: blueprint, run card, training, last words."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fastffn_cli import ui
from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.config.schema import Config
    from fastffn_cli.distributed.cards import Cards
    from fastffn_cli.engine.blueprint import Blueprint
    from fastffn_cli.engine.fit import Summary

MOST_PROPOSALS = 10


def train(
    stage: str,
    *,
    config: str,
    overrides: list[str] | None,
    device: str | None,
    resume: str | None,
    start_from: Path | None,
    dry_run: bool,
    plan: str | None = None,
) -> None:
    """Run one training stage from the options of its command."""
    from fastffn_cli.config.load import load_config
    from fastffn_cli.distributed import job
    from fastffn_cli.distributed.cards import parse_cards

    if plan is not None and not dry_run:
        raise UserError("--plan proposes layouts on paper", hint=f"Type --dry-run --plan {plan}")
    cards = None if plan is None else parse_cards(plan)
    processes = None if dry_run else job.world_size()
    resolved = load_config(config, overrides or (), device=device, processes=processes)
    from fastffn_cli.engine.device import use_configured_device

    chosen = use_configured_device(resolved.config)
    speaks = job.is_main()  # for all processes of the job

    from fastffn_cli.distributed.layout import read_layout
    from fastffn_cli.distributed.parallelism import join
    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.fit import fit
    from fastffn_cli.engine.kernels import prepare_kernels
    from fastffn_cli.engine.run_card import card_rows
    from fastffn_cli.engine.training import build_session
    from fastffn_cli.tasks.causal_lm import CausalLM

    missing = prepare_kernels(
        chosen,
        wanted=resolved.config.Global.cpu_kernels,
        say=ui.say if speaks else lambda _: None,
        low_rank_ffn=resolved.config.Fused.low_rank_ffn,
    )
    blueprint = draw_blueprint(
        resolved, chosen, stage=stage, resume=resume, start_from=start_from, dry_run=dry_run
    )
    if speaks:
        for notice in [*blueprint.notices, *([missing] if missing else [])]:
            ui.notice(notice)
        for warning in blueprint.warnings:
            ui.warn(warning)
        title = f"fastffn {stage} · {blueprint.run_dir}"
        ui.card(title, card_rows(blueprint), to_stdout=dry_run)
    if dry_run:
        if cards is not None:
            _show_proposals(blueprint, cards)
        ui.say(f"dry run: {_verdict(blueprint)}, nothing was written")
        return
    if _is_complete(blueprint):
        return
    session = build_session(blueprint, CausalLM, join(read_layout(blueprint.config)))
    try:
        summary = fit(session, ui.TrainingView())
    finally:
        session.run.close()
    if speaks:
        _say_end(session.config, blueprint, summary)


def _verdict(blueprint: Blueprint) -> str:
    if blueprint.resolved.planned_only:
        return "planned only, as the warnings say"
    if blueprint.exceeds_memory:
        return "it needs more memory than there is"
    return "everything fits together"


def _show_proposals(blueprint: Blueprint, cards: Cards) -> None:
    from fastffn_cli.distributed import plan_text
    from fastffn_cli.distributed.layout import read_layout
    from fastffn_cli.distributed.proposals import allows_any, propose
    from fastffn_cli.engine.blueprint import trained_models
    from fastffn_cli.engine.out_of_memory import USABLE
    from models.gpt import count_parameters

    config = blueprint.config
    model = max(trained_models(config, blueprint.model), key=count_parameters)
    seq_len, batch_size = config.Data.dataset.max_seq_len, blueprint.plan.batch_size
    plans = propose(
        model,
        seq_len,
        cards.count,
        int(USABLE * cards.memory_bytes),
        batch_size,
        cards.chip,
        half=read_layout(config).half,
    )
    what = f"{cards.count} cards of {ui.size(cards.memory_bytes)}, {cards.chip.name}"
    if not plans:
        remedy = "take a number of cards that divides the batch, the layers or the heads"
        if allows_any(model, seq_len, cards.count, batch_size, cards.chip):
            remedy = "take more cards, or cards with more memory"
        ui.warn(
            f"no layout of this model and its global_batch_size {batch_size} fits {what}: {remedy}"
        )
        return
    title = f"layouts for {what}, filled to {USABLE:.0%} at most, fastest first"
    ui.table(title, plan_text.COLUMNS, plan_text.proposal_rows(plans[:MOST_PROPOSALS]))
    ui.say(plan_text.assumptions(cards.chip))
    for remark in plans[0].remarks:
        if remark not in blueprint.notices:
            ui.notice(remark)
    words = " ".join(f"-o {word}" for word in plan_text.overrides(plans[0]))
    ui.say(f"the first of them: {words}")


def _is_complete(blueprint: Blueprint) -> bool:
    checkpoint = blueprint.resume_from
    if checkpoint is None or checkpoint.step < blueprint.plan.max_steps:
        return False
    ui.say(
        f"{blueprint.run_dir} is complete: step {checkpoint.step} of {blueprint.plan.max_steps}. "
        "To go on, raise Engine.max_steps."
    )
    return True


def _say_end(config: Config, blueprint: Blueprint, summary: Summary) -> None:
    parts = [f"step {summary.step}"]
    if summary.loss is not None:
        parts.append(f"loss {summary.loss:.4f}")
    if summary.eval_loss is not None:
        parts.append(f"validation loss {summary.eval_loss:.4f}")
    if summary.tokens_per_s is not None:
        parts.append(f"{summary.tokens_per_s:,.0f} tokens/s")
    ui.say(f"done: {', '.join(parts)}")
    ui.say(f"  checkpoint  {summary.checkpoint}")
    ui.say(f"  loss curve  {blueprint.run_dir / 'loss.png'}")
    from models.ffn import is_mergeable

    merges = not config.Model.is_dense and is_mergeable(config.Model.ffn.model_dump())
    words = ["fastffn", "convert" if merges else "eval", str(summary.checkpoint)]
    ui.say(f"  next        {shlex.join(words)}")
