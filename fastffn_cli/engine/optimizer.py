"""AdamW over named parameters, with a state that is saved by those names.

Paddle keys optimizer state by tensor names that depend on the order of construction
(`linear_0.w_0_moment1_0`); ours is keyed by where a parameter sits in the model
(`layers.0.ffn.linear1.weight.moment1`), so that it fits any process that builds the same model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from fastffn_cli.config.schema_training import OptimizerSection
from models.kernels import adamw, library

# Our name of a state tensor -> Paddle's suffix of the tensor name.
STATE_SUFFIXES = {
    "moment1": "moment1_0",
    "moment2": "moment2_0",
    "beta1_pow": "beta1_pow_acc_0",
    "beta2_pow": "beta2_pow_acc_0",
}


class AdamW:
    """Decoupled Adam on a model's parameters; biases and norms do not decay (FleetX's rule).

    A parameter may carry its own learning rate factor (`ParamAttr(learning_rate=...)`) and its own
    share of the weight decay (`weight_decay_scale`), as the factors of low-rank layers do. Only
    what is `owned` (None: all) is updated and has a state; another process owns the rest.
    """

    def __init__(
        self,
        model: nn.Layer,
        options: OptimizerSection,
        *,
        multi_precision: bool,
        owned: Collection[str] | None = None,
    ) -> None:
        self.parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if not parameter.stop_gradient
        }
        self.owned = {
            name: parameter
            for name, parameter in self.parameters.items()
            if owned is None or name in owned
        }
        # Parameters that stand here as well as, and foremost, in another process.
        self.copied: frozenset[str] = getattr(model, "copied", frozenset())
        self._rate_scales = {
            name: float(parameter.optimize_attr["learning_rate"])
            for name, parameter in self.parameters.items()
        }
        self._decays = {name: options.weight_decay * self._decay_share(name) for name in self.owned}
        self._betas = (options.adam_beta1, options.adam_beta2)
        self._epsilon = options.adam_epsilon
        build = paddle.optimizer.AdamW if options.bias_correction else _UncorrectedAdamW
        self.inner = build(
            learning_rate=0.0,
            beta1=options.adam_beta1,
            beta2=options.adam_beta2,
            epsilon=options.adam_epsilon,
            weight_decay=options.weight_decay,
            multi_precision=multi_precision,
            parameters=self._groups(),
        )

    def _decay_share(self, name: str) -> float:
        return float(getattr(self.owned[name], "weight_decay_scale", 1.0)) if decays(name) else 0.0

    def _groups(self) -> list[dict[str, object]]:
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.owned.items():
            key = self._rate_scales[name], self._decays[name]
            groups.setdefault(key, []).append(parameter)
        return [
            {"params": members, "learning_rate": scale, "weight_decay": decay}
            for (scale, decay), members in groups.items()
        ]

    def set_rate_factors(self, factors: Mapping[str, float]) -> None:
        """Multiply the learning rates of some parameters, for all updates until the next call.

        The factors come on top of the parameters' own, and replace those of the last call. Raises
        `KeyError` for a name that is no parameter's.
        """
        for name, factor in factors.items():
            parameter = self.parameters[name]
            parameter.optimize_attr["learning_rate"] = self._rate_scales[name] * factor

    def step(self, learning_rate: float, *, gradient_factor: float = 1.0) -> None:
        """Update every parameter that is owned from its gradient at this learning rate.

        Gradients count `gradient_factor` times, and may hold the product afterwards.
        """
        trained = {name: each for name, each in self.owned.items() if each.grad is not None}
        gradients = [parameter.grad for parameter in trained.values()]
        if trained and library.serves(*trained.values(), *gradients):
            self._update_at_once(trained, gradients, learning_rate, gradient_factor)
            return
        self.scale_gradients(gradient_factor)
        self.inner.set_lr(learning_rate)
        self.inner.step()

    def _update_at_once(
        self,
        trained: Mapping[str, Tensor],
        gradients: list[Tensor],
        learning_rate: float,
        gradient_factor: float,
    ) -> None:
        """Make the update in the place of Paddle's optimizer, which keeps the state."""
        block = paddle.base.framework.default_main_program().global_block()
        self.inner._create_accumulators(block, list(trained.values()))
        state = self.inner._accumulators
        moment1, moment2, power1, power2 = (
            [state[kind][parameter.name] for parameter in trained.values()]
            for kind in ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")
        )
        adamw.update(
            list(trained.values()),
            gradients,
            (moment1, moment2),
            (power1, power2),
            rates=[
                learning_rate * parameter.optimize_attr["learning_rate"]
                for parameter in trained.values()
            ],
            decays=[self._decays[name] for name in trained],
            betas=self._betas,
            epsilon=self._epsilon,
            gradient_factor=gradient_factor,
        )

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by `factor`, in place."""
        if factor == 1.0:
            return
        with paddle.no_grad():
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.scale_(factor)

    def clear_gradients(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.clear_gradient(False)

    def state(self) -> dict[str, np.ndarray]:
        """Return moments, bias corrections and float32 master weights, by parameter name."""
        stored = self.inner.state_dict()
        masters = stored.get("master_weights", {})
        arrays: dict[str, np.ndarray] = {}
        for name, parameter in self.owned.items():
            master = masters.get(parameter.name)
            owner = parameter.name
            if master is not None:
                arrays[f"{name}.master"] = master.numpy()
                owner = master.name
            for ours, suffix in STATE_SUFFIXES.items():
                tensor = stored.get(f"{owner}_{suffix}")
                if tensor is not None:
                    arrays[f"{name}.{ours}"] = tensor.numpy()
        return arrays

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore what `state` returned; raises `KeyError` naming a missing tensor.

        A state saved before the first update is empty and leaves the optimizer as it is.
        """
        if not arrays:
            return
        restored: dict[str, object] = {}
        masters: dict[str, Tensor] = {}
        for name, parameter in self.owned.items():
            owner = parameter.name
            master = arrays.get(f"{name}.master")
            if master is not None:
                owner = f"{parameter.name}_fp32_master_0"
                masters[parameter.name] = paddle.to_tensor(master)
                masters[parameter.name].name = owner
            for ours, suffix in STATE_SUFFIXES.items():
                restored[f"{owner}_{suffix}"] = paddle.to_tensor(arrays[f"{name}.{ours}"])
        if masters:
            restored["master_weights"] = masters
        self.inner.set_state_dict(restored)


class _UncorrectedAdamW(paddle.optimizer.AdamW):
    """AdamW without bias correction, as MindSpore's optimizers are, to the last bit.

    Paddle corrects by 1 - beta^t and keeps beta^t as a state tensor, which each update multiplies
    by beta. Begun at 0 it stays 0, and the correction is 1.
    """

    def _add_accumulator(self, *arguments: Any, **options: Any) -> Tensor:
        return super()._add_accumulator(*arguments, **{**options, "fill_value": 0.0})


def decays(name: str) -> bool:
    """Whether the parameter of this name is subject to weight decay."""
    return "bias" not in name and "norm" not in name
