"""GPT-2's config.json and the `Model` section, in both directions.

Keys, defaults and formulas: transformers 4.57, `models/gpt2/configuration_gpt2.py`,
`modeling_gpt2.py` and `activations.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from fastffn_cli.config.schema import ModelSection

MODEL_TYPE = "gpt2"
LAYER_NORM_EPSILON = 1e-5
# Five spellings of 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
TANH_GELUS = (
    "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh",
)  # fmt: skip
# Theirs and ours of the other activation.
QUICK_GELU, FAST_GELU = "quick_gelu", "fast_gelu"
# Their key, ours, and what a file without the key means.
SIZES = (
    ("vocab_size", "vocab_size", 50257),
    ("n_embd", "hidden_size", 768),
    ("n_layer", "num_layers", 12),
    ("n_positions", "max_position_embeddings", 1024),
    ("n_inner", "ffn_hidden_size", None),
)
HEADS = ("n_head", "num_attention_heads", 12)
# Switches that change the function, and the value at which it is ours.
SWITCHES = {
    "scale_attn_weights": (True, "attention scores are always divided by sqrt(head size)"),
    "scale_attn_by_inverse_layer_idx": (False, "attention scores do not depend on the layer"),
    "add_cross_attention": (False, "there is no encoder to attend to"),
}


def read_model_section(
    config: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Translate a config.json: keys of the `Model` section, and problems.

    `sizes` are those of the tensors, by our names: the file must agree with them. Problems are what
    the file has wrong and what a GPT here does not compute.
    """
    problems: list[str] = []
    model: dict[str, Any] = dict(sizes)
    _check_sizes(config, sizes, problems)
    heads = _positive(config, HEADS[0], HEADS[2], problems)
    if heads is not None and sizes["hidden_size"] % heads:
        problems.append(f"n_head {heads} does not divide n_embd {sizes['hidden_size']}")
    model[HEADS[1]] = heads
    _check_function(config, problems)
    if config.get("activation_function") == QUICK_GELU:
        model["hidden_act"] = FAST_GELU
    residual = _fraction(config, "resid_pdrop", problems)
    embedding = _fraction(config, "embd_pdrop", problems)
    model["hidden_dropout_prob"] = residual
    model["attention_probs_dropout_prob"] = _fraction(config, "attn_pdrop", problems)
    start = config.get("initializer_range", 0.02)
    if not _is_number(start) or start <= 0:
        problems.append(f"initializer_range is {start!r}, which is no positive number")
    model["initializer_range"] = start
    if residual != embedding:  # blank stands for the same
        model["embedding_dropout_prob"] = embedding
    return model, problems


def _check_sizes(config: Mapping[str, Any], sizes: Mapping[str, int], problems: list[str]) -> None:
    """Compare the sizes of the file with those of the tensors."""
    for theirs, ours, default in SIZES:
        if theirs == "n_inner" and config.get(theirs) is None:
            value: int | None = 4 * sizes["hidden_size"]
        elif theirs == "n_positions" and theirs not in config and "n_ctx" in config:
            value = _positive(config, "n_ctx", default, problems)
        else:
            value = _positive(config, theirs, default, problems)
        if value is not None and value != sizes[ours]:
            said = "blank, that is 4 n_embd" if config.get(theirs) is None else f"{value}"
            problems.append(f"{theirs} is {said}, the tensors have {sizes[ours]}")


def _check_function(config: Mapping[str, Any], problems: list[str]) -> None:
    """List what makes the model another function than a GPT of this program."""
    activation = config.get("activation_function", "gelu_new")
    if activation not in (*TANH_GELUS, QUICK_GELU):
        problems.append(
            f"activation_function is {activation!r}; only the tanh form of GELU is computed "
            f"({', '.join(TANH_GELUS)}), and {QUICK_GELU}"
        )
    epsilon = config.get("layer_norm_epsilon", LAYER_NORM_EPSILON)
    if not _is_number(epsilon) or not math.isclose(epsilon, LAYER_NORM_EPSILON, rel_tol=1e-6):
        problems.append(f"layer_norm_epsilon is {epsilon!r}; only 1e-5 is computed")
    for key, (wanted, reason) in SWITCHES.items():
        if config.get(key, wanted) is not wanted:
            problems.append(f"{key} is {config[key]!r}: {reason}")


def _positive(
    config: Mapping[str, Any], key: str, default: int | None, problems: list[str]
) -> int | None:
    value = config.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    problems.append(f"{key} is {value!r}, which is no positive integer")
    return None


def _fraction(config: Mapping[str, Any], key: str, problems: list[str]) -> float:
    value = config.get(key, 0.1)
    if _is_number(value) and 0 <= value < 1:
        return float(value)
    problems.append(f"{key} is {value!r}, expected a number from 0 up to 1")
    return 0.0


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # neither NaN nor a number without end


def write_config(model: ModelSection, eos_id: int | None) -> dict[str, Any]:
    """Give the config.json of a dense model; `eos_id` begins and ends its documents."""
    wide = model.ffn_hidden_size
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": MODEL_TYPE,
        "vocab_size": model.vocab_size,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_attention_heads,
        "n_inner": None if wide in (None, 4 * model.hidden_size) else wide,
        "n_positions": model.max_position_embeddings,
        "n_ctx": model.max_position_embeddings,
        "activation_function": QUICK_GELU if model.hidden_act == FAST_GELU else "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "initializer_range": model.initializer_range,
        "resid_pdrop": model.hidden_dropout_prob,
        "embd_pdrop": (
            model.hidden_dropout_prob
            if model.embedding_dropout_prob is None
            else model.embedding_dropout_prob
        ),
        "attn_pdrop": model.attention_probs_dropout_prob,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "torch_dtype": "float32",
    }
