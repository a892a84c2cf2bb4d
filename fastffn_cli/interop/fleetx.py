"""FleetX: GPTs of PaddleFleetX, and of PaddleNLP, whose names are the same.

Names and shapes (`fleetx/models/gpt_model`, `ppfleetx/models/language_model/gpt`, and
`paddlenlp/transformers/gpt`): `gpt.embeddings.*`, `gpt.decoder.layers.i.*`, `gpt.decoder.norm.*`;
weights [in, out]; the fused projection interleaved per head as ours, or three separate ones; the
head is the word embedding. The number of heads is nowhere in FleetX's files.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from fastffn_cli.config.dump import format_value
from fastffn_cli.config.schema import Config, ModelSection
from fastffn_cli.data.tokenizer import GPT2_FILES, TOKENIZER_FILE, Tokenizer
from fastffn_cli.errors import CheckpointError, UserError
from fastffn_cli.interop.fleetx_folder import (
    META_FILE,
    SUFFIX,
    WEIGHTS,
    Found,
    choose_only,
    find_checkpoint_files,
    read_step,
)
from fastffn_cli.interop.fleetx_model import (
    EMBEDDINGS,
    POSITIONS,
    PREFIX,
    YAML_FILE,
    names_a_gpt,
    read_heads,
    read_sizes,
    refuse_other_models,
    without_heads,
)
from fastffn_cli.interop.fleetx_parts import join_parts
from fastffn_cli.interop.layout import Rule, qkv_separate, rule
from fastffn_cli.interop.paddle_state import open_state_dict, write_state_dict
from fastffn_cli.interop.system import Export, Opened, loss_of_masked_token

OPTIMIZER_FILE = "model_state.pdopt"
HEAD_BYTES = 1 << 16
YAML_KEYS = (
    "vocab_size", "hidden_size", "num_layers", "num_attention_heads", "ffn_hidden_size",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
    "initializer_range",
)  # fmt: skip


class FleetX:
    """GPTs that PaddleFleetX or PaddleNLP saved."""

    name = "fleetx"
    title = "FleetX"
    activations = ("gelu",)

    def recognise(self, path: Path) -> bool:
        """Whether there is a pickle with the names of a GPT, or one that hides what it is."""
        try:
            found = find_checkpoint_files(path)
            files = [file for each in found for file in each.files.values() if file.is_file()]
            return bool(files) and _is_gpt(files[0])
        except CheckpointError:
            return True  # files of theirs, but which one is meant is open: `open` says so
        except OSError:
            return False

    def open(self, path: Path) -> Opened:
        """Read the headers of all parts.

        Raises `CheckpointError` for what is damaged, incomplete or another kind of model, and for a
        folder of several checkpoints.
        """
        found = choose_only(path, find_checkpoint_files(path))
        absent = [str(file) for file in found.files.values() if not file.is_file()]
        if absent:
            raise CheckpointError("missing: " + "\nmissing: ".join(absent))
        states = {rank: open_state_dict(file) for rank, file in found.files.items()}
        refuse_other_models(path, [name for state in states.values() for name in state.tensors])
        whole = join_parts(found, {rank: state.tensors for rank, state in states.items()})
        tensors, notices = without_heads(path, whole)
        model = {**read_heads(found.first.parent), **read_sizes(path, tensors)}
        step, step_notice = read_step(found)
        others = sorted({name for state in states.values() for name in state.others})
        if others:
            notices.append(f"entries that are no tensors are left out: {', '.join(others[:8])}")
        if (found.first.parent / OPTIMIZER_FILE).is_file():
            notices.append(
                f"{OPTIMIZER_FILE} is left out: FleetX names the optimizer's tensors by the order "
                "in which the program made them; training starts with a fresh optimizer"
            )
        notices += [step_notice] if step_notice else []
        return Opened(
            title=f"{self.title} GPT, {_describe(found)}",
            path=path,
            tensors=tensors,
            model=model,
            step=step,
            notices=[*notices, *_notices_of_parts(found)],
            tokenizer=partial(_load_tokenizer, found.first.parent),
        )

    def rules(self, model: ModelSection, names: Collection[str]) -> Sequence[Rule]:
        """Give the table of names; `UserError` for feed-forwards that are not dense."""
        if model.ffn.kind != "dense":
            raise UserError(
                f"{self.title} has no feed-forward layer of kind {model.ffn.kind!r}",
                hint="Merge the factors first: add --to dense",
            )
        prefix = PREFIX if not names or any(name.startswith(PREFIX) for name in names) else ""
        separate = any(name.endswith(".self_attn.q_proj.weight") for name in names)
        table = [
            rule("word_embeddings.weight", f"{prefix}{EMBEDDINGS}"),
            rule("position_embeddings.weight", f"{prefix}{POSITIONS}"),
        ]
        for layer in range(model.num_layers):
            ours, theirs = f"layers.{layer}.", f"{prefix}decoder.layers.{layer}."
            for part in ("weight", "bias"):
                if separate:
                    parts = (f"{theirs}self_attn.{each}_proj.{part}" for each in "qkv")
                    qkv = rule(
                        f"{ours}self_attn.qkv_proj.{part}",
                        *parts,
                        arrangement=qkv_separate(model.num_attention_heads),
                    )
                else:
                    fused = f"self_attn.qkv_proj.{part}"
                    qkv = rule(f"{ours}{fused}", f"{theirs}{fused}")
                table += [
                    qkv,
                    rule(f"{ours}self_attn.out_proj.{part}", f"{theirs}self_attn.out_proj.{part}"),
                    rule(f"{ours}ffn.linear1.{part}", f"{theirs}linear1.{part}"),
                    rule(f"{ours}ffn.linear2.{part}", f"{theirs}linear2.{part}"),
                    rule(f"{ours}norm1.{part}", f"{theirs}norm1.{part}"),
                    rule(f"{ours}norm2.{part}", f"{theirs}norm2.{part}"),
                ]
        norm = (rule(f"norm.{part}", f"{prefix}decoder.norm.{part}") for part in ("weight", "bias"))
        return [*table, *norm]

    def write(self, folder: Path, export: Export) -> None:
        """Write model.pdparams, the step, and the Model section as FleetX's YAML has it.

        FleetX evaluates and generates with it; its training asks for an optimizer file as well.
        """
        export.notices.extend(loss_of_masked_token(self.title, export.config.Model))
        write_state_dict(folder / WEIGHTS[0], export.tensors)
        (folder / META_FILE).write_bytes(pickle.dumps({"global_step": export.step}, protocol=4))
        (folder / YAML_FILE).write_text(_yaml(export.config), encoding="utf-8")
        if export.tokenizer is not None:
            export.tokenizer.save(folder)


def _is_gpt(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if head[:1] != pickle.PROTO:
        return False
    try:
        names = open_state_dict(file).tensors
    except CheckpointError:
        return file.suffix == SUFFIX or b"gpt.embeddings.word_embeddings.weight" in head
    return names_a_gpt(names)


def _yaml(config: Config) -> str:
    """Write what is FleetX's of a configuration: its models take no key that they do not know."""
    model, dataset = config.Model.model_dump(), config.Data.dataset
    lines = [f"  {key}: {format_value(model[key])}" for key in YAML_KEYS]
    longest = min(dataset.max_seq_len, config.Model.max_position_embeddings)
    return "\n".join(["Model:", *lines, "Data:", "  dataset:", f"    max_seq_len: {longest}", ""])


def _describe(found: Found) -> str:
    if len(found.files) == 1:
        return found.first.name
    degrees = zip(*((rank.tensor, rank.sharding, rank.pipeline) for rank in found.files),
                  strict=True)  # fmt: skip
    mp, sharding, pp = (1 + max(places) for places in degrees)
    return f"{len(found.files)} parts (tensor {mp}, sharding {sharding}, pipeline {pp})"


def _notices_of_parts(found: Found) -> list[str]:
    if max(rank.pipeline for rank in found.files) == 0:
        return []
    return [
        "pipeline stages are put together by the places of their layers, as the sources of FleetX "
        "and Paddle have it; compare the loss with the one you know (fastffn eval)"
    ]


def _load_tokenizer(folder: Path) -> Tokenizer | None:
    names = (TOKENIZER_FILE, *(name for pair in GPT2_FILES for name in pair))
    return Tokenizer.load(folder) if any((folder / name).is_file() for name in names) else None


SYSTEM = FleetX()
