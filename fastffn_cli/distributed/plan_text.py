"""Plans as people read them: rows of a card, and a table of proposals."""

from __future__ import annotations

from collections.abc import Sequence

from fastffn_cli.distributed.planner import CardPlan
from fastffn_cli.engine.chips import Chip
from fastffn_cli.ui import number, size

COLUMNS = ("layout", "a card", "sends a step", "waits", "bubble", "tokens/s")


def card_plan_rows(plan: CardPlan, precision: str) -> list[tuple[str, str]]:
    """Return (label, text) rows of one layout, trained in `precision`: `float16 O2`."""
    layout, fixed, traffic = plan.layout, plan.fixed, plan.traffic
    stage = f", stage {plan.stage + 1} of {layout.pp}" if layout.pp > 1 else ""
    sent = {
        "gradients and weights": traffic.data, "tensor parallel": traffic.tensor,
        "pipeline": traffic.pipeline, "tied table": traffic.tied,
    }  # fmt: skip
    rows = [
        ("layout", f"{layout.cards} cards: {layout.describe()}"),
        (
            "per card",
            f"{number(plan.parameters)} parameters, {precision}, about {size(plan.memory)}: "
            f"weights {size(fixed.weights)}, gradients {size(fixed.gradients)}, optimizer "
            f"{size(fixed.optimizer)}, activations {size(plan.activations)} (the fullest{stage})",
        ),
        (
            "per step",
            f"a card sends {size(traffic.total)}"
            + "".join(f", {name} {size(count)}" for name, count in sent.items() if count),
        ),
    ]
    if layout.pp > 1:
        rows.append(("bubble", f"{plan.bubble:.1%} of a step"))
    return rows


def proposal_rows(plans: Sequence[CardPlan]) -> list[tuple[str, ...]]:
    """Return the cells of `COLUMNS` for each plan."""
    rows: list[tuple[str, ...]] = []
    for plan in plans:
        assert plan.speed is not None, "proposals are ranked by it"
        rows.append(
            (
                plan.layout.describe(),
                size(plan.memory),
                size(plan.traffic.total),
                f"{plan.speed.waiting_s / plan.speed.step_s:.0%}",
                f"{plan.bubble:.1%}",
                number(plan.speed.tokens_per_s),
            )
        )
    return rows


def overrides(plan: CardPlan) -> list[str]:
    """Return the overrides that ask for a plan's layout."""
    layout = plan.layout
    degrees = {
        "Distributed.dp_degree": layout.dp, "Distributed.mp_degree": layout.mp,
        "Distributed.pp_degree": layout.pp,
        "Distributed.sharding.sharding_degree": layout.sharding_degree,
    }  # fmt: skip
    words = [f"{key}={degree}" for key, degree in degrees.items()]
    words.append(f"Distributed.sharding.sharding_stage={layout.sharding_stage}")
    words.append(f"Data.batch_size.micro_batch_size={layout.micro_batch_size}")
    flags = {
        "Distributed.sequence_parallel": layout.sequence_parallel,
        "Model.use_recompute": layout.recompute,
    }
    return [*words, *(f"{key}={str(flag).lower()}" for key, flag in flags.items())]


def assumptions(chip: Chip) -> str:
    """Return in one line what the speeds of proposals rest on."""
    links = chip.links
    return (
        f"estimated, not measured: {chip.name} at {chip.matrix_share:.0%} of its matrix peak and "
        f"{chip.bandwidth_share:.0%} of its memory bandwidth, {links.cards_per_node} cards a node, "
        f"{links.name} at {links.share:.0%}, no communication beside computing"
    )
