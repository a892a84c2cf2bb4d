"""FleetX's values in the schema's words, and what to type for those that have no counterpart.

Each function takes the value as it was written and raises ValueError with a text that follows the
name of the key.
"""

from __future__ import annotations

from typing import Any

# Tuples: a value may be a list, which no set looks up.
_MODULES = (
    "GPTModule", "GPTEvalModule", "GPTGenerationModule", "GPTModuleAuto", "GPTGenerationModuleAuto",
)  # fmt: skip
_TOKEN_DATASETS = ("GPTDataset", "LM_Eval_Dataset", "Lambada_Eval_Dataset")
_SAMPLERS = ("DistributedBatchSampler", "GPTBatchSampler")
LINEAR = "LinearDecayWithWarmup"
COSINE = "CosineAnnealingWithWarmupDecay"


def check_run_mode(value: Any) -> Any:
    """Accept step and epoch."""
    if value not in ("step", "epoch"):
        raise ValueError(f"must be 'step' or 'epoch', not {value!r}")
    return value


def open_steps(value: Any) -> Any:
    """Return None for FleetX's -1: no limit."""
    return None if type(value) in (int, float) and value < 0 else value


def upper(value: Any) -> Any:
    """Return a text in capitals: the automatic parallel files write `o2`."""
    return value.upper() if isinstance(value, str) else value


def check_module(value: Any) -> Any:
    """Accept the modules of a GPT language model."""
    if value in _MODULES:
        return value
    what = {
        "GPTFinetuneModule": "trains a classifier",
        "MoEModule": "has experts",
        "GPTDistillModule": "distills",
    }.get(str(value), "is no language model of the GPT kind")
    raise ValueError(
        f"{value} {what}, and this is not in this version. For the plain language model type "
        "-o Model.module=GPTModule"
    )


def check_model(value: Any) -> Any:
    """Accept GPT with either tokenizer."""
    if value in ("GPT", "GPT-cn"):
        return value
    what = "experts are not in this version" if value == "MoE" else "models here are GPTs"
    raise ValueError(f"{value}: {what}. For a plain GPT type -o Model.name=GPT")


def check_experts(value: Any) -> Any:
    """Accept one expert, as a number or in a list."""
    counts = value if isinstance(value, list) else [value]
    if all(type(count) is int and count == 1 for count in counts):
        return value
    raise ValueError(f"{value}: experts are not in this version. Type -o Model.num_experts=1")


def check_unit(value: Any) -> Any:
    """Accept a positive integer."""
    if type(value) is not int or value < 1:
        raise ValueError(f"must be an integer of at least 1, not {value!r}")
    return value


def refuse_pretrained(value: Any) -> Any:
    """Refuse a path prefix of weights: they are named on the command line here."""
    raise ValueError(
        f"{value}: convert these weights first, `fastffn convert {value}.pdparams -c FILE`, and "
        "start from them with `fastffn posttrain --from DIR`; type -o Model.pretrained= for both"
    )


def refuse_compression(value: Any) -> Any:
    """Refuse quantisation, pruning and distillation that is switched on."""
    if value is True:
        raise ValueError("is true, and this is not in this version: set it to false")
    if value is not False:
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def optimizer_name(value: Any) -> Any:
    """Return AdamW for FleetX's fused AdamW; refuse the other optimizers of FleetX."""
    if value == "FusedAdamW":
        return "AdamW"
    if value == "Adam":
        raise ValueError(
            "Adam: weight decay is decoupled here. Type -o Optimizer.name=AdamW, and "
            "-o Optimizer.weight_decay=0 for the same mathematics as Adam without decay"
        )
    if value == "Momentum":
        raise ValueError("Momentum: the optimizer here is AdamW. Type -o Optimizer.name=AdamW")
    return value


def schedule_name(value: Any) -> Any:
    """Return the schema's name of a schedule; refuse what has another formula.

    `LinearDecayWithWarmup` is `linear` without warm-up only; its warm-up is looked at later.
    """
    if value in (COSINE, LINEAR):
        return "cosine" if value == COSINE else "linear"
    if value in ("MultiStepDecay", "CosineDecay", "ViTLRScheduler"):
        raise ValueError(
            f"{value}: schedules here are cosine, linear and constant. Type "
            "-o Optimizer.lr.name=cosine, and set max_lr, min_lr, decay_steps and warmup_rate"
        )
    return value


def warmup_key(value: Any) -> str:
    """Return the key of a warm-up: whole numbers are steps, fractions a share of decay_steps."""
    return "Optimizer.lr.warmup_steps" if type(value) is int else "Optimizer.lr.warmup_rate"


def check_clip(value: Any) -> Any:
    """Accept the clip by global norm."""
    if value != "ClipGradByGlobalNorm":
        raise ValueError(
            f"{value}: the clip here is by global norm. Type "
            "-o Optimizer.grad_clip.name=ClipGradByGlobalNorm"
        )
    return value


def check_dataset(value: Any) -> Any:
    """Accept the datasets of token files and the two of the evaluation."""
    if value not in _TOKEN_DATASETS:
        raise ValueError(
            f"{value}: a GPT is trained on token files here (`fastffn prepare` writes them). Name "
            "their folder as input_dir, and write name: GPTDataset"
        )
    return value


def check_sampler(value: Any) -> Any:
    """Accept FleetX's two samplers of a GPT."""
    if value not in _SAMPLERS:
        names = " or ".join(_SAMPLERS)
        raise ValueError(f"{value}: this sampler is not a GPT's. Write {names}, or remove the key")
    return value
