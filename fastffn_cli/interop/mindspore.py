"""MindSpore: GPTs of the original FastFFN, stage 1 and 2, and of MindFormers.

Query, key and value projections are three tensors [out, in]; all other weights are [in, out], as
ours. The head is the word embedding. A file tells every size but the number of attention heads.

Both hide the end-of-text token from attention (`input_mask = tokens != eos`), so what is read here
has `Model.masked_token_id`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastffn_cli.config.schema import ModelSection
from fastffn_cli.data.tokenizer import TOKENIZER_FILE, Tokenizer
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import CheckpointError, UserError
from fastffn_cli.interop.layout import Rule, qkv_separate
from fastffn_cli.interop.mindspore_ckpt import looks_like_ckpt, read_ckpt, write_ckpt
from fastffn_cli.interop.mindspore_names import (
    ATTENTION,
    BLOCK,
    BLOCK_NAMES,
    DENSE,
    FACTOR,
    FASTFFN,
    FFN_NAMES,
    POSITIONS,
    WORDS,
    NameFinder,
    Naming,
    is_weight,
    shorten,
)
from fastffn_cli.interop.system import Export, Opened

SUFFIX = ".ckpt"
ORIGINAL_RANK = 8
GPT2_END_OF_TEXT = 50256

# What training saves: NAME-EPOCH_STEP.ckpt, STEP counted inside the epoch.
SAVED_NAME = re.compile(r"(.+)-(\d{1,9})_(\d{1,9})\.ckpt")
GLOBAL_STEP = "global_step"


class MindSpore:
    """GPTs in .ckpt files; what is written has the names of `naming`."""

    def __init__(
        self,
        name: str,
        title: str,
        naming: Naming,
        kinds: Collection[str],
        activations: Collection[str] = ("gelu",),
    ) -> None:
        self.activations = activations
        self.name = name
        self.title = title
        self.naming = naming
        self.kinds = kinds

    def recognise(self, path: Path) -> bool:
        """Whether a file begins as a .ckpt of whatever model does, or a folder holds such files."""
        try:
            return any(map(looks_like_ckpt, _ckpt_files(path) if path.is_dir() else [path]))
        except OSError:
            return False

    def open(self, path: Path) -> Opened:
        """Name the tensors and find the sizes.

        Of a folder the newest file is taken, where the names NAME-EPOCH_STEP.ckpt of one NAME tell.
        Raises `CheckpointError` for what is damaged, no GPT, or not one of its kinds of blocks.
        """
        file, notices = _choose_file(path) if path.is_dir() else (path, [])
        contents = read_ckpt(file)
        weights = {
            name: tensor for name, tensor in contents.tensors.items() if not _is_state(name, tensor)
        }
        model = _read_sizes(file, weights)
        eos = model["masked_token_id"]
        notices.append(
            f"token {eos} (end of text) is hidden from attention, as MindSpore's GPTs do it: "
            f"Model.masked_token_id is {eos}; -o Model.masked_token_id=N names another one, null "
            "none"
        )
        step, step_notice = _find_step(file, contents.tensors)
        kind = model["ffn"]
        if kind["kind"] == "dense":
            notices.append(
                "a .ckpt does not tell its activation, and gelu is taken: add "
                "-o Model.hidden_act=fast_gelu for MindFormers' GPT2-13B and 52B"
            )
        shown = f"FastFFN of rank {kind['rank']}" if kind["kind"] == "low_rank" else "dense"
        return Opened(
            title=f"MindSpore GPT, {shown}, {file.name}",
            path=file,
            tensors=weights,
            model=model,
            step=step,
            ignored=[*contents.texts, *(name for name in contents.tensors if name not in weights)],
            notices=[*notices, *step_notice],
            tokenizer=partial(_load_tokenizer, path),
        )

    def rules(self, model: ModelSection, names: Collection[str]) -> Sequence[Rule]:
        """Give the table of names; `UserError` for a kind of feed-forward that there is not."""
        kind = model.ffn.kind
        if kind not in (FFN_NAMES if names else self.kinds):
            raise UserError(
                f"{self.title} has no feed-forward layer of kind {kind!r}",
                hint="Merge the factors first: add --to dense",
            )
        stay_dense = getattr(model.ffn, "dense_layers", ())
        if stay_dense:
            raise UserError(
                f"{self.title} has one kind of feed-forward for all layers, and layers "
                f"{', '.join(map(str, stay_dense))} are dense here",
                hint="Merge the others, too: add --to dense",
            )
        find = NameFinder(names, self.naming)
        table = [
            find.rule("word_embeddings.weight", WORDS),
            find.rule("position_embeddings.weight", POSITIONS),
        ]
        qkv = qkv_separate(model.num_attention_heads, transposed=True)
        qkv_bias = qkv_separate(model.num_attention_heads)
        for layer in range(model.num_layers):
            ours, theirs = f"layers.{layer}.", f"blocks.{layer}."
            for part, arrangement in (("weight", qkv), ("bias", qkv_bias)):
                three = [f"{theirs}{name}.{part}" for name in ATTENTION]
                table.append(
                    find.rule(f"{ours}self_attn.qkv_proj.{part}", *three, arrangement=arrangement)
                )
            table += [
                find.rule(ours + name, theirs + other)
                for name, other in (*BLOCK_NAMES.items(), *FFN_NAMES[kind].items())
            ]
        return [
            *table,
            find.rule("norm.weight", "layernorm.gamma"),
            find.rule("norm.bias", "layernorm.beta"),
        ]

    def write(self, folder: Path, export: Export) -> None:
        """Write gpt-1_STEP.ckpt, and the tokenizer beside it, for our own use.

        The name is one that the original's trainer finds in a folder. Unlike MindSpore's own files
        it may be written to and removed as any other.
        """
        export.notices.extend(_remarks(export.config.Model))
        stem = f"gpt-1_{export.step}" if export.step else "gpt"
        write_ckpt(folder / f"{stem}{SUFFIX}", export.tensors)
        if export.tokenizer is not None:
            export.tokenizer.save(folder)


def _remarks(model: ModelSection) -> list[str]:
    """Say what the file cannot tell, and where the original's code computes something else."""
    rank = getattr(model.ffn, "rank", ORIGINAL_RANK)
    notices = [
        "a .ckpt does not tell its sizes; the model that loads it needs "
        f"vocab_size={model.vocab_size}, hidden_size={model.hidden_size}, "
        f"num_layers={model.num_layers}, num_heads={model.num_attention_heads}, "
        f"seq_length={model.max_position_embeddings}"
    ]
    if model.hidden_act != "gelu":
        notices.append(f"the model that loads it needs hidden_act={model.hidden_act}, too")
    if rank != ORIGINAL_RANK:
        notices.append(
            f"the original FastFFN has the rank {ORIGINAL_RANK} in its code; set it to {rank} there"
        )
    if model.ffn_hidden_size not in (None, 4 * model.hidden_size):
        notices.append(
            "MindSpore's GPTs have feed-forwards of 4 times hidden_size; here they are "
            f"{model.ffn_hidden_size:,}, which has to be set in their code"
        )
    if model.masked_token_id is None:
        notices.append(
            "MindSpore's GPTs hide the end-of-text token from attention, this model does not: what "
            "they compute differs behind the end of a document"
        )
    elif model.masked_token_id != GPT2_END_OF_TEXT:
        notices.append(
            f"token {model.masked_token_id} is hidden from attention; MindSpore's GPTs hide their "
            f"eos_token, {GPT2_END_OF_TEXT} where it is not set"
        )
    return notices


