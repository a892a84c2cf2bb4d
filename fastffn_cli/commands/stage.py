"""What `pretrain` and `posttrain` share: blueprint, run card, training, last words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastffn_cli import ui

if TYPE_CHECKING:
    from fastffn_cli.config.schema import Config
    from fastffn_cli.engine.blueprint import Blueprint
    from fastffn_cli.engine.fit import Summary


def train(
    stage: str,
    *,
    config: str,
    overrides: list[str] | None,
    device: str | None,
    resume: str | None,
    start_from: Path | None,
    dry_run: bool,
) -> None:
    """Run one training stage from the options of its command."""
    from fastffn_cli.config.load import load_config

    resolved = load_config(config, overrides or (), device=device)
    from fastffn_cli.engine.device import use_device

    section = resolved.config.Global
    chosen = use_device(
        section.device, threads=section.cpu_threads, fast_math=section.cpu_fast_math
    )

    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.fit import fit
    from fastffn_cli.engine.run_card import card_rows
    from fastffn_cli.engine.training import build_session
    from fastffn_cli.tasks.causal_lm import CausalLM

    blueprint = draw_blueprint(
        resolved, chosen, stage=stage, resume=resume, start_from=start_from, dry_run=dry_run
    )
    for notice in blueprint.notices:
        ui.notice(notice)
    for warning in blueprint.warnings:
        ui.warn(warning)
    title = f"fastffn {stage} · {blueprint.run_dir}"
    ui.card(title, card_rows(blueprint), to_stdout=dry_run)
    if dry_run:
        ui.say("dry run: everything fits together, nothing was written")
        return
    if _is_complete(blueprint):
        return
    session = build_session(blueprint, CausalLM)
    try:
        summary = fit(session, ui.TrainingView())
    finally:
        session.run.close()
    _say_end(session.config, blueprint, summary)


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

    if not config.Model.is_dense and is_mergeable(config.Model.ffn.model_dump()):
        ui.say(f"  next        fastffn convert {summary.checkpoint}")
    else:
        ui.say(f"  next        fastffn eval {summary.checkpoint}")
