"""The original FastFFN's arrays (MindSpore) as our weights.

`tests/fixtures/fastffn/` holds what the unmodified original computed with random weights:
vocabulary 97, hidden 16, 2 layers, 2 heads, 32 tokens, rank 8, end-of-text id 96.

`tiny.npz`: weights `p.NAME`, ids, logits and loss, and what its weight_transform.py made of the
weights. `tiny_train.npz`: 8 updates in float32 from there, without dropout, by its own optimizer
and schedule: batches, losses, learning rates, and the last weights `f.NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.gpt import GPTConfig

FOLDER = Path(__file__).parent / "fixtures" / "fastffn"
EOS = 96
CONFIG = GPTConfig(
    vocab_size=97,
    hidden_size=16,
    num_layers=2,
    num_attention_heads=2,
    ffn_hidden_size=64,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    masked_token_id=EOS,
    ffn={"kind": "low_rank", "rank": 8, "init": "normal"},
)


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Read one of the files."""
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def our_weights(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Translate the original's names and its separate q, k, v into our interleaved projection."""
    p = {name[2:]: value for name, value in arrays.items() if name.startswith(prefix)}
    ours = {
        "word_embeddings.weight": p["backbone.word_embedding.embedding_table"],
        "position_embeddings.weight": p["backbone.position_embedding.embedding_table"],
        "norm.weight": p["backbone.layernorm.gamma"],
        "norm.bias": p["backbone.layernorm.beta"],
    }
    for index in range(CONFIG.num_layers):
        theirs, mine = f"backbone.transformer.encoder.blocks.{index}.", f"layers.{index}."
        for number in (1, 2):
            ours[f"{mine}norm{number}.weight"] = p[f"{theirs}layernorm{number}.gamma"]
            ours[f"{mine}norm{number}.bias"] = p[f"{theirs}layernorm{number}.beta"]
        dense = [f"{theirs}attention.dense{number}" for number in (1, 2, 3)]
        weights = [p[f"{name}.weight"].T.reshape(16, 2, 1, 8) for name in dense]
        biases = [p[f"{name}.bias"].reshape(2, 1, 8) for name in dense]
        ours[f"{mine}self_attn.qkv_proj.weight"] = np.concatenate(weights, 2).reshape(16, 48)
        ours[f"{mine}self_attn.qkv_proj.bias"] = np.concatenate(biases, 1).reshape(48)
        ours[f"{mine}self_attn.out_proj.weight"] = p[f"{theirs}attention.projection.weight"]
        ours[f"{mine}self_attn.out_proj.bias"] = p[f"{theirs}attention.projection.bias"]
        for side, name in ((1, "mapping"), (2, "projection")):
            first, second = (f"{theirs}output.fastffn{name}{number}" for number in (1, 2))
            ours[f"{mine}ffn.linear{side}.left"] = p[f"{first}.weight"]
            ours[f"{mine}ffn.linear{side}.right"] = p[f"{second}.weight"]
            ours[f"{mine}ffn.linear{side}.bias"] = p[f"{second}.bias"]
    return ours
