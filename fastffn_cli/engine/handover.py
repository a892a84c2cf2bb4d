"""What becomes of AdamW's state when feed-forwards are made dense, and when they are made cheap.

Only the parameters that a change makes are new to the optimizer; every other one keeps its state to
the bit. How a kind of layer turns its own state into that of its dense form, and back, is the
layer's knowledge (`models.ffn.moments`: `MergesState`, `SplitsState`, `MovesMerged`): this module
finds such layers and names none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from paddle import nn

from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.engine.handover_policies import POLICIES, POWERS, NewParameter, State
from models.ffn.moments import MergesState, MovesMerged, SplitsState

ENTRIES = ("moment1", "moment2", *POWERS, "master")
Probes = Mapping[str, Sequence[np.ndarray]]


def hand_over(
    state: State,
    model_before: nn.Layer,
    policy: str,
    *,
    options: OptimizerSection,
    probes: Probes | None = None,
    model_after: nn.Layer | None = None,
) -> dict[str, np.ndarray]:
    """Return the optimizer state of the merged model from that of the model before the merge.

    `state` is what `AdamW.state` returned, `model_before` the model it belongs to, not yet merged,
    `options` what the optimizer was built with. Policies, for the merged parameters alone:
        `reset`   moments of zero and a step counter of their own, as after AdamW's construction,
                  hidden units that were there before included: a parameter has one counter;
        `rewarm`  the same, for a learning rate that `rewarm_factor` scales;
        `lift`    the layer's moments, lifted to the merged parameter (`models.ffn.moments`), and
                  their step counter, from the first source. What was copied stays as it is, to the
                  bit; grown hidden units begin as `grow_moments` says. No second moment that was
                  estimated is left below the square of the first (both bias-corrected), which no
                  average of squares is: an entry that the lift knows little of then asks for the
                  learning rate at most, as after a reset. `probes` are dense gradients by the names
                  of all `merged_parameters`, which set the size of the estimated second moments
                  (`models.ffn.moments.probe_scale`).
    New arrays are float32. In half precision a new master is the product of the factors' masters;
    those of grown hidden units are read from `model_after`, the merged model, which has drawn them.
    An empty state, of an optimizer before its first update, stays empty.

    Raises `ValueError` for an unknown policy, for probes that do not fit, for a layer that knows no
    lift and for masters that grow without `model_after`; `KeyError`, naming the tensor, for a state
    that is not the model's.
    """
    _check_policy(policy)
    _check_probes(probes, policy, model_before)
    if not state:
        return {}
    new = [
        parameter
        for prefix, layer in merging_layers(model_before)
        for parameter in _gather_merged(prefix, layer, state, probes or {})
    ]
    handed = _without(state, {source for one in new for source in one.sources})
    values = dict(model_after.named_parameters()) if model_after is not None else {}
    for parameter in new:
        entries = POLICIES[policy](parameter, options)
        if "master" in parameter.known:
            entries["master"] = _grow_master(parameter, values)
        handed.update(_float32(parameter.name, entries))
    return handed


def hand_down(
    state: State,
    model_before: nn.Layer,
    model_after: nn.Layer,
    policy: str,
    *,
    options: OptimizerSection,
) -> dict[str, np.ndarray]:
    """Return the optimizer state of a cheap model from that of the dense one it was made of.

    `state` is what `AdamW.state` returned for `model_before`; `model_after` comes from a copy of it
    by `models.ffn.approximate`. The policies are those of `hand_over`, for what the cheap layers
    have in the place of dense parameters; a parameter that both models have keeps its state. With
    `lift`, factors get what the chain rule makes of the dense moments (`models.ffn.moments.
    split_moments`) and the dense parameter's step counter. In half precision the masters of new
    parameters are their values.

    Raises `ValueError` for an unknown policy, for a layer that cannot take the state over and for a
    model that is not made of the other; `KeyError`, naming the tensor, for a state that is not
    `model_before`'s.
    """
    _check_policy(policy)
    if not state:
        return {}
    new = [
        parameter
        for prefix, layer in merging_layers(model_after)
        for parameter in _gather_split(prefix, layer, state, policy)
    ]
    _check_counterparts(model_before, model_after, new)
    handed = _without(state, {source for one in new for source in one.sources})
    values = dict(model_after.named_parameters())
    for parameter in new:
        entries = POLICIES[policy](parameter, options)
        if f"{parameter.sources[0]}.master" in state:
            entries["master"] = values[parameter.name].astype("float32").numpy()
        handed.update(_float32(parameter.name, entries))
    return handed


def merged_parameters(model_before: nn.Layer) -> list[str]:
    """Name the parameters that merging the model will make, e.g. `layers.0.ffn.linear1.weight`."""
    return [
        prefix + name
        for prefix, layer in merging_layers(model_before)
        for name in layer.merged_parameters()
    ]


def start_rates(model_before: nn.Layer, policy: str) -> dict[str, float]:
    """Return the factor on each merged parameter's learning rate at the first update.

    `reset` has 1 and `rewarm` 0. `lift` goes on with updates of the size that the layer's have had
    (`models.ffn.moments.MovesMerged`), and with 1 for what a layer says nothing of, which is what
    it copies. A parameter has one factor: grown hidden units move at that of the ones before them,
    and what lies between the blocks of a block-diagonal weight at that of the blocks.
    `rewarm_factor` leads from here to 1. Raises `ValueError` for an unknown policy.
    """
    _check_policy(policy)
    rates = dict.fromkeys(merged_parameters(model_before), 0.0 if policy == "rewarm" else 1.0)
    if policy == "lift":
        for prefix, layer in merging_layers(model_before):
            if isinstance(layer, MovesMerged):
                rates |= {prefix + name: rate for name, rate in layer.merged_rates().items()}
    return rates


def rewarm_factor(step: int, over: int, start: float = 0.0) -> float:
    """Return the factor on the learning rate of parameters that a change made.

    It goes in a straight line from `start` at the first update after the change (`step` 1) to 1 at
    update `over`, and stays there. For `start_rates`' parameters only: warming up what did not
    change as well loses progress.
    """
    if step >= over:
        return 1.0
    return start + (1.0 - start) * (step - 1) / (over - 1) if step > 1 else start


def _gather_merged(
    prefix: str, layer: MergesState, state: State, probes: Probes
) -> Iterator[NewParameter]:
    lifted = _ask(prefix, layer.merge_state, state)
    for name, parameter in layer.merged_parameters().items():
        yield NewParameter(
            name=prefix + name,
            shape=parameter.shape,
            sources=tuple(prefix + source for source in parameter.sources),
            known=_below(f"{name}.", lifted),
            powers=_powers(f"{prefix}{parameter.sources[0]}", state),
            probes=probes.get(prefix + name, ()),
        )


def _gather_split(
    prefix: str, layer: MergesState, state: State, policy: str
) -> Iterator[NewParameter]:
    own = dict(layer.named_parameters())  # type: ignore[attr-defined]
    known: State = {}
    if policy == "lift" and isinstance(layer, SplitsState):
        known = _ask(prefix, layer.split_state, state)
    for dense, parameter in layer.merged_parameters().items():
        for name in parameter.sources:
            yield NewParameter(
                name=prefix + name,
                shape=tuple(own[name].shape),
                sources=(prefix + dense,),
                known=_below(f"{name}.", known),
                powers=_powers(prefix + dense, state),
            )


def _ask(prefix: str, answer: Callable[[State], State], state: State) -> State:
    """Have a layer convert its part of the state."""
    try:
        return answer(_below(prefix, state))
    except KeyError as missing:
        raise KeyError(f"{prefix}{missing.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{prefix.removesuffix('.')}: {error}") from None


def _powers(name: str, state: State) -> State:
    return {power: state[f"{name}.{power}"] for power in POWERS}


def _grow_master(new: NewParameter, values: Mapping[str, object]) -> np.ndarray:
    """Return the float32 master with the merged model's own entries where hidden units grew."""
    master = new.known["master"]
    if master.shape == new.shape:
        return master
    if new.name not in values:
        raise ValueError(f"'{new.name}' grows: its new masters are read from `model_after`")
    grown = values[new.name].astype("float32").numpy()  # type: ignore[attr-defined]
    grown[tuple(slice(size) for size in master.shape)] = master
    return grown


