"""What a pipeline stage does in a step, and in which order: a pure function.

1F1B without interleaving, PipeDream-Flush (Narayanan et al. 2021, arXiv:2104.04473, section 2.2):
of `stages` stages, stage s runs `stages - 1 - s` forward passes ahead, then one forward and one
backward pass by turns, then the backward passes that are left. At most `stages - s` micro batches
are under way on it, however many a step has.

Neighbours exchange tensors in both directions at once: where a stage has a gradient to send back
just before it needs the next activation, one exchange moves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Neighbour: TypeAlias = Literal["previous", "next"]


@dataclass(frozen=True)
class Forward:
    """The forward pass of a micro batch, by its number from 0, through this stage's layers."""

    number: int


@dataclass(frozen=True)
class Backward:
    """The backward pass of a micro batch."""

    number: int


@dataclass(frozen=True)
class Exchange:
    """Swap tensors with the stage before or after this one.

    Activations go to the next stage, gradients to the previous one. `sends` and `receives` are the
    micro batches that they are of; None: nothing goes that way.
    """

    neighbour: Neighbour
    sends: int | None = None
    receives: int | None = None


Action: TypeAlias = Forward | Backward | Exchange


def plan_training(stages: int, stage: int, micro_batches: int) -> list[Action]:
    """Return what stage `stage`, from 0, does in a training step."""
    ahead = min(stages - 1 - stage, micro_batches)
    passes: list[Forward | Backward] = [Forward(number) for number in range(ahead)]
    for number in range(micro_batches):
        if ahead + number < micro_batches:
            passes.append(Forward(ahead + number))
        passes.append(Backward(number))
    return list(_with_exchanges(passes, stages, stage))


def plan_evaluation(stages: int, stage: int, micro_batches: int) -> list[Action]:
    """Return what stage `stage`, from 0, does where nothing is trained."""
    passes = [Forward(number) for number in range(micro_batches)]
    return list(_with_exchanges(passes, stages, stage))


def _with_exchanges(
    passes: Sequence[Forward | Backward], stages: int, stage: int
) -> Iterator[Action]:
    """Put what is to be sent after a pass and received before the next one between the two."""
    before: list[Forward | Backward | None] = [None, *passes]
    after: list[Forward | Backward | None] = [*passes, None]
    for done, coming in zip(before, after, strict=True):
        leaving = _send(done, stages, stage)
        arriving = _receive(coming, stages, stage)
        if leaving and arriving and _meet(leaving, arriving, stages, stage):
            yield replace(leaving, receives=arriving.receives)
        else:
            yield from (exchange for exchange in (leaving, arriving) if exchange)
        if coming:
            yield coming


def _send(done: Forward | Backward | None, stages: int, stage: int) -> Exchange | None:
    match done:
        case Forward(number) if stage < stages - 1:
            return Exchange("next", sends=number)
        case Backward(number) if stage > 0:
            return Exchange("previous", sends=number)
    return None


def _receive(coming: Forward | Backward | None, stages: int, stage: int) -> Exchange | None:
    match coming:
        case Forward(number) if stage > 0:
            return Exchange("previous", receives=number)
        case Backward(number) if stage < stages - 1:
            return Exchange("next", receives=number)
    return None


def _meet(leaving: Exchange, arriving: Exchange, stages: int, stage: int) -> bool:
    """Whether the neighbour, too, does both at once.

    It does while the earlier one of the two is as many micro batches ahead as it ever is; with
    fewer in a step than that, the gradient waits for the activation itself.
    """
    if leaving.neighbour != arriving.neighbour:
        return False
    assert leaving.sends is not None and arriving.receives is not None
    if leaving.neighbour == "next":
        return leaving.sends - arriving.receives == stages - 1 - stage
    return arriving.receives - leaving.sends == stages - stage
