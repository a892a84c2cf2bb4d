"""Small GPT-2 models as Hugging Face's files, made without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, LAYERS, WIDE, ROWS, POSITIONS = 12, 3, 2, 20, 61, 32
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": ROWS,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": POSITIONS,
    "n_inner": WIDE,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.2,
    "initializer_range": 0.03,
}


def gpt2_arrays(prefix: str = "transformer.", seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by GPT-2's names, float32."""
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (ROWS, WIDTH),
        "wpe.weight": (POSITIONS, WIDTH),
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        for part, shape in (
            ("ln_1", (WIDTH,)),
            ("attn.c_attn", (WIDTH, 3 * WIDTH)),
            ("attn.c_proj", (WIDTH, WIDTH)),
            ("ln_2", (WIDTH,)),
            ("mlp.c_fc", (WIDTH, WIDE)),
            ("mlp.c_proj", (WIDE, WIDTH)),
        ):
            shapes[f"h.{layer}.{part}.weight"] = shape
            shapes[f"h.{layer}.{part}.bias"] = shape[-1:]
    source = np.random.default_rng(seed)
    return {
        prefix + name: source.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_config(folder: Path, **changes: Any) -> None:
    """Write config.json; a change to `...` leaves the key out."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def write_gpt2(
    folder: Path, arrays: dict[str, np.ndarray] | None = None, **changes: Any
) -> dict[str, np.ndarray]:
    """Write config.json and model.safetensors; return the arrays."""
    write_config(folder, **changes)
    arrays = gpt2_arrays() if arrays is None else arrays
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return arrays


def write_shards(
    folder: Path, places: dict[str, str], shards: dict[str, dict[str, np.ndarray]]
) -> None:
    """Write config.json, an index of `places` and the shards by file name."""
    write_config(folder)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name, arrays in shards.items():
        save_file(arrays, folder / name)


def two_shards() -> tuple[dict[str, str], dict[str, dict[str, np.ndarray]]]:
    """A model in two shards, and the place of each tensor."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    shards: dict[str, dict[str, np.ndarray]] = {names[0]: {}, names[1]: {}}
    places = {}
    for number, (name, array) in enumerate(gpt2_arrays().items()):
        places[name] = names[number % 2]
        shards[places[name]][name] = array
    return places, shards