def _is_state(name: str, tensor: StoredTensor) -> bool:
    """Whether an entry belongs to the training: a number, or `adam_m.` and the name of a weight."""
    if is_weight(name):
        return False
    return tensor.size <= 1 or is_weight(name.partition(".")[2])


def _read_sizes(file: Path, weights: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Give the keys of the `Model` section that shapes tell."""
    shapes, problems = _index_shapes(weights)
    found = [match for short in shapes if (match := BLOCK.fullmatch(short))]
    blocks, low_rank, dense = (
        {int(match[1]) for match in found if name in (None, match[2])}
        for name in (None, FACTOR, DENSE)
    )
    if low_rank and dense:
        problems.append(
            f"it has both kinds of feed-forwards: factors (blocks {_listed(low_rank)}) and dense "
            f"ones (blocks {_listed(dense)})"
        )
    absent = set(range(max(blocks, default=0))) - blocks
    if absent:
        problems.append(f"blocks {_listed(absent)} of {max(blocks) + 1} are missing")
    inner = "blocks.0.output.fastffnmapping2.weight" if low_rank else f"blocks.0.{DENSE}"
    matrices = [WORDS, POSITIONS, inner, *([f"blocks.0.{FACTOR}"] if low_rank else [])]
    for short in matrices:
        if short not in shapes:
            problems.append(f"there is no {short}")
        elif len(shapes[short]) != 2 or 0 in shapes[short]:
            problems.append(f"{short} is {list(shapes[short])}, expected a matrix")
    if problems:
        there = ", ".join([*weights][:3]) or "none"
        raise CheckpointError(
            f"{file} is a MindSpore checkpoint, but not of a GPT that can be read:\n"
            + "\n".join(problems),
            hint=f"Its tensors are {there} ...; FastFFN and MindFormers' GPT-2 are read",
        )
    ffn: dict[str, Any] = {"kind": "dense"}
    if low_rank:
        ffn = {"kind": "low_rank", "rank": shapes[f"blocks.0.{FACTOR}"][1]}
    return {
        "vocab_size": shapes[WORDS][0],
        "hidden_size": shapes[WORDS][1],
        "num_layers": len(blocks),
        "ffn_hidden_size": shapes[inner][1],
        "max_position_embeddings": shapes[POSITIONS][0],
        "masked_token_id": min(shapes[WORDS][0] - 1, GPT2_END_OF_TEXT),
        "embedding_dropout_prob": 0.0,
        "ffn": ffn,
    }


def _index_shapes(
    weights: Mapping[str, StoredTensor],
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Give shapes by the names without prefixes, and which of those are there twice."""
    names: dict[str, str] = {}
    problems = [
        f"{other} and {name} are the same tensor"
        for name in weights
        if (other := names.setdefault(shorten(name), name)) != name
    ]
    return {short: weights[name].shape for short, name in names.items()}, problems


def _listed(numbers: Iterable[int]) -> str:
    several = sorted(numbers)
    return ", ".join(map(str, several[:5])) + (", ..." if len(several) > 5 else "")


def _find_step(file: Path, tensors: Mapping[str, StoredTensor]) -> tuple[int, list[str]]:
    """Give the step that the optimizer counted, or else the one in the file's name."""
    counted = tensors.get(GLOBAL_STEP)
    if counted is not None and counted.size == 1 and "int" in counted.dtype:
        return max(0, int(counted.read().reshape(-1)[0])), []
    name = SAVED_NAME.fullmatch(file.name)
    if name is None:
        return 0, []
    step = int(name[2]) * int(name[3])
    return step, [f"step {step:,} by the file's name: {name[2]} times {name[3]} steps"]


def _ckpt_files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.suffix == SUFFIX and each.is_file())