def merging_layers(parent: nn.Layer, prefix: str = "") -> Iterator[tuple[str, MergesState]]:
    """Yield the layers that merge into parameters of their own, behind their path and a dot."""
    if isinstance(parent, MergesState):
        yield prefix, parent
        return
    for name, child in parent.named_children():
        yield from merging_layers(child, f"{prefix}{name}.")


def _below(prefix: str, entries: State) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): entry
        for name, entry in entries.items()
        if name.startswith(prefix)
    }


def _without(state: State, parameters: Iterable[str]) -> dict[str, np.ndarray]:
    gone = {f"{name}.{entry}" for name in parameters for entry in ENTRIES}
    return {name: array for name, array in state.items() if name not in gone}


def _float32(name: str, entries: State) -> dict[str, np.ndarray]:
    return {f"{name}.{entry}": array.astype(np.float32) for entry, array in entries.items()}


def _check_policy(policy: str) -> None:
    if policy not in POLICIES:
        raise ValueError(f"unknown handover '{policy}'; there are {', '.join(POLICIES)}")


def _check_probes(probes: Probes | None, policy: str, model_before: nn.Layer) -> None:
    if not probes:
        return
    if policy != "lift":
        raise ValueError(f"probe gradients are for handover 'lift', not for '{policy}'")
    shapes = {
        prefix + name: parameter.shape
        for prefix, layer in merging_layers(model_before)
        for name, parameter in layer.merged_parameters().items()
    }
    if odd := sorted(probes.keys() ^ shapes.keys()):
        raise ValueError(
            f"probe gradients must be those of all merged parameters, no more: {', '.join(odd)}"
        )
    for name, gradients in probes.items():
        for gradient in gradients:
            if gradient.shape != shapes[name]:
                raise ValueError(
                    f"a probe gradient of '{name}' is {gradient.shape}, not {shapes[name]}"
                )


def _check_counterparts(
    model_before: nn.Layer, model_after: nn.Layer, new: Iterable[NewParameter]
) -> None:
    """Refuse parameters of the model after that neither are new nor were there before."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model_before.named_parameters()}
    known = {parameter.name for parameter in new}
    odd = [
        name
        for name, parameter in model_after.named_parameters()
        if name not in known and shapes.get(name) != tuple(parameter.shape)
    ]
    if odd:
        raise ValueError(f"the model before has no parameter of that name and shape: {odd[0]}")
