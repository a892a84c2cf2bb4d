"""Hugging Face GPT-2: a folder that `save_pretrained` wrote, or its weights alone.

Names and shapes: transformers 4.57 `modeling_gpt2.py`; its Conv1D holds weights [in, out] as ours
are. The head is the word embedding. Files saved from the bare `GPT2Model` leave the prefix
`transformer.` out; files of its first years carry the causal masks as tensors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastffn_cli.config.schema import ModelSection
from fastffn_cli.data.tokenizer import GPT2_FILES, TOKENIZER_FILE, Tokenizer
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import CheckpointError, FastFFNError, UserError
from fastffn_cli.interop.huggingface_config import (
    MODEL_TYPE,
    read_model_section,
    write_config,
)
from fastffn_cli.interop.huggingface_tokenizer import write_tokenizer
from fastffn_cli.interop.huggingface_weights import (
    find_weights,
    names_of,
    open_weights,
    write_weights,
)
from fastffn_cli.interop.json_file import read_object, write_object
from fastffn_cli.interop.layout import Rule, qkv_blocks, rule
from fastffn_cli.interop.system import Export, Opened, loss_of_masked_token
from fastffn_cli.interop.torch_file import is_torch_file

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PREFIX = "transformer."
HEAD = "lm_head.weight"
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
LAYER = re.compile(r"h\.(\d+)\.")
PARTS = ("weight", "bias")
# What a file must name to be taken for GPT-2; the sizes are read from the same tensors.
MARKS = ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight")


class HuggingFace:
    """GPT-2 of transformers."""

    name = "hf"
    title = "Hugging Face GPT-2"
    activations = ("gelu", "fast_gelu")

    def recognise(self, path: Path) -> bool:
        """Whether config.json says gpt2 or, where it does not say, the tensors have its names.

        A single file of `torch.save` is taken whatever its names.
        """
        config_file = _folder(path) / CONFIG_FILE
        try:
            kind = read_object(config_file).get("model_type") if config_file.is_file() else None
            if kind is not None and kind != MODEL_TYPE:
                return False
            if path.is_dir() and kind == MODEL_TYPE:
                return True
            file = find_weights(path)
            if file == path and is_torch_file(path):
                return True  # nobody else writes them, and `open` can say what is in this one
            return file is not None and _is_gpt2(names_of(file))
        except FastFFNError:
            return False

    def open(self, path: Path) -> Opened:
        """Read config.json and the headers of the weights.

        Raises `CheckpointError` for another kind of model, for what GPT-2 can be configured to and
        a GPT here cannot, and for damaged or missing files.
        """
        config_file = _folder(path) / CONFIG_FILE
        config = read_object(config_file) if config_file.is_file() else None
        kind = (config or {}).get("model_type")
        if kind not in (None, MODEL_TYPE):
            raise CheckpointError(
                f"{config_file} is of a model of type {kind!r}; {MODEL_TYPE!r} is read"
            )
        weights = open_weights(path)
        if not _is_gpt2(weights.tensors):
            raise CheckpointError(
                f"{path} does not hold GPT-2's tensors: {', '.join(MARKS)} are not all there. "
                f"It has {', '.join(list(weights.tensors)[:4])} ..."
            )
        tensors, ignored = _without_head_and_masks(path, weights.tensors, config)
        model, notices = _model_section(config_file, config, tensors)
        tokenizer_dir = _find_tokenizer(path)
        if tokenizer_dir is None:
            notices.append(f"{_folder(path)} has no tokenizer; the checkpoint will have none")
        files = len(weights.files)
        shown = weights.files[0].name if files == 1 else f"{files} shards"
        return Opened(
            title=f"{self.title}, {shown}",
            path=path,
            tensors=tensors,
            model=model,
            ignored=ignored,
            notices=[*weights.notices, *notices],
            tokenizer=partial(_load_tokenizer, tokenizer_dir),
        )

    def rules(self, model: ModelSection, names: Collection[str]) -> Sequence[Rule]:
        """Give the table of names; `UserError` for feed-forwards that are not dense."""
        if model.ffn.kind != "dense":
            raise UserError(
                f"{self.title} has no feed-forward layer of kind {model.ffn.kind!r}",
                hint="Merge the factors first: add --to dense",
            )
        prefix = PREFIX if not names or any(name.startswith(PREFIX) for name in names) else ""
        table = [
            rule("word_embeddings.weight", f"{prefix}wte.weight"),
            rule("position_embeddings.weight", f"{prefix}wpe.weight"),
        ]
        qkv = qkv_blocks(model.num_attention_heads)
        for layer in range(model.num_layers):
            ours, theirs = f"layers.{layer}.", f"{prefix}h.{layer}."
            for part in PARTS:
                table += [
                    rule(f"{ours}norm1.{part}", f"{theirs}ln_1.{part}"),
                    rule(
                        f"{ours}self_attn.qkv_proj.{part}",
                        f"{theirs}attn.c_attn.{part}",
                        arrangement=qkv,
                    ),
                    rule(f"{ours}self_attn.out_proj.{part}", f"{theirs}attn.c_proj.{part}"),
                    rule(f"{ours}norm2.{part}", f"{theirs}ln_2.{part}"),
                    rule(f"{ours}ffn.linear1.{part}", f"{theirs}mlp.c_fc.{part}"),
                    rule(f"{ours}ffn.linear2.{part}", f"{theirs}mlp.c_proj.{part}"),
                ]
        return [*table, *(rule(f"norm.{part}", f"{prefix}ln_f.{part}") for part in PARTS)]

    def write(self, folder: Path, export: Export) -> None:
        """Write what `GPT2LMHeadModel` and `AutoTokenizer` open with `from_pretrained`."""
        model, tokenizer = export.config.Model, export.tokenizer
        export.notices.extend(loss_of_masked_token(self.title, model))
        eos_id = None if tokenizer is None else tokenizer.eos_id
        write_object(folder / CONFIG_FILE, write_config(model, eos_id))
        write_object(
            folder / GENERATION_FILE,
            {"_from_model_config": True, "bos_token_id": eos_id, "eos_token_id": eos_id},
        )
        write_weights(folder, export.tensors)
        if tokenizer is not None:
            write_tokenizer(folder, tokenizer, model.max_position_embeddings)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _is_gpt2(names: Collection[str]) -> bool:
    return any(all(prefix + mark in names for mark in MARKS) for prefix in ("", PREFIX))


def _without_head_and_masks(
    path: Path, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any] | None
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Leave out the causal masks and the head, which must be the word embedding."""
    ignored = [name for name in tensors if MASKS.fullmatch(name.removeprefix(PREFIX))]
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(ignored)}
    head = kept.pop(HEAD, None)
    if head is None:
        if config is not None and config.get("tie_word_embeddings", True) is not True:
            raise CheckpointError(
                f"{path}: tie_word_embeddings is not true, and there is no {HEAD}; the head of "
                "a GPT here is its word embedding"
            )
        return kept, ignored
    embedding = f"{PREFIX}wte.weight" if f"{PREFIX}wte.weight" in kept else "wte.weight"
    kept[embedding] = _tied(path, kept[embedding], head)
    return kept, [*ignored, HEAD]


