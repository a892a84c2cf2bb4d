"""MindFormers' values in the schema's words, and what to type for those without a counterpart.

Each function takes the value as it was written and raises ValueError with a text that follows the
name of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

# The optimizers of one formula: no bias correction, decoupled decay, moments in float32.
ADAM_WEIGHT_DECAYS = (
    "FusedAdamWeightDecay", "FP32StateAdamWeightDecay", "AdamWeightDecay", "adamw", "AdamW",
)  # fmt: skip
# Names and aliases of `mindformers/core/lr/build_lr.py`.
SCHEDULES = {
    "polynomial": "polynomial", "PolynomialWithWarmUpLR": "polynomial",
    "linear": "linear", "LinearWithWarmUpLR": "linear",
    "cosine": "cosine", "CosineWithWarmUpLR": "cosine",
    "cosine_with_restarts": "cosine_restarts", "CosineWithRestartsAndWarmUpLR": "cosine_restarts",
    "constant_with_warmup": "constant", "constant": "constant", "ConstantWarmUpLR": "constant",
}  # fmt: skip
DEVICES = {"Ascend": "npu", "GPU": "gpu", "CPU": "cpu"}
DTYPES = ("float16", "bfloat16", "float32")
WRAPPERS = ("MFTrainOneStepCell", "MFPipelineWithLossScaleCell", "TrainOneStepCell",
            "TrainOneStepWithLossScaleCell")  # fmt: skip
LARGEST_SCALE = 65536


def only(accepted: Any, remedy: str) -> Callable[[Any], Any]:
    """Return a check that accepts one value, or those of a collection, and else says `remedy`."""
    several = accepted if isinstance(accepted, (tuple, dict)) else (accepted,)

    def check(value: Any) -> Any:
        if any(value == each and type(value) is type(each) for each in several):
            return value
        raise ValueError(f"{value}: {remedy}")

    return check


def at_most_one(remedy: str) -> Callable[[Any], Any]:
    """Return a check that accepts 0 and 1."""

    def check(value: Any) -> Any:
        if type(value) is int and value <= 1:
            return value
        raise ValueError(f"{value}: {remedy}")

    return check


def flag(value: Any) -> Any:
    """Accept true and false."""
    if type(value) is not bool:
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def positive(value: Any) -> Any:
    """Accept an integer of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"must be an integer of at least 1, not {value!r}")
    return value


def open_count(value: Any) -> Any:
    """Return None for -1: as long as the run."""
    return None if type(value) is int and value < 0 else value


def blank_text(remedy: str) -> Callable[[Any], Any]:
    """Return a check that accepts an empty text."""
    return only("", remedy)


def device(value: Any) -> Any:
    """Return the schema's word for a device target."""
    if not isinstance(value, str) or value not in DEVICES:
        raise ValueError(f"must be one of {', '.join(DEVICES)}, not {value!r}")
    return DEVICES[value]


def schedule(value: Any) -> Any:
    """Return the schema's name of a schedule."""
    if not isinstance(value, str) or value not in SCHEDULES:
        raise ValueError(
            f"{value}: schedules are {_shown(SCHEDULES)}. Type -o lr_schedule.type=cosine"
        )
    return SCHEDULES[value]


def optimizer(value: Any) -> Any:
    """Return AdamW for the optimizers of its formula."""
    if value not in ADAM_WEIGHT_DECAYS:
        raise ValueError(
            f"{value}: the optimizer here is AdamW. Type -o optimizer.type=FusedAdamWeightDecay"
        )
    return "AdamW"


def activation(value: Any) -> Any:
    """Return the schema's name of an activation."""
    if value not in ("gelu", "fast_gelu"):
        raise ValueError(
            f"{value}: activations are gelu and fast_gelu. Type "
            "-o model.model_config.hidden_act=gelu for another model"
        )
    return value


def dtype(value: Any) -> Any:
    """Accept the number types that weights may have."""
    if value not in DTYPES:
        raise ValueError(f"must be one of {', '.join(DTYPES)}, not {value!r}")
    return value


def loss_scale(value: Any) -> Any:
    """Return a first loss scale by which float16 gradients do not overflow at once."""
    return 32768.0 if type(value) is int and value > LARGEST_SCALE else value


def decode_strategy(value: Any) -> Any:
    """Return the schema's word for drawing tokens or not."""
    return "sampling" if flag(value) else "greedy_search"


def parallel_mode(value: Any) -> Any:
    """Accept MindSpore's four modes."""
    return only((0, 1, 2, 3), "modes are 0 to 3. Type -o parallel.parallel_mode=1")(value)


def _shown(names: Collection[str]) -> str:
    return ", ".join(names)
