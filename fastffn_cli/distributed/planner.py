"""A training run planned on paper: memory, communication, bubble and speed of a layout.

Nothing is allocated. Memory is `engine.memory`'s and time `engine.roofline`'s estimate for the
share of a card; for one card they are those estimates. Pipelines run 1F1B, whose bubble is
(p - 1) / (m + p - 1) of a step for m micro batches on p stages (Narayanan et al. 2021,
arXiv:2104.04473: (p - 1) / m of the rest of it).

What is assumed: the slowest stage sets the pace; no communication overlaps with computing; stages
have equally many layers, embeddings belong to the first and the head to the last one; products of
small micro batches are as fast as those of large ones; nothing of launches, data, evaluation or
checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastffn_cli.config.review import divisors
from fastffn_cli.distributed.layout import Layout, check_layout
from fastffn_cli.distributed.traffic import Traffic, count_traffic, estimate_waiting
from fastffn_cli.engine.chips import Chip
from fastffn_cli.engine.memory import FixedBytes, count_fixed, estimate_memory
from fastffn_cli.engine.roofline import ModelProducts, estimate_step, read_products
from fastffn_cli.engine.share import count_share
from models.gpt import GPTConfig, count_parameters


@dataclass(frozen=True)
class Speed:
    """Estimated seconds of a step, and tokens/s of all cards together, on `chip`."""

    chip: str
    step_s: float
    waiting_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class CardPlan:
    """What the fullest card of a layout holds and sends, and what the whole is estimated to do.

    `parameters` are trainable values on that card, of `model_parameters` in all; `fixed` and
    `activations` bytes; `stage` its pipeline stage, from 0; `bubble` the idle share of a step.
    `speed` is None without a chip, and for feed-forwards whose time cannot be estimated.
    """

    layout: Layout
    stage: int
    model_parameters: int
    parameters: int
    fixed: FixedBytes
    activations: int
    traffic: Traffic
    bubble: float
    speed: Speed | None
    remarks: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes of the fullest card."""
        return self.fixed.total + self.activations


def estimate_card(
    model: GPTConfig,
    seq_len: int,
    layout: Layout,
    chip: Chip | None = None,
    *,
    products: ModelProducts | None = None,
) -> CardPlan:
    """Plan a layout on paper.

    `products` spares reading them from the model again. Raises `ConfigError` for a layout that the
    model does not allow.
    """
    check_layout(model, seq_len, layout)
    model = layout.model(model)
    stage = fullest_stage(model, seq_len, layout)
    share = layout.share(model, stage)
    memory = estimate_memory(model, seq_len, half=layout.half, share=share)
    remarks = []
    speed = None
    if chip is not None:
        try:
            speed = estimate_speed(model, seq_len, layout, chip, products)
        except ValueError as error:
            remarks.append(f"no speed: {error}")
    return CardPlan(
        layout=layout,
        stage=stage,
        model_parameters=count_parameters(model),
        parameters=count_share(model, share),
        fixed=count_fixed(model, half=layout.half, share=share),
        activations=memory.activations(layout.micro_batch_size),
        traffic=count_traffic(model, seq_len, layout, stage),
        bubble=(layout.pp - 1) / (layout.micro_batches + layout.pp - 1),
        speed=speed,
        remarks=tuple(remarks),
    )


def fullest_stage(model: GPTConfig, seq_len: int, layout: Layout) -> int:
    """The pipeline stage whose cards need most memory, the first of equals."""
    return max(range(layout.pp), key=lambda stage: _stage_memory(model, seq_len, layout, stage))


def largest_micro_batch(
    model: GPTConfig, seq_len: int, layout: Layout, memory_bytes: int
) -> int | None:
    """Largest micro batch whose fullest card fits into the memory; None if none does.

    It divides the sequences that a data parallel card reads in a step, which stay as they are;
    fewer micro batches may mean a longer bubble.
    """
    local = layout.micro_batches * layout.micro_batch_size
    for size in sorted(divisors(local), reverse=True):
        other = replace(layout, micro_batch_size=size, micro_batches=local // size)
        if card_memory(model, seq_len, other) <= memory_bytes:
            return size
    return None


def card_memory(model: GPTConfig, seq_len: int, layout: Layout) -> int:
    """Bytes that the fullest card needs."""
    model = layout.model(model)
    return max(_stage_memory(model, seq_len, layout, stage) for stage in range(layout.pp))


def estimate_speed(
    model: GPTConfig,
    seq_len: int,
    layout: Layout,
    chip: Chip,
    products: ModelProducts | None = None,
) -> Speed:
    """Estimate a step of all cards; raises the `ValueError` of `roofline.read_products`."""
    products = read_products(model, seq_len) if products is None else products
    model = layout.model(model)
    passes, waits, updates, ends = [], [], [], []
    for stage in range(layout.pp):
        step = estimate_step(
            model,
            chip,
            seq_len=seq_len,
            micro_batch_size=layout.micro_batch_size,
            share=layout.share(model, stage),
            model=products,
        )
        waiting = estimate_waiting(count_traffic(model, seq_len, layout, stage), layout, chip.links)
        passes.append(step.total - step.optimizer + waiting.micro_batch)
        waits.append(waiting.micro_batch)
        updates.append(step.optimizer)
        ends.append(waiting.step)
    turns = layout.micro_batches + layout.pp - 1
    seconds = turns * max(passes) + max(updates) + max(ends)
    return Speed(
        chip=chip.name,
        step_s=seconds,
        waiting_s=turns * waits[passes.index(max(passes))] + max(ends),
        tokens_per_s=layout.global_batch * seq_len / seconds,
    )


def _stage_memory(model: GPTConfig, seq_len: int, layout: Layout, stage: int) -> int:
    share = layout.share(model, stage)
    estimate = estimate_memory(model, seq_len, half=layout.half, share=share)
    return estimate.total(layout.micro_batch_size)
