"""What becomes of AdamW's state when feed-forwards with factors are folded into dense ones.

Only the merged matrices are new to the optimizer; every other parameter keeps its state to the bit.
How a kind of layer turns its own state into that of its dense form is the layer's knowledge
(`models.ffn.moments.MergesState`): this module finds such layers and names none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from paddle import nn

from fastffn_cli.config.schema_training import OptimizerSection
from models.ffn.moments import MergesState, probe_scale

POWERS = ("beta1_pow", "beta2_pow")
ENTRIES = ("moment1", "moment2", *POWERS, "master")


def hand_over(
    state: Mapping[str, np.ndarray],
    model_before: nn.Layer,
    policy: str,
    *,
    options: OptimizerSection,
    probes: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """Return the optimizer state of the merged model from that of the model before the merge.

    `state` is what `AdamW.state` returned, `model_before` the model it belongs to, not yet merged,
    `options` what the optimizer was built with. Policies, for the merged matrices alone:
        `reset`   moments of zero and a step counter of their own, as after AdamW's construction;
        `rewarm`  the same, for a learning rate that `rewarm_factor` scales;
        `lift`    the factors' moments, lifted to the product (`models.ffn.moments`), and their step
                  counter, from the first factor. No second moment is left below the square of the
                  first (both bias-corrected), which no average of squares is: an entry that the
                  lift knows little of then asks for the learning rate at most, as after a reset.
                  `probes` are dense gradients by the names of all `merged_parameters`, which set
                  the second moments' size (`models.ffn.moments.probe_scale`).
    New arrays are float32. In half precision the new master is the product of the factors' masters.
    An empty state, of an optimizer before its first update, stays empty.

    Raises `ValueError` for an unknown policy, for probes that do not fit and for a layer that knows
    no lift; `KeyError`, naming the tensor, for a state that is not the model's.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown handover '{policy}'; there are {', '.join(POLICIES)}")
    _check_probes(probes, policy, model_before)
    if not state:
        return {}
    handed = dict(state)
    for prefix, layer in _merging_layers(model_before):
        parameters = _gather(prefix, layer, state, probes or {})
        for parameter in parameters:
            for source in parameter.sources:
                for entry in ENTRIES:
                    handed.pop(f"{source}.{entry}", None)
        for parameter in parameters:
            entries = POLICIES[policy](parameter, options)
            if "master" in parameter.lifted:
                entries["master"] = parameter.lifted["master"]
            for entry, array in entries.items():
                handed[f"{parameter.name}.{entry}"] = array.astype(np.float32)
    return handed


def merged_parameters(model_before: nn.Layer) -> list[str]:
    """Name the parameters that merging the model will make, e.g. `layers.0.ffn.linear1.weight`."""
    return [
        prefix + name
        for prefix, layer in _merging_layers(model_before)
        for name in layer.merged_parameters()
    ]


def rewarm_factor(step: int, over: int) -> float:
    """Return the factor on the learning rate of merged parameters under the policy `rewarm`.

    It rises linearly from 0 before the first update after the switch (`step` 1) to 1 at update
    `over`, and stays there. For `merged_parameters` only: warming up what did not change as well
    loses progress.
    """
    return min(1.0, step / over) if over > 0 else 1.0


@dataclass(frozen=True)
class _Merged:
    """A parameter that merging makes; names are those in the model.

    `lifted` are its entries as its layer lifts them, `powers` the step counter of its first source.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    lifted: Mapping[str, np.ndarray]
    powers: Mapping[str, np.ndarray]
    probes: Sequence[np.ndarray]


def _gather(
    prefix: str,
    layer: MergesState,
    state: Mapping[str, np.ndarray],
    probes: Mapping[str, Sequence[np.ndarray]],
) -> list[_Merged]:
    own = _below(prefix, state)
    try:
        lifted = layer.merge_state(own)
    except KeyError as missing:
        raise KeyError(f"{prefix}{missing.args[0]}") from None
    return [
        _Merged(
            name=prefix + name,
            shape=parameter.shape,
            sources=tuple(prefix + source for source in parameter.sources),
            lifted=_below(f"{name}.", lifted),
            powers={power: state[f"{prefix}{parameter.sources[0]}.{power}"] for power in POWERS},
            probes=probes.get(prefix + name, ()),
        )
        for name, parameter in layer.merged_parameters().items()
    ]


def _start_anew(merged: _Merged, options: OptimizerSection) -> dict[str, np.ndarray]:
    # Paddle keeps beta^(t+1) after t updates, and zeros where nothing is bias-corrected.
    corrected = float(options.bias_correction)
    return {
        "moment1": np.zeros(merged.shape),
        "moment2": np.zeros(merged.shape),
        "beta1_pow": np.full_like(merged.powers["beta1_pow"], options.adam_beta1 * corrected),
        "beta2_pow": np.full_like(merged.powers["beta2_pow"], options.adam_beta2 * corrected),
    }


def _lift(merged: _Merged, options: OptimizerSection) -> dict[str, np.ndarray]:
    first = _weight_of_average(merged.powers["beta1_pow"], options.adam_beta1)
    second = _weight_of_average(merged.powers["beta2_pow"], options.adam_beta2)
    if "moment1" not in merged.lifted:
        raise ValueError(f"'{merged.name}' cannot be lifted: use 'reset' or 'rewarm'")
    moment1 = merged.lifted["moment1"]
    mean_square = merged.lifted["moment2"] / second
    if merged.probes:
        mean_square = mean_square * probe_scale(mean_square, merged.probes)
    mean_square = np.maximum(mean_square, np.square(moment1 / first))
    return {"moment1": moment1, "moment2": mean_square * second, **merged.powers}


def _weight_of_average(power: np.ndarray, beta: float) -> float:
    """Return 1 - beta^t, by which a moment falls short of an average, from beta^(t+1)."""
    gone = float(power.item()) / beta if beta > 0 else 0.0
    # Before the first update moments are zero, and whatever they are divided by.
    return max(1.0 - gone, 1e-12)


POLICIES: dict[str, Callable[[_Merged, OptimizerSection], dict[str, np.ndarray]]] = {
    "reset": _start_anew,
    "rewarm": _start_anew,
    "lift": _lift,
}


def _merging_layers(parent: nn.Layer, prefix: str = "") -> Iterator[tuple[str, MergesState]]:
    if isinstance(parent, MergesState):
        yield prefix, parent
        return
    for name, child in parent.named_children():
        yield from _merging_layers(child, f"{prefix}{name}.")


def _below(prefix: str, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): entry
        for name, entry in entries.items()
        if name.startswith(prefix)
    }


def _check_probes(
    probes: Mapping[str, Sequence[np.ndarray]] | None, policy: str, model_before: nn.Layer
) -> None:
    if not probes:
        return
    if policy != "lift":
        raise ValueError(f"probe gradients are for handover 'lift', not for '{policy}'")
    odd = sorted(probes.keys() ^ set(merged_parameters(model_before)))
    if odd:
        raise ValueError(
            f"probe gradients must be those of all merged parameters, no more: {', '.join(odd)}"
        )
