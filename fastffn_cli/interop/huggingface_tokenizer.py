"""A tokenizer in the files that transformers' `AutoTokenizer` opens.

Keys: transformers 4.57 `tokenization_utils_base.py`. In transformers the end-of-text token is found
inside a text as well; here a text never becomes a special token (`data.tokenizer`). Every text
without the literal has the same ids in both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastffn_cli.data.tokenizer import GPT2_FILES, TOKENIZER_FILE, Tokenizer
from fastffn_cli.interop.json_file import write_object

# GPT-2's way of cutting a text into words; vocab.json and merges.txt stand for it alone.
GPT2_PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
# Options of the library's BPE that GPT-2 does not have.
OTHER_BPE = (
    "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges",
)  # fmt: skip


def write_tokenizer(folder: Path, tokenizer: Tokenizer, longest: int) -> None:
    """Write tokenizer.json, its two side files and, for GPT-2's kind, vocab.json + merges.txt.

    `longest` is the number of positions of the model.
    """
    library = tokenizer.library_json()
    (folder / TOKENIZER_FILE).write_text(library, encoding="utf-8")
    token = tokenizer.eos_token
    specials = {"bos_token": token, "eos_token": token}
    write_object(folder / "special_tokens_map.json", specials)
    write_object(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **specials,
            "model_max_length": longest,
            "clean_up_tokenization_spaces": False,
        },
    )
    content = json.loads(library)
    if _is_gpt2(content):
        _write_pair(folder, content)


def _write_pair(folder: Path, content: dict[str, Any]) -> None:
    """Write vocab.json, special tokens in it as in GPT-2's own, and merges.txt."""
    vocabulary, merges = (folder / name for name in GPT2_FILES[0])
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    write_object(vocabulary, {**content["model"]["vocab"], **special})
    pairs = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    merges.write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")


def _is_gpt2(content: dict[str, Any]) -> bool:
    """Whether vocabulary and merges alone give the same ids."""
    model, cut = content["model"], content["pre_tokenizer"] or {}
    return (
        model["type"] == "BPE"
        and not any(model.get(option) for option in OTHER_BPE)
        and content["normalizer"] is None
        and {key: cut.get(key) for key in GPT2_PRE_TOKENIZER} == GPT2_PRE_TOKENIZER
        and all(token["special"] for token in content["added_tokens"])
    )
