"""What the tensors of a FleetX checkpoint tell: whether it is a GPT of ours, and of which sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.fleetx_parts import BLOCK, Tensors, same
from fastffn_cli.interop.json_file import read_object

PREFIX = "gpt."
EMBEDDINGS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
HEADS = ("lm_head.decoder.weight", "lm_head.weight")
CLASSIFIER = ("score.weight", "score.bias")
YAML_FILE = "model.yaml"
CONFIG_FILES = ("config.json", "model_config.json")  # PaddleNLP, since and before 2.5
GPT_NAMES = re.compile(
    r"(?:(?:gpt\.)?decoder\.layers\.\d+|\d+)\.(?:self_attn|linear1|norm1|moe_mlp)\..+"
    r"|shared_layers\.embed\.word_embeddings\.weight"
)
VARIABLE = re.compile(r"(?:embedding|linear|layer_norm)_\d+\.[wb]_\d+")
YAML_LINE = re.compile(rb"^ +num_attention_heads: ([1-9]\d{0,5})\r?$", re.MULTILINE)
LONGEST_YAML = 1 << 16


def names_a_gpt(names: Iterable[str]) -> bool:
    """Whether tensors are named as those of a GPT, or a relative of it that `open` explains."""
    return any(GPT_NAMES.fullmatch(name) or VARIABLE.fullmatch(name) for name in names)


def refuse_other_models(path: Path, names: Sequence[str]) -> None:
    """Raise `CheckpointError` for GPTs that have other layers, and for what is none."""
    experts = [name for name in names if ".moe_mlp." in name]
    quantised = [name for name in names if "quant" in name]
    if experts:
        raise CheckpointError(
            f"{path} has mixtures of experts ({experts[0]}, {len(experts)} such tensors); a GPT "
            "here has none, and they cannot be converted"
        )
    if quantised:
        raise CheckpointError(
            f"{path} was trained with simulated quantisation ({quantised[0]}, {len(quantised)} "
            "such tensors), which changes what the weights compute; it is not read"
        )
    if any(VARIABLE.fullmatch(name) for name in names):
        raise CheckpointError(
            f"{path} names tensors by the order in which the program made them, as FleetX's "
            "automatic parallelism does (auto_dist0.pdparams): which is which cannot be told",
            hint="Save the state_dict of the model instead: its names begin with gpt.",
        )
    if not any(GPT_NAMES.fullmatch(name) for name in names):
        shown = ", ".join(names[:3]) or "none"
        raise CheckpointError(f"{path} holds no GPT of FleetX: its tensors are {shown} ...")


def without_heads(path: Path, whole: Tensors) -> tuple[Tensors, list[str]]:
    """Take out heads: that of a language model has to be the embedding, a classifier is dropped."""
    tensors, notices = dict(whole), []
    for name in HEADS:
        head = tensors.pop(name, None)
        embedding = next((each for each in (PREFIX + EMBEDDINGS, EMBEDDINGS) if each in whole), "")
        if head is None or not embedding:
            continue
        if head.shape != whole[embedding].shape or head.dtype != whole[embedding].dtype:
            raise CheckpointError(
                f"{path}: {name} {list(head.shape)} is not the word embedding "
                f"{list(whole[embedding].shape)}; a GPT here has no head of its own"
            )
        tensors[embedding] = same(
            f"{path}: {name}", [tensors[embedding], head], "the head and the word embedding"
        )
    dropped = [name for name in CLASSIFIER if tensors.pop(name, None) is not None]
    if dropped:
        notices.append(f"the classifier is left out: {', '.join(dropped)}")
    return tensors, notices


def read_sizes(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Tell the sizes of the model from its tensors."""
    prefix = PREFIX if PREFIX + EMBEDDINGS in tensors else ""
    linear1 = f"{prefix}decoder.layers.0.linear1.weight"
    wanted = (f"{prefix}{EMBEDDINGS}", f"{prefix}{POSITIONS}", linear1)
    shapes = [tensors[name].shape if name in tensors else None for name in wanted]
    problems = [
        f"missing: {name}" if shape is None else f"{name} is {list(shape)}, expected two lengths"
        for name, shape in zip(wanted, shapes, strict=True)
        if shape is None or len(shape) != 2 or min(shape) < 1
    ]
    layers = {int(match[1]) for match in map(BLOCK.fullmatch, tensors) if match}
    if layers != set(range(len(layers))):
        gaps = sorted(set(range(len(layers))) - layers)
        problems.append(f"layers are missing: {', '.join(map(str, gaps[:8]))}")
    if f"{prefix}decoder.norm.weight" not in tensors:
        problems.append(f"missing: {prefix}decoder.norm.weight")
    if problems:
        raise CheckpointError(f"{path} is not a whole GPT:\n" + "\n".join(problems))
    (vocab_size, hidden_size), (positions, _), (_, ffn_hidden_size) = (
        tensors[name].shape for name in wanted
    )
    _refuse_lone_shard(path, tensors, prefix, hidden_size)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": len(layers),
        "ffn_hidden_size": ffn_hidden_size,
        "max_position_embeddings": positions,
    }


def _refuse_lone_shard(
    path: Path, tensors: Mapping[str, StoredTensor], prefix: str, hidden_size: int
) -> None:
    fused = tensors.get(f"{prefix}decoder.layers.0.self_attn.qkv_proj.weight")
    if fused is None or len(fused.shape) != 2 or fused.shape[0] != hidden_size:
        return
    columns = fused.shape[1]
    if 0 < columns < 3 * hidden_size and 3 * hidden_size % columns == 0:
        raise CheckpointError(
            f"{path} is not a whole GPT: its query-key-value projections have {columns} of "
            f"{3 * hidden_size} columns. It is one of {3 * hidden_size // columns} tensor parallel "
            "parts, or some are missing",
            hint="Name the folder that has the parts in folders mp_00_sharding_00_pp_00, "
            "mp_01_sharding_00_pp_00 ...",
        )


def read_heads(folder: Path) -> dict[str, int]:
    """Read the number of heads beside the weights: PaddleNLP's JSON, or the YAML that we write.

    Raises `CheckpointError` for another activation than theirs (`gelu`, which is the tanh form).
    """
    for file in (folder / name for name in CONFIG_FILES):
        if file.is_file():
            content = read_object(file)
            inner = content.get("init_args")
            if isinstance(inner, list) and inner and isinstance(inner[0], dict):
                content = inner[0]
            activation = content.get("hidden_act", "gelu")
            if activation != "gelu":
                raise CheckpointError(f"{file}: hidden_act is {activation!r}; a GPT here has gelu")
            heads = content.get("num_attention_heads")
            if type(heads) is int and heads > 0:
                return {"num_attention_heads": heads}
    if (folder / YAML_FILE).is_file():
        with (folder / YAML_FILE).open("rb") as stream:
            match = YAML_LINE.search(stream.read(LONGEST_YAML))
        if match:
            return {"num_attention_heads": int(match[1])}
    return {}
