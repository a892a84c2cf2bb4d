"""One GPT from the parts that parallel ranks of FleetX saved, values left in their files.

* Tensor parallel (mp): columns of the fused query-key-value projection and of linear1, rows of
  out_proj, linear2 and of the word embedding are dealt out in order; heads are interleaved, so that
  columns belong to whole heads. Everything else is on each rank, the same.
* Sharding: every rank saves all weights (stages 1 and 2); the first one is taken.
* Pipeline (pp): each rank saves its stretch of a list of layers, under their places in it
  (Paddle's `PipelineLayer`): 0 the embeddings (as `shared_layers.embed`, again on the last rank,
  where they are the head), 1..L the blocks, L + 1 the final norm. From the sources of FleetX;
  Paddle 3.3 names the parts of two stages so. No such checkpoint of FleetX's own was at hand.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.fleetx_folder import Found, Rank

Tensors = dict[str, StoredTensor]

COLUMNS = re.compile(r".*\.(qkv_proj|[qkv]_proj|linear1)\.(weight|bias)")
ROWS = re.compile(r".*\.(out_proj|linear2|word_embeddings)\.weight")
PIPELINE_EMBEDDING = re.compile(r"shared_layers\.embed\.((?:word|position)_embeddings\.weight)")
PIPELINE_BLOCK = re.compile(r"(\d+)\.((?:self_attn|linear[12]|norm[12]|moe_mlp)\..+)")
PIPELINE_NORM = re.compile(r"(\d+)\.(?:norm\.)?(weight|bias)")
BLOCK = re.compile(r"(?:gpt\.)?decoder\.layers\.(\d+)\.(.+)")
SHOWN = 20


def join_parts(found: Found, parts: Mapping[Rank, Tensors]) -> Tensors:
    """Put the parts of all ranks together.

    Raises `CheckpointError` with everything that is missing or does not fit.
    """
    problems = _missing_ranks(parts)
    stages: dict[tuple[int, int], Tensors] = {}
    for rank in sorted(parts):
        tensors = stages.setdefault((rank.tensor, rank.pipeline), parts[rank])
        problems += _compare(f"{rank}", tensors, parts[rank], same_shape=True)
    columns: dict[int, Tensors] = {}
    for (tensor_rank, stage), tensors in stages.items():
        named = _by_full_names(tensors, stage, problems)
        _add_stage(columns.setdefault(tensor_rank, {}), named, stage, problems)
    first = columns[min(columns)]
    for tensor_rank, tensors in columns.items():
        problems += _compare(f"tensor parallel rank {tensor_rank}", first, tensors)
    _refuse(found, problems)
    if len(columns) == 1:
        return first
    joined = {
        name: _join(name, [columns[key][name] for key in sorted(columns)], problems)
        for name in first
    }
    problems += _missing_columns(joined, len(columns))
    _refuse(found, problems)
    return joined


def _missing_columns(joined: Tensors, ranks: int) -> list[str]:
    """Say where the last of the tensor parallel parts are missing: no folder number tells it."""
    for name, tensor in joined.items():
        copies = 3 if name.endswith("qkv_proj.weight") else 1
        if not name.endswith(("qkv_proj.weight", "q_proj.weight")) or len(tensor.shape) != 2:
            continue
        width, found = tensor.shape
        if found < copies * width and (ranks * copies * width) % found == 0:
            return [
                f"the parts of {ranks} tensor parallel ranks hold {found} of the "
                f"{copies * width} columns of {name}: there were probably "
                f"{ranks * copies * width // found} ranks"
            ]
    return []


def _refuse(found: Found, problems: Sequence[str]) -> None:
    if problems:
        shown = "\n".join(problems[:SHOWN])
        more = f"\n... {len(problems)} in all" if len(problems) > SHOWN else ""
        raise CheckpointError(f"the parts in {found.folder} make no whole model:\n{shown}{more}")


def _missing_ranks(parts: Mapping[Rank, Tensors]) -> list[str]:
    sizes = [
        range(1 + max(places))
        for places in zip(*((rank.tensor, rank.sharding, rank.pipeline) for rank in parts),
                          strict=True)
    ]  # fmt: skip
    if len(sizes[0]) * len(sizes[1]) * len(sizes[2]) > 64 * len(parts):
        return ["the numbers of the folders leave far more gaps than there are folders"]
    return [f"missing: {Rank(*places)}" for places in product(*sizes) if Rank(*places) not in parts]


def _compare(part: str, first: Tensors, other: Tensors, *, same_shape: bool = False) -> list[str]:
    """Say what `other` has otherwise than `first`."""
    problems = [f"{part} has no {name}" for name in first if name not in other]
    problems += [f"{part} alone has {name}" for name in other if name not in first]
    return problems + [
        f"{part}: {name} is {list(other[name].shape)} here and {list(tensor.shape)} on the first"
        for name, tensor in first.items()
        if name in other and same_shape and other[name].shape != tensor.shape
    ]


def _by_full_names(tensors: Tensors, stage: int, problems: list[str]) -> Tensors:
    """Give what a stage of a pipeline saved the names of the whole model."""
    if not any(re.match(r"\d+\.|shared_layers\.", name) for name in tensors):
        return tensors
    named = {}
    for name, tensor in tensors.items():
        embedding, norm = PIPELINE_EMBEDDING.fullmatch(name), PIPELINE_NORM.fullmatch(name)
        block = PIPELINE_BLOCK.fullmatch(name)
        if embedding:
            named[f"gpt.embeddings.{embedding[1]}"] = tensor
        elif norm:
            named[f"gpt.decoder.norm.{norm[2]}"] = tensor
        elif block and int(block[1]) > 0:
            named[f"gpt.decoder.layers.{int(block[1]) - 1}.{block[2]}"] = tensor
        else:
            problems.append(f"pipeline stage {stage} has {name[:80]}, which no stage is known for")
    return named


def _add_stage(whole: Tensors, stage_tensors: Tensors, stage: int, problems: list[str]) -> None:
    for name, tensor in stage_tensors.items():
        if name not in whole:
            whole[name] = tensor
        elif not name.startswith("gpt.embeddings."):
            problems.append(f"pipeline stage {stage} has {name}, as an earlier one")
        elif name.endswith(".word_embeddings.weight"):
            whole[name] = same(name, [whole[name], tensor], "the first and the last stage")


def _join(name: str, parts: Sequence[StoredTensor], problems: list[str]) -> StoredTensor:
    axis = -1 if COLUMNS.fullmatch(name) else 0 if ROWS.fullmatch(name) else None
    if axis is None:
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            problems.append(f"{name} is of several shapes: {[list(part.shape) for part in parts]}")
        return same(name, parts, "tensor parallel ranks")
    if len({(part.shape, part.dtype) for part in parts}) > 1 or not parts[0].shape:
        problems.append(f"{name} is dealt out unevenly: {[list(part.shape) for part in parts]}")
        return parts[0]
    return _concatenated(parts, axis)


def _concatenated(parts: Sequence[StoredTensor], axis: int) -> StoredTensor:
    shape = list(parts[0].shape)
    width = shape[axis]
    shape[axis] = width * len(parts)

    def read() -> np.ndarray:
        joined = np.empty(shape, "float32" if parts[0].dtype == "bfloat16" else parts[0].dtype)
        for place, part in enumerate(parts):
            rows = np.moveaxis(joined, axis, 0)
            target = rows[place * width : (place + 1) * width]
            target[...] = np.moveaxis(part.read(), axis, 0)
            # Biases may all be zero; two parts of a matrix are never the same.
            first = rows[:width]
            if place and joined.ndim > 1 and np.array_equal(target, first) and np.ptp(first):
                raise CheckpointError(
                    f"tensor parallel ranks 0 and {place} hold the same values: one of them is a "
                    "copy of the other"
                )
        return joined

    return StoredTensor(tuple(shape), parts[0].dtype, read)


def same(name: str, copies: Sequence[StoredTensor], holders: str) -> StoredTensor:
    """Give a tensor that is stored several times; reading it compares the copies.

    One copy is in memory at a time. Reading raises `CheckpointError` where they differ.
    """

    def read() -> np.ndarray:
        digests = [_digest(copy.read()) for copy in copies[1:]]
        values = copies[0].read()
        if any(digest != _digest(values) for digest in digests):
            raise CheckpointError(f"{name} is not the same in {holders}: they do not fit together")
        return values

    return StoredTensor(copies[0].shape, copies[0].dtype, read)


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).digest()
