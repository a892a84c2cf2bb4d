"""Parameters as numbers: their values, their float32 masters, their own learning rates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle
from paddle import Tensor, nn


def to_float64(tensor: Tensor) -> np.ndarray:
    """Copy a tensor of any float dtype to a float64 array (bfloat16 has no numpy dtype)."""
    if tensor.dtype not in (paddle.float32, paddle.float64):
        tensor = tensor.astype("float32")
    return tensor.numpy().astype(np.float64)


def master_or_value(layer: nn.Layer, name: str, state: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a layer's parameter in float64, from its float32 master where `state` has one."""
    master = state.get(f"{name}.master")
    return to_float64(getattr(layer, name)) if master is None else master.astype(np.float64)


def rate_scale(parameter: Tensor) -> float:
    """Return the multiple of the learning rate at which a parameter trains."""
    return float(parameter.optimize_attr["learning_rate"])