def _choose_file(folder: Path) -> tuple[Path, list[str]]:
    """Give the newest .ckpt of a folder, and say so; `CheckpointError` where names do not tell."""
    files = [file for file in _ckpt_files(folder) if looks_like_ckpt(file)]
    if not files:
        raise CheckpointError(f"{folder} has no {SUFFIX} file of MindSpore")
    if len(files) == 1:
        return files[0], []
    names = [SAVED_NAME.fullmatch(file.name) for file in files]
    if any(name is None or name[1] != (names[0] or name)[1] for name in names):
        shown = "\n".join(file.name for file in files[:10]) + ("\n..." if len(files) > 10 else "")
        raise CheckpointError(
            f"{folder} has {len(files)} checkpoints, and their names do not tell which is meant:\n"
            f"{shown}",
            hint=f"Name one of them: {files[-1]}",
        )
    newest = max(files, key=_epoch_and_step)
    return newest, [f"{newest.name} is the newest of {len(files)} checkpoints in {folder}"]


def _epoch_and_step(file: Path) -> tuple[int, int]:
    name = SAVED_NAME.fullmatch(file.name)
    return (int(name[2]), int(name[3])) if name else (-1, -1)


def _load_tokenizer(path: Path) -> Tokenizer | None:
    """Load the tokenizer of a folder that was named; MindSpore itself keeps none there."""
    if path.is_dir() and (path / TOKENIZER_FILE).is_file():
        return Tokenizer.load(path)
    return None


SYSTEM = MindSpore("mindspore", "MindSpore FastFFN", FASTFFN, ("dense", "low_rank"))
