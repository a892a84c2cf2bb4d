"""Which layouts of a model fit on given cards, fastest first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fastffn_cli.config.review import divisors
from fastffn_cli.distributed.layout import Layout, find_problems
from fastffn_cli.distributed.planner import CardPlan, card_memory, estimate_card
from fastffn_cli.engine.chips import Chip
from fastffn_cli.engine.roofline import read_products
from fastffn_cli.errors import UserError
from models.gpt import GPTConfig

TIE = 0.01  # tokens/s nearer to each other than this share are taken for equal


def propose(
    model: GPTConfig,
    seq_len: int,
    cards: int,
    memory_bytes: int,
    global_batch: int,
    chip: Chip,
    *,
    half: bool = True,
    sequence_parallel: bool = True,
) -> list[CardPlan]:
    """Return the best layout of each set of degrees that fits into the memory, fastest first.

    Best of a set is the most tokens/s by estimate; within `TIE` of each other, the simpler one:
    with fewer mechanisms, then of smaller degrees. Sharding is over all data parallel cards or
    none; tensor parallel cards lie within a node; `sequence_parallel` False leaves that out. All
    cards are used, and the global batch stays what it is. Raises `UserError` for a model whose time
    cannot be estimated.
    """
    try:
        products = read_products(model, seq_len)
    except ValueError as error:
        raise UserError(
            f"layouts of this model cannot be ranked: {error}",
            hint="Choose another Model.ffn.kind, or ask for one layout with its degrees",
        ) from None
    best: dict[tuple[int, ...], CardPlan] = {}
    for layout in _candidates(model, seq_len, cards, global_batch, chip, half=half):
        if layout.sequence_parallel and not sequence_parallel:
            continue
        if card_memory(model, seq_len, layout) > memory_bytes:
            continue
        plan = estimate_card(model, seq_len, layout, chip, products=products)
        degrees = (layout.dp, layout.sharding_degree, layout.mp, layout.pp)
        if degrees not in best or _rank(plan) < _rank(best[degrees]):
            best[degrees] = plan
    return sorted(best.values(), key=_order)


def allows_any(model: GPTConfig, seq_len: int, cards: int, global_batch: int, chip: Chip) -> bool:
    """Tell whether there is a layout on all of the cards, whatever memory they have."""
    candidates = _candidates(model, seq_len, cards, global_batch, chip, half=True)
    return next(candidates, None) is not None


def _candidates(
    model: GPTConfig, seq_len: int, cards: int, global_batch: int, chip: Chip, *, half: bool
) -> Iterator[Layout]:
    """Yield what the model allows on all cards."""
    for mp in sorted(divisors(cards)):
        if mp > chip.links.cards_per_node:
            break
        for pp in sorted(divisors(cards // mp)):
            data = cards // mp // pp
            degrees = Layout(dp=data, mp=mp, pp=pp, half=half)
            if global_batch % data or find_problems(model, seq_len, degrees):
                continue
            for layout in _shardings(degrees):
                for other in _savings(layout):
                    if not find_problems(model, seq_len, other):
                        yield from _pieces(other, global_batch // data)


def _shardings(layout: Layout) -> Iterator[Layout]:
    yield layout
    if layout.dp > 1:
        for stage in (1, 2, 3):
            yield replace(layout, dp=1, sharding_degree=layout.dp, sharding_stage=stage)


def _savings(layout: Layout) -> Iterator[Layout]:
    for recompute in (False, True):
        for sequence_parallel in (False, True):
            yield replace(layout, recompute=recompute, sequence_parallel=sequence_parallel)


def _pieces(layout: Layout, local_batch: int) -> Iterator[Layout]:
    for size in sorted(divisors(local_batch)):
        yield replace(layout, micro_batch_size=size, micro_batches=local_batch // size)


def _rank(plan: CardPlan) -> tuple[float, ...]:
    """Order plans of the same degrees: faster first, in steps of `TIE`; then simpler ones."""
    return (-round(math.log(_speed(plan)) / TIE), *_complexity(plan.layout))


def _order(plan: CardPlan) -> tuple[float, ...]:
    """Order plans as they are shown: by tokens/s, and simpler ones first of equals."""
    return (-round(_speed(plan)), *_complexity(plan.layout))


def _speed(plan: CardPlan) -> float:
    assert plan.speed is not None, "products were read"
    return plan.speed.tokens_per_s


def _complexity(layout: Layout) -> tuple[float, ...]:
    mechanisms = (
        (layout.sharding_stage if layout.sharding_degree > 1 else 0)
        + (layout.mp > 1) + (layout.pp > 1) + layout.sequence_parallel + layout.recompute
    )  # fmt: skip
    return (mechanisms, layout.mp * layout.pp, layout.mp, -layout.micro_batch_size)
