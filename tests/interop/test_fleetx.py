"""FleetX's checkpoints: real ones read, and ours opened as FleetX opens its own."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fastffn_cli.config.schema import ModelSection
from fastffn_cli.engine.checkpoint import build_loaded, read_checkpoint
from fastffn_cli.engine.tensor_file import open_safetensors
from fastffn_cli.errors import CheckpointError, UserError
from fastffn_cli.interop.fleetx import SYSTEM
from fastffn_cli.interop.reading import read_foreign
from tests.fleetx_models import load_arrays, our_name
from tests.interop.fleetx_files import (
    EPOCH_0_STEP_3,
    HEADS,
    STEP_0,
    STEP_100_FP16,
    random_arrays,
    save,
    small_arrays,
)

SMALL_HEADS = f"Model.num_attention_heads={HEADS}"


def read(path, *overrides):
    return read_foreign(path, "fleetx", overrides=[SMALL_HEADS, *overrides])


def values(tensors):
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


# -- real checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [STEP_0, STEP_0.parent, STEP_0 / "model.pdparams"])
def test_every_tensor_of_a_real_checkpoint_is_as_numpy_reads_it(path):
    assert SYSTEM.recognise(path)
    opened = SYSTEM.open(path)
    assert_same(values(opened.tensors), small_arrays())
    assert opened.model == {
        "vocab_size": 128, "hidden_size": 32, "num_layers": 2, "ffn_hidden_size": 128,
        "max_position_embeddings": 64,
    }  # fmt: skip


def test_a_checkpoint_in_float16():
    opened = SYSTEM.open(STEP_100_FP16)
    assert opened.step == 100
    assert {tensor.dtype for tensor in opened.tensors.values()} == {"float16"}
    assert_same(values(opened.tensors), load_arrays("eval_step_100_fp16.npz"))


def test_a_checkpoint_of_the_newest_fleetx():
    """Against [sum, L2 norm, signed sum] of each tensor, as the original computed them."""
    opened = SYSTEM.open(EPOCH_0_STEP_3)
    assert opened.step == 3
    expected = load_arrays("N_step_3_proj.npz")
    assert opened.tensors.keys() == expected.keys()
    for name, tensor in opened.tensors.items():
        flat = tensor.read().astype(np.float64).reshape(-1)
        signs = np.where((7 * np.arange(flat.size)) % 5 < 2, 1.0, -1.0)
        found = [flat.sum(), np.sqrt((flat**2).sum()), (flat * signs).sum()]
        np.testing.assert_allclose(found, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_loaded_model_computes_what_the_original_computed():
    import paddle

    expected = load_arrays("A_forward.npz")
    model = build_loaded(read(STEP_0)).model
    with paddle.no_grad():
        logits = model(paddle.to_tensor(expected["input_ids"])).numpy()
    assert np.abs(logits - expected["logits_eval"]).max() < 2e-5


@pytest.mark.parametrize(
    "name, meta, step",
    [
        ("step_0", {"global_step": 12}, 12),
        ("step_7", None, 7),
        ("model_500", None, 500),
        ("epoch_2_step_31", None, 31),
        ("epoch_2_step_31", {"epoch": 2, "step": 30, "cuda_rng_state": []}, 30),
        ("anything", None, 0),
    ],
)
def test_the_step_is_in_the_record_or_in_the_folders_name(tmp_path, name, meta, step):
    folder = tmp_path / name
    save(folder / "model.pdparams", random_arrays())
    if meta is not None:
        (folder / "meta_state.pdopt").write_bytes(pickle.dumps(meta))
    opened = SYSTEM.open(folder)
    assert (opened.step, opened.notices) == (step, [])


class RandomState:
    """An object of the program that wrote the record, as Paddle's state of a GPU's generator."""


def test_a_record_with_objects_is_not_read_and_that_is_said(tmp_path):
    folder = tmp_path / "epoch_0_step_40"
    save(folder / "model.pdparams", random_arrays())
    meta = {"epoch": 0, "step": 40, "cuda_rng_state": [RandomState()]}
    (folder / "meta_state.pdopt").write_bytes(pickle.dumps(meta))
    opened = SYSTEM.open(folder)
    assert opened.step == 40
    assert "folder's name" in opened.notices[0]
    assert "RandomState" in opened.notices[0]


def test_the_optimizer_is_left_out_and_that_is_said(tmp_path):
    save(tmp_path / "model.pdparams", random_arrays())
    (tmp_path / "model_state.pdopt").write_bytes(pickle.dumps({}))
    assert any("fresh optimizer" in notice for notice in SYSTEM.open(tmp_path).notices)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_file_may_have_any_name_and_protocol(tmp_path, protocol, dtype):
    file = save(tmp_path / "mine.bin", random_arrays(dtype=dtype), protocol)
    assert SYSTEM.recognise(file)
    assert_same(values(SYSTEM.open(file).tensors), random_arrays(dtype=dtype))


def test_a_model_of_24_layers_has_292_tensors(tmp_path):
    arrays = random_arrays(layers=24)
    assert len(arrays) == 292
    save(tmp_path / "model.pdparams", arrays)
    opened = SYSTEM.open(tmp_path)
    model = ModelSection.model_validate({**opened.model, "num_attention_heads": 2})
    rules = SYSTEM.rules(model, opened.tensors.keys())
    assert sorted(name for rule in rules for name in rule.theirs) == sorted(arrays)
    assert len(rules) == 292


# -- PaddleNLP -----------------------------------------------------------------------------------


def paddlenlp_arrays(heads=2, *, prefix="gpt.", head=None):
    """The same model with three projections in place of the fused one."""
    arrays = {}
    for name, array in random_arrays().items():
        name = name.removeprefix("gpt.")
        if "qkv_proj" not in name:
            arrays[prefix + name] = array
            continue
        by_head = array.reshape(*array.shape[:-1], heads, 3, -1)
        for place, letter in enumerate("qkv"):
            part = by_head[..., place, :].reshape(*array.shape[:-1], -1)
            arrays[prefix + name.replace("qkv", letter)] = np.ascontiguousarray(part)
    if head is not None:
        arrays[head] = random_arrays()["gpt.embeddings.word_embeddings.weight"]
    return arrays


def read_paddlenlp(tmp_path, arrays):
    save(tmp_path / "model_state.pdparams", arrays)
    return read_foreign(tmp_path, "auto", overrides=["Model.num_attention_heads=2"])


@pytest.mark.parametrize("prefix", ["gpt.", ""])
@pytest.mark.parametrize("head", [None, "lm_head.decoder.weight", "lm_head.weight"])
def test_three_projections_are_interleaved_per_head(tmp_path, prefix, head):
    source = read_paddlenlp(tmp_path, paddlenlp_arrays(prefix=prefix, head=head))
    expected = {our_name(name): array for name, array in random_arrays().items()}
    assert_same(values(source.weights()), expected)


def test_a_head_of_its_own_is_refused_when_its_values_differ(tmp_path):
    arrays = paddlenlp_arrays(head="lm_head.decoder.weight")
    arrays["lm_head.decoder.weight"] = arrays["lm_head.decoder.weight"] + np.float32(1e-6)
    source = read_paddlenlp(tmp_path, arrays)
    with pytest.raises(CheckpointError, match=r"lm_head.decoder.weight is not the same"):
        source.weights()["word_embeddings.weight"].read()


def test_a_head_of_another_size_is_refused(tmp_path):
    arrays = paddlenlp_arrays(head="lm_head.decoder.weight")
    arrays["lm_head.decoder.weight"] = arrays["lm_head.decoder.weight"][:-1]
    save(tmp_path / "model_state.pdparams", arrays)
    with pytest.raises(CheckpointError, match="no head of its own"):
        SYSTEM.open(tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", {"model_type": "gpt", "num_attention_heads": 2, "hidden_act": "gelu"}),
        (
            "model_config.json",
            {"init_args": [{"num_attention_heads": 2, "init_class": "GPTModel"}]},
        ),
    ],
)
def test_paddlenlps_configuration_tells_the_heads(tmp_path, name, content):
    save(tmp_path / "model_state.pdparams", paddlenlp_arrays())
    (tmp_path / name).write_text(json.dumps(content))
    assert SYSTEM.open(tmp_path).model["num_attention_heads"] == 2


def test_another_activation_is_refused(tmp_path):
    save(tmp_path / "model_state.pdparams", paddlenlp_arrays())
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="'relu'"):
        SYSTEM.open(tmp_path)


def test_a_classifier_is_left_out_and_that_is_said(tmp_path):
    arrays = random_arrays()
    save(tmp_path / "model.pdparams", {**arrays, "score.weight": np.zeros((8, 2), np.float32)})
    opened = SYSTEM.open(tmp_path)
    assert opened.tensors.keys() == arrays.keys()
    assert opened.notices == ["the classifier is left out: score.weight"]


# -- what is refused -----------------------------------------------------------------------------


def test_a_folder_of_several_checkpoints_lists_them(tmp_path):
    for step in (500, 1000):
        save(tmp_path / f"step_{step}" / "model.pdparams", random_arrays())
    assert SYSTEM.recognise(tmp_path)
    with pytest.raises(CheckpointError, match="2 checkpoints: step_1000, step_500") as caught:
        SYSTEM.open(tmp_path)
    assert "step_500" in caught.value.hint


def test_a_folder_of_several_files_lists_them(tmp_path):
    for name in ("a.pdparams", "b.pdparams"):
        save(tmp_path / name, random_arrays())
    assert SYSTEM.recognise(tmp_path)
    with pytest.raises(CheckpointError, match=r"a\.pdparams, b\.pdparams"):
        SYSTEM.open(tmp_path)


def without(name):
    arrays = random_arrays()
    del arrays[name]
    return arrays


def renamed(old, new, arrays=None):
    return {name.replace(old, new): array for name, array in (arrays or random_arrays()).items()}


OTHERS = {
    "mixture of experts": (renamed("1.linear1", "1.moe_mlp.experts.0"), "mixtures of experts"),
    "simulated quantisation": (
        random_arrays()
        | {"gpt.decoder.layers.0.linear1._fake_quant_weight._scale": np.ones(1, np.float32)},
        "quantisation",
    ),
    "automatic parallelism": ({"linear_0.w_0": np.ones((2, 2))}, "automatic parallelism"),
    "no words": (without("gpt.embeddings.word_embeddings.weight"), "missing: .*word_embeddings"),
    "no final norm": (without("gpt.decoder.norm.weight"), "missing: gpt.decoder.norm.weight"),
    "no first layer": (renamed("layers.0", "layers.2"), "layers are missing: 0"),
    "a layer of a billion": (renamed("layers.1", "layers.999999999"), "layers are missing: 1"),
    "vectors for matrices": (
        random_arrays() | {"gpt.embeddings.word_embeddings.weight": np.ones(5)},
        "expected two lengths",
    ),
    "an empty table": (
        random_arrays() | {"gpt.embeddings.word_embeddings.weight": np.ones((0, 8))},
        "expected two lengths",
    ),
    "another model": ({"bert.embeddings.weight": np.ones((2, 2))}, "no GPT of FleetX"),
    "nothing": ({}, "no GPT of FleetX"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_refused_with_its_name(tmp_path, name):
    arrays, words = OTHERS[name]
    save(tmp_path / "model.pdparams", arrays)
    with pytest.raises(CheckpointError, match=words):
        SYSTEM.open(tmp_path)


def test_what_is_something_else_is_not_recognised(tmp_path):
    files = {
        "text.txt": b"hello",
        "empty.pdparams": b"",
        "zip.pdparams": b"PK\x03\x04" + bytes(100),
        "other.pkl": pickle.dumps({"a": np.zeros(3)}),
        "list.pkl": pickle.dumps([1]),
        "damaged.pkl": b"\x80\x04garbage",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert not SYSTEM.recognise(tmp_path / name), name
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    assert not SYSTEM.recognise(tmp_path / "folder")
    assert not SYSTEM.recognise(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99, 0.99999])
def test_a_truncated_checkpoint_is_refused(tmp_path, fastffn, keep):
    data = (STEP_0 / "model.pdparams").read_bytes()
    file = tmp_path / "model.pdparams"
    file.write_bytes(data[: int(len(data) * keep)])
    done = fastffn("convert", file, "-o", SMALL_HEADS, "--out", tmp_path / "out")
    assert done.code == 2
    assert "truncated" in done.err or "empty" in done.err
    assert not (tmp_path / "out").exists()


class Mischief:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("options", [[], ["--from", "fleetx"]])
def test_a_file_that_runs_something_is_refused_by_the_command(tmp_path, fastffn, inside, options):
    marker, file = tmp_path / "marker", tmp_path / "step_1" / "model.pdparams"
    arrays = random_arrays() if inside else {}
    save(file, {**arrays, "gpt.decoder.norm.bias": Mischief(marker)})
    done = fastffn("convert", file.parent, *options, "-o", SMALL_HEADS, "--out", tmp_path / "out")
    assert done.code == 2
    assert "mkdir" in done.err
    assert "Nothing was run" in done.err
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists()  # the file is what it is said to be


# -- writing -------------------------------------------------------------------------------------


def make_gpt_of_fleetx():
    """The layers of FleetX's GPTForPretraining, under its names (fleetx/models/gpt_model)."""
    import paddle
    from paddle import nn

    class Attention(nn.Layer):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            batch, time, width = x.shape
            mixed = self.qkv_proj(x).reshape([batch, time, self.heads, -1]).transpose([0, 2, 1, 3])
            q, k, v = paddle.split(mixed, 3, axis=-1)
            scores = q @ k.transpose([0, 1, 3, 2]) * (width // self.heads) ** -0.5
            scores += paddle.triu(paddle.full([time, time], -1e4), diagonal=1)
            y = nn.functional.softmax(scores) @ v
            return self.out_proj(y.transpose([0, 2, 1, 3]).reshape([batch, time, width]))

    class Block(nn.Layer):
        def __init__(self, width, heads, inner):
            super().__init__()
            self.self_attn = Attention(width, heads)
            self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

        def forward(self, x):
            x = x + self.self_attn(self.norm1(x))
            return x + self.linear2(
                nn.functional.gelu(self.linear1(self.norm2(x)), approximate=True)
            )

    class Model(nn.Layer):
        def __init__(self):
            super().__init__()
            self.gpt = nn.Layer()
            self.gpt.embeddings, self.gpt.decoder = nn.Layer(), nn.Layer()
            self.gpt.embeddings.word_embeddings = nn.Embedding(128, 32)
            self.gpt.embeddings.position_embeddings = nn.Embedding(64, 32)
            self.gpt.decoder.layers = nn.LayerList([Block(32, HEADS, 128) for _ in range(2)])
            self.gpt.decoder.norm = nn.LayerNorm(32)

        def forward(self, ids):
            words, positions = (
                self.gpt.embeddings.word_embeddings,
                self.gpt.embeddings.position_embeddings,
            )
            x = words(ids) + positions(paddle.arange(ids.shape[1]))
            for block in self.gpt.decoder.layers:
                x = block(x)
            return paddle.matmul(self.gpt.decoder.norm(x), words.weight, transpose_y=True)

    return Model()


def test_fleetx_loads_what_we_write_with_its_own_lines(tmp_path, fastffn):
    """The lines that FleetX's documentation gives for loading a pre-trained model."""
    import paddle

    out = tmp_path / "out"
    done = fastffn("convert", STEP_0, "-o", SMALL_HEADS, "--format", "fleetx", "--out", out)
    assert done.code == 0, done.err
    module = make_gpt_of_fleetx()
    model_dict = paddle.load(os.path.join(out, "model.pdparams"))  # noqa: PTH118
    for key in model_dict:
        model_dict[key] = model_dict[key].astype(paddle.float32)
    missing, unexpected = module.set_state_dict(model_dict)
    assert (missing, unexpected) == ([], [])
    expected = load_arrays("A_forward.npz")
    with paddle.no_grad():
        logits = module(paddle.to_tensor(expected["input_ids"])).numpy()
    assert np.abs(logits - expected["logits_eval"]).max() < 2e-5


def test_there_and_back_again_every_bit_is_the_same(tmp_path, fastffn):
    first, theirs, back = (tmp_path / name for name in ("first", "theirs", "back"))
    for source, out, options in (
        (STEP_0, first, ["-o", SMALL_HEADS]),
        (first, theirs, ["--format", "fleetx"]),
        (theirs, back, []),
    ):
        done = fastffn("convert", source, "--out", out, *options)
        assert done.code == 0, done.err
    assert (back / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    # Leaner than theirs: without the table of variable names.
    assert_same(values(SYSTEM.open(theirs).tensors), small_arrays())
    before, after = read_checkpoint(first).config.Model, read_checkpoint(back).config.Model
    assert before == after


def test_a_trained_model_keeps_its_step_and_tokenizer(tmp_path, fastffn, trained_run):
    dense, theirs, back = (tmp_path / name for name in ("dense", "theirs", "back"))
    for source, out, options in (
        (trained_run.checkpoint_dir, dense, []),
        (dense, theirs, ["--format", "fleetx"]),
        (theirs, back, []),
    ):
        done = fastffn("convert", source, "--out", out, *options)
        assert done.code == 0, done.err
    original, returned = read_checkpoint(dense), read_checkpoint(back)
    assert returned.step == original.step == 8
    assert returned.tokenizer().name == original.tokenizer().name
    assert_same(
        values(open_safetensors(back / "model.safetensors")),
        values(open_safetensors(dense / "model.safetensors")),
    )


def test_the_yaml_beside_it_is_one_that_we_read(tmp_path, fastffn):
    out = tmp_path / "out"
    assert (
        fastffn("convert", STEP_0, "-o", SMALL_HEADS, "--format", "fleetx", "--out", out).code == 0
    )
    (out / "meta_state.pdopt").unlink()
    moved = shutil.copy(out / "model.pdparams", tmp_path / "alone.pdparams")
    again = tmp_path / "again"
    assert fastffn("convert", moved, "--out", again).code == 2
    done = fastffn("convert", moved, "-c", out / "model.yaml", "--out", again)
    assert done.code == 0, done.err
    assert read_checkpoint(again).config.Model.num_attention_heads == HEADS


def test_fleetx_has_no_low_rank_feed_forward():
    model = ModelSection.model_validate({"ffn": {"kind": "low_rank", "rank": 4}})
    with pytest.raises(UserError, match="low_rank") as caught:
        SYSTEM.rules(model, ())
    assert "--to dense" in caught.value.hint


MEASURE = """
import re, sys
from pathlib import Path
from fastffn_cli.interop.fleetx import SYSTEM
from fastffn_cli.interop.paddle_state import write_state_dict

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

before = peak()
opened = SYSTEM.open(Path(sys.argv[1]))
write_state_dict(Path(sys.argv[2]), opened.tensors)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_reading_and_writing_takes_the_memory_of_the_largest_tensor(tmp_path):
    rows, width = 40_000, 512
    arrays = random_arrays(layers=16, hidden=width, vocab=2, positions=64)
    arrays["gpt.embeddings.word_embeddings.weight"] = np.ones((rows, width), np.float32)
    file = save(tmp_path / "model.pdparams", arrays)
    largest = rows * width * 4
    assert file.stat().st_size > 280e6 > 3 * largest
    del arrays
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, file, tmp_path / "copy.pdparams"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0.9 * largest < int(done.stdout) < 1.3 * largest
    assert (tmp_path / "copy.pdparams").stat().st_size > 280e6
