"""The policies by which AdamW's state of a parameter begins that a change of the model has made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastffn_cli.config.schema_training import OptimizerSection
from models.ffn.moments import grow_moments, probe_scale

POWERS = ("beta1_pow", "beta2_pow")
State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class NewParameter:
    """A parameter that a change makes; names are those in the models.

    `known` are its entries as its layer tells them, `powers` the step counter of its first source.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    known: State
    powers: State
    probes: Sequence[np.ndarray] = ()


def _start_anew(new: NewParameter, options: OptimizerSection) -> dict[str, np.ndarray]:
    # Paddle keeps beta^(t+1) after t updates, and zeros where nothing is bias-corrected.
    corrected = float(options.bias_correction)
    return {
        "moment1": np.zeros(new.shape),
        "moment2": np.zeros(new.shape),
        "beta1_pow": np.full_like(new.powers["beta1_pow"], options.adam_beta1 * corrected),
        "beta2_pow": np.full_like(new.powers["beta2_pow"], options.adam_beta2 * corrected),
    }


def _lift(new: NewParameter, options: OptimizerSection) -> dict[str, np.ndarray]:
    if "moment1" not in new.known:
        raise ValueError(f"'{new.name}' cannot be lifted: use 'reset' or 'rewarm'")
    first = _weight_of_average(new.powers["beta1_pow"], options.adam_beta1)
    second = _weight_of_average(new.powers["beta2_pow"], options.adam_beta2)
    moment1, moment2 = new.known["moment1"], new.known["moment2"]
    estimated = ~np.broadcast_to(new.known.get("copied", np.array(False)), moment2.shape)
    if estimated.any():
        mean_square = moment2 / second
        if new.probes:
            seen = tuple(slice(size) for size in moment2.shape)
            gradients = [gradient[seen][estimated] for gradient in new.probes]
            mean_square = mean_square * probe_scale(mean_square[estimated], gradients)
        mean_square = np.maximum(mean_square, np.square(moment1 / first))
        moment2 = np.where(estimated, mean_square * second, moment2)
    for axis, size in enumerate(new.shape):
        if size > moment1.shape[axis]:
            moment1, moment2 = grow_moments(moment1, moment2, size - moment1.shape[axis], axis)
    return {"moment1": moment1, "moment2": moment2, **new.powers}


def _weight_of_average(power: np.ndarray, beta: float) -> float:
    """Return 1 - beta^t, by which a moment falls short of an average, from beta^(t+1)."""
    gone = float(power.item()) / beta if beta > 0 else 0.0
    # Before the first update moments are zero, and whatever they are divided by.
    return max(1.0 - gone, 1e-12)


POLICIES: dict[str, Callable[[NewParameter, OptimizerSection], dict[str, np.ndarray]]] = {
    "reset": _start_anew,
    "rewarm": _start_anew,
    "lift": _lift,
}
