"""Checkpoints of FleetX for tests: the real ones, and arrays laid out as FleetX lays them out."""

import pickle
import re
from pathlib import Path

import numpy as np

from tests.fleetx_models import FIXTURES_DIR, load_arrays

STEP_0 = FIXTURES_DIR / "A_output" / "step_0"  # FleetX, August 2022
EPOCH_0_STEP_3 = FIXTURES_DIR / "N_output" / "epoch_0_step_3"  # PaddleFleetX, August 2023
STEP_100_FP16 = FIXTURES_DIR / "eval" / "step_100_fp16"
HEADS, LAYERS = 4, 2  # of STEP_0


def small_arrays():
    """The tensors of STEP_0, read by NumPy."""
    return load_arrays("A_step_0.npz")


def save(file: Path, arrays, protocol=4):
    """Write arrays as `paddle.save` writes a state_dict."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {name: f"variable_{place}" for place, name in enumerate(arrays)}
    content = {**arrays, "StructuredToParameterName@@": table}
    file.write_bytes(pickle.dumps(content, protocol))
    return file


def random_arrays(layers=2, hidden=8, vocab=24, positions=6, dtype=np.float32):
    """Tensors of a GPT of FleetX with random values."""
    source = np.random.default_rng(3)
    sizes = {
        "self_attn.qkv_proj": (hidden, 3 * hidden), "self_attn.out_proj": (hidden, hidden),
        "linear1": (hidden, 4 * hidden), "linear2": (4 * hidden, hidden),
    }  # fmt: skip
    shapes = {
        "gpt.embeddings.word_embeddings.weight": (vocab, hidden),
        "gpt.embeddings.position_embeddings.weight": (positions, hidden),
    }
    for layer in range(layers):
        for name, shape in sizes.items():
            shapes[f"gpt.decoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"gpt.decoder.layers.{layer}.{name}.bias"] = shape[1:]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"gpt.decoder.layers.{layer}.{name}"] = (hidden,)
    shapes["gpt.decoder.norm.weight"] = shapes["gpt.decoder.norm.bias"] = (hidden,)
    return {name: source.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def tensor_parallel_parts(arrays, degree, heads):
    """Deal a model out to `degree` ranks: whole heads, columns of linear1, rows of the vocabulary.

    Written from what each layer computes, with the heads as an axis of their own.
    """
    parts = [{} for _ in range(degree)]
    for name, array in arrays.items():
        if "qkv_proj" in name:
            by_head = array.reshape(*array.shape[:-1], heads, -1)
            dealt = [
                each.reshape(*array.shape[:-1], -1)
                for each in np.split(by_head, degree, axis=by_head.ndim - 2)
            ]
        elif "linear1" in name:
            dealt = np.split(array, degree, axis=array.ndim - 1)
        elif re.search(r"(out_proj|linear2|word_embeddings)\.weight", name):
            dealt = np.split(array, degree, axis=0)
        else:
            dealt = [array] * degree
        for part, values in zip(parts, dealt, strict=True):
            part[name] = np.ascontiguousarray(values)
    return parts


def pipeline_stages(arrays, layers, bounds, *, nested_norm):
    """Cut a model into stages of a pipeline, named as Paddle's PipelineLayer names their parts.

    `bounds` are the places in the list of layers where stages begin: 0 embeddings, 1.. blocks, then
    the norm. `nested_norm` is PaddleFleetX's `{place}.norm.weight`, else FleetX's `{place}.weight`.
    """
    stages = [{} for _ in bounds]

    def stage_of(place):
        return stages[max(index for index, bound in enumerate(bounds) if bound <= place)]

    for name, array in arrays.items():
        block = re.fullmatch(r"gpt\.decoder\.layers\.(\d+)\.(.+)", name)
        if block:
            place = int(block[1]) + 1
            stage_of(place)[f"{place}.{block[2]}"] = array
        elif "embeddings" in name:
            shared = name.replace("gpt.embeddings", "shared_layers.embed")
            stages[0][shared] = array
            # The head shares the words alone: the last rank's positions are never trained.
            stages[-1].setdefault(shared, array if "word" in name else array + 1)
        else:
            part = name.rsplit(".", 1)[1]
            stage_of(layers + 1)[f"{layers + 1}{'.norm' * nested_norm}.{part}"] = array
    return stages