def _tied(path: Path, embedding: StoredTensor, head: StoredTensor) -> StoredTensor:
    """Give the word embedding, which compares itself with the head when it is read.

    Their digests are compared, so that one of them is in memory at a time.
    """
    untied = CheckpointError(
        f"{path} has an output layer of its own ({HEAD} differs from wte.weight); the head of a "
        "GPT here is its word embedding"
    )
    if head is embedding:
        return embedding
    if head.shape != embedding.shape or head.dtype != embedding.dtype:
        raise untied

    def read() -> np.ndarray:
        if _digest(head) != _digest(embedding):
            raise untied
        return embedding.read()

    return replace(embedding, read=read)


def _digest(tensor: StoredTensor) -> bytes:
    array = np.ascontiguousarray(tensor.read())
    return hashlib.blake2b(array.reshape(-1).view(np.uint8).data).digest()


def _model_section(
    config_file: Path, config: Mapping[str, Any] | None, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, Any], list[str]]:
    """Give the keys of the `Model` section that the files tell, and notices."""
    prefix = PREFIX if PREFIX + MARKS[0] in tensors else ""
    marks = [tensors[prefix + mark].shape for mark in MARKS]
    if any(len(shape) != 2 or 0 in shape for shape in marks):
        raise CheckpointError(
            f"{config_file.parent}: {', '.join(MARKS)} must be matrices, they are "
            f"{', '.join(str(list(shape)) for shape in marks)}"
        )
    wte, wpe, _, feed_forward = marks
    layers = {match[1] for name in tensors if (match := LAYER.match(name.removeprefix(prefix)))}
    sizes = {
        "vocab_size": wte[0],
        "hidden_size": wte[1],
        "num_layers": len(layers),
        "max_position_embeddings": wpe[0],
        "ffn_hidden_size": feed_forward[1],
    }
    if config is None:
        return sizes, [
            f"{config_file} is not there: the sizes are those of the tensors, the number of "
            "attention heads is not known"
        ]
    model, problems = read_model_section(config, sizes)
    if problems:
        raise CheckpointError(
            f"{config_file} describes a model that a GPT here is not:\n" + "\n".join(problems)
        )
    return model, []


def _find_tokenizer(path: Path) -> Path | None:
    folder = _folder(path)
    pair = [name for names in GPT2_FILES for name in names]
    return folder if any((folder / name).is_file() for name in (TOKENIZER_FILE, *pair)) else None


def _load_tokenizer(folder: Path | None) -> Tokenizer | None:
    return None if folder is None else Tokenizer.load(folder)


SYSTEM = HuggingFace()
