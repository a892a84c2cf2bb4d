"""Checkpoints of the original FastFFN and of MindFormers, converted by the program.

`tests/fixtures/mindspore`: `tiny_fastffn.ckpt` (stage 1, rank 8), what the original's
`weight_transform.py` made of it, and `tiny_gpt2_mf03.ckpt` of MindFormers r0.3 with its logits; all
with random weights, vocabulary 97, hidden 16, 2 layers, 2 heads, 32 positions, end-of-text 96.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from fastffn_cli.config.load import default_config
from fastffn_cli.engine.checkpoint import load_model, read_checkpoint
from fastffn_cli.engine.tensor_file import stored
from fastffn_cli.errors import CheckpointError, UserError
from fastffn_cli.interop.mindformers import SYSTEM as MINDFORMERS
from fastffn_cli.interop.mindspore import SYSTEM
from fastffn_cli.interop.mindspore_ckpt import read_ckpt, write_ckpt
from tests.conftest import ROOT_DIR, program_env
from tests.interop.ckpt_messages import parse

FIXTURES = Path(__file__).parent.parent / "fixtures"
STAGE1 = FIXTURES / "mindspore" / "tiny_fastffn.ckpt"
STAGE2 = FIXTURES / "mindspore" / "tiny_fastffn_stage2.ckpt"
GPT2 = FIXTURES / "mindspore" / "tiny_gpt2_mf03.ckpt"
EOS = 96
HEADS = ("-o", "Model.num_attention_heads=2")
BLOCK = "backbone.transformer.encoder.blocks."


def arrays_of(file):
    return {name: tensor.read() for name, tensor in read_ckpt(file).tensors.items()}


def write_arrays(file, arrays):
    write_ckpt(file, {name: stored(array) for name, array in arrays.items()})
    return file


def logits_of(checkpoint, tokens_BT):
    with paddle.no_grad():
        logits = load_model(checkpoint).model(paddle.to_tensor(tokens_BT.astype(np.int64)))
    return logits.numpy()


def original_logits():
    with np.load(FIXTURES / "fastffn" / "tiny.npz") as arrays:
        return arrays["ids"][:, :-1], arrays["logits_float32"].reshape(2, 32, 97)


def gpt2_forward(p, tokens_BT, heads=2):
    """MindFormers' GPT-2 in float64, written down from its formulas."""
    size = p["embedding.word_embedding.embedding_table"].shape[1]
    p = {name: array.astype(np.float64) for name, array in p.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * p[f"{name}.gamma"] + p[f"{name}.beta"]

    B, T = tokens_BT.shape
    alive = (tokens_BT != EOS)[:, None, :, None] & (tokens_BT != EOS)[:, None, None, :]
    mask = np.where(alive & np.tri(T, dtype=bool), 0, -1e4)
    x = p["embedding.word_embedding.embedding_table"][tokens_BT]
    x = x + p["embedding.position_embedding.embedding_table"][:T]
    for layer in range(2):
        block = f"blocks.{layer}."
        h = norm(x, f"{block}layernorm1")
        q, k, v = (
            (h @ p[f"{block}attention.dense{n}.weight"].T + p[f"{block}attention.dense{n}.bias"])
            .reshape(B, T, heads, -1).transpose(0, 2, 1, 3) for n in (1, 2, 3)
        )  # fmt: skip
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(size // heads) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        h = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(B, T, -1)
        x = x + h @ p[f"{block}attention.projection.weight"]
        x = x + p[f"{block}attention.projection.bias"]
        h = norm(x, f"{block}layernorm2") @ p[f"{block}output.mapping.weight"]
        h = h + p[f"{block}output.mapping.bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ p[f"{block}output.projection.weight"] + p[f"{block}output.projection.bias"]
    return norm(x, "layernorm") @ p["embedding.word_embedding.embedding_table"].T


@pytest.fixture
def convert(fastffn, workplace):
    """Convert with 2 heads into the folder `out`; the folder and what was said."""

    def call(path, *arguments, out="out"):
        heads = () if Path(path).is_dir() and (Path(path) / "config.yaml").exists() else HEADS
        done = fastffn("convert", path, "--out", out, *heads, *arguments)
        assert done.code == 0, done.err
        return workplace.dir / out, done.err

    return call


def test_stage1_computes_what_the_original_does(convert):
    folder, _ = convert(STAGE1, "--to", "low_rank")
    tokens, expected = original_logits()
    np.testing.assert_allclose(logits_of(folder, tokens), expected, atol=1e-5)
    model = read_checkpoint(folder).config.Model
    assert (model.ffn.kind, model.ffn.rank, model.masked_token_id) == ("low_rank", 8, EOS)


def test_stage1_is_merged_as_the_original_merges_it(convert):
    folder, _ = convert(STAGE1)
    tokens, expected = original_logits()
    np.testing.assert_allclose(logits_of(folder, tokens), expected, atol=1e-5)
    back, _ = convert(folder, "--format", "mindspore", out="back")
    ours, theirs = arrays_of(next(back.glob("*.ckpt"))), arrays_of(STAGE2)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-6, err_msg=name)


def test_stage2_computes_what_the_original_does(convert):
    folder, _ = convert(STAGE2)
    tokens, expected = original_logits()
    np.testing.assert_allclose(logits_of(folder, tokens), expected, atol=1e-5)


def test_mindformers_gpt2_computes_what_mindformers_does(convert):
    folder, _ = convert(GPT2)
    with np.load(FIXTURES / "mindspore" / "tiny_gpt2_mf03_ref.npz") as stored_arrays:
        tokens = stored_arrays["ids"][:, :-1]
        theirs = stored_arrays["logits"].astype(np.float64).reshape(2, 32, 97)
    ours = logits_of(folder, tokens)
    # In the rows of end-of-text itself -1e4 is added to all scores, which rounds them in float32.
    alive = tokens != EOS
    exact = gpt2_forward(arrays_of(GPT2), tokens)
    np.testing.assert_allclose(ours[alive], exact[alive], atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # theirs is partly in float16


@pytest.mark.parametrize(
    ("source", "system", "kind"),
    [
        (STAGE1, "mindspore", "low_rank"),
        (STAGE2, "mindspore", "dense"),
        (GPT2, "mindformers", "dense"),
    ],
    ids=["stage 1", "stage 2", "mindformers"],
)
def test_there_and_back_is_bit_equal(source, system, kind, convert):
    folder, _ = convert(source, "--to", kind)
    back, said = convert(folder, "--format", system, "--to", kind, out="back")
    (file,) = back.iterdir()
    expected = arrays_of(source)
    assert {value.tag: value.tensor.tensor_content for value in parse(file)} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert {name: array.shape for name, array in arrays_of(file).items()} == {
        name: array.shape for name, array in expected.items()
    }
    assert "num_heads=2" in said
    assert "token 96 is hidden from attention" in said


def test_what_is_not_in_the_file_is_said(convert):
    _, said = convert(STAGE1)
    assert "MindSpore GPT, FastFFN of rank 8" in said
    assert "Model.masked_token_id is 96" in said


@pytest.mark.parametrize(("value", "masked"), [("5", 5), ("null", None)])
def test_another_masked_token_or_none_can_be_named(value, masked, convert):
    folder, _ = convert(STAGE2, "-o", f"Model.masked_token_id={value}")
    assert read_checkpoint(folder).config.Model.masked_token_id == masked


def test_the_number_of_heads_is_asked_for(fastffn):
    done = fastffn("convert", STAGE1, "--out", "out")
    assert done.code == 2
    assert "does not tell the number of attention heads" in done.err


def test_half_precision_is_read_exactly(convert, tmp_path):
    arrays = {
        name: array if "layernorm" in name else array.astype(np.float16)
        for name, array in arrays_of(STAGE2).items()
    }
    folder, _ = convert(write_arrays(tmp_path / "half.ckpt", arrays))
    back, _ = convert(folder, "--format", "mindspore", out="back")
    for name, array in arrays_of(next(back.glob("*.ckpt"))).items():
        np.testing.assert_array_equal(array, arrays[name].astype(np.float32))


def test_training_state_is_left_out_and_counted(tmp_path):
    arrays = arrays_of(STAGE1)
    state = {
        f"{kind}.{name}": array for name, array in arrays.items() for kind in ("adam_m", "adam_v")
    }
    numbers = {
        "scale_sense": np.float32([2.0]),
        "epoch_num": np.int32(3),
        "beta1_power": np.float32(1),
    }
    step = {"global_step": np.array([1234], np.int32)}
    file = write_arrays(tmp_path / "gpt-76_10.ckpt", {**arrays, **state, **numbers, **step})
    opened = SYSTEM.open(file)
    assert set(opened.tensors) == set(arrays)
    assert len(opened.ignored) == 2 * len(arrays) + 4
    assert opened.step == 1234  # what was counted goes before the name


def test_a_step_is_read_from_the_file_name_and_said(tmp_path):
    shutil.copy(STAGE1, tmp_path / "gpt-76_10.ckpt")
    opened = SYSTEM.open(tmp_path / "gpt-76_10.ckpt")
    assert opened.step == 760
    assert any("step 760" in notice for notice in opened.notices)
    assert SYSTEM.open(STAGE1).step == 0


@pytest.mark.parametrize("prefix", ["gpt2.", "backbone.", "gpt2.backbone.transformer.encoder."])
def test_prefixes_come_and_go(prefix, tmp_path):
    arrays = {f"{prefix}{name}": array for name, array in arrays_of(GPT2).items()}
    file = write_arrays(tmp_path / "a.ckpt", arrays)
    opened = SYSTEM.open(file)
    assert {**opened.model, "ffn": 0} == {**SYSTEM.open(GPT2).model, "ffn": 0}
    assert set(opened.tensors) == set(arrays)


def test_padded_vocabularies_hide_gpt2s_end_of_text(tmp_path):
    arrays = arrays_of(GPT2)
    arrays["embedding.word_embedding.embedding_table"] = np.zeros((50304, 16), np.float32)
    assert SYSTEM.open(write_arrays(tmp_path / "a.ckpt", arrays)).model["masked_token_id"] == 50256


def test_a_missing_and_a_strange_tensor_are_named_as_in_the_file(fastffn, tmp_path):
    arrays = arrays_of(STAGE1)
    del arrays[f"{BLOCK}1.output.fastffnmapping2.bias"]
    arrays["strange"] = np.zeros((2, 2), np.float32)
    done = fastffn("convert", write_arrays(tmp_path / "a.ckpt", arrays), "--out", "o", *HEADS)
    assert done.code == 2
    assert f"missing: {BLOCK}1.output.fastffnmapping2.bias [64]" in done.err
    assert "unexpected: strange [2, 2]" in done.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"conv1.weight": VECTOR, "fc.bias": VECTOR}, "there is no word_embedding"),
        (lambda a: {n: v for n, v in a.items() if ".blocks.0." not in n}, "blocks 0 of 2 are"),
        (lambda a: {**a, f"{BLOCK}1.output.mapping.weight": VECTOR}, "both kinds of feed-forw"),
        (lambda a: {**a, "gpt2.layernorm.gamma": VECTOR}, "gpt2.layernorm.gamma are the same"),
        (lambda a: {**a, "backbone.word_embedding.embedding_table": VECTOR}, "expected a matrix"),
        (lambda a: {**a, "blocks.900000.layernorm1.beta": VECTOR}, "blocks 2, 3, 4, 5, 6, ..."),
    ],
    ids=["resnet", "block gone", "two kinds", "twice", "no matrix", "far block"],
)
def test_other_models_are_refused_with_what_is_wrong(change, message, tmp_path):
    file = write_arrays(tmp_path / "a.ckpt", change(arrays_of(STAGE1)))
    assert SYSTEM.recognise(file)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        SYSTEM.open(file)


VECTOR = np.ones(4, np.float32)


def test_the_newest_of_a_folder_is_taken_and_said(tmp_path):
    for name in ("gpt-9_10", "gpt-10_2", "gpt-2_10"):
        shutil.copy(STAGE1, tmp_path / f"{name}.ckpt")
    assert SYSTEM.recognise(tmp_path)
    opened = SYSTEM.open(tmp_path)
    assert opened.path == tmp_path / "gpt-10_2.ckpt"
    assert any("newest of 3" in notice for notice in opened.notices)


def test_a_folder_whose_names_do_not_tell_is_refused_with_a_list(tmp_path):
    for name in ("gpt-9_10", "gpt_1-1_10", "saveweight"):
        shutil.copy(STAGE1, tmp_path / f"{name}.ckpt")
    with pytest.raises(CheckpointError, match=r"(?s)gpt-9_10.*gpt_1-1_10.*saveweight"):
        SYSTEM.open(tmp_path)


def test_other_files_are_not_recognised(tmp_path):
    assert not SYSTEM.recognise(tmp_path)
    (tmp_path / "torch.ckpt").write_bytes(b"PK\x03\x04 of PyTorch Lightning")
    assert not SYSTEM.recognise(tmp_path / "torch.ckpt")
    assert not SYSTEM.recognise(tmp_path)
    assert not SYSTEM.recognise(FIXTURES / "hf_gpt2" / "model")


def test_mindformers_has_no_factors(convert, fastffn):
    folder, _ = convert(STAGE1, "--to", "low_rank")
    model = read_checkpoint(folder).config.Model
    with pytest.raises(UserError, match="no feed-forward layer of kind 'low_rank'"):
        MINDFORMERS.rules(model, ())
    done = fastffn("convert", folder, "--to", "low_rank", "--format", "mindformers", "--out", "mf")
    assert done.code == 2
    assert "--to dense" in done.err


def test_what_the_original_cannot_say_is_noticed(trained_run, fastffn, workplace):
    arguments = ("--to", "low_rank", "--format", "mindspore", "--out", "ms")
    done = fastffn("convert", trained_run.checkpoint_dir, *arguments)
    assert done.code == 0, done.err
    assert "set it to 4 there" in done.err
    assert "vocab_size=257, hidden_size=32, num_layers=2, num_heads=4, seq_length=32" in done.err
    assert "hide the end-of-text token" in done.err
    (file,) = (workplace.dir / "ms").glob("*.ckpt")
    assert file.name == "gpt-1_8.ckpt"
    opened = SYSTEM.open(workplace.dir / "ms")
    assert (opened.step, opened.model["ffn"]) == (8, {"kind": "low_rank", "rank": 4})
    assert opened.tokenizer().name == "bytes"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_holds_one_tensor_at_a_time(tmp_path):
    source = np.random.default_rng(1)
    names = {name: array.shape for name, array in arrays_of(STAGE2).items() if ".1." not in name}
    width, layers = 768, 9
    sizes = {97: 16_000, 16: width, 32: 1024, 64: 4 * width}
    arrays = {}
    for name, shape in names.items():
        for layer in range(layers) if ".0." in name else [0]:
            grown = [sizes[size] for size in shape]
            values = source.standard_normal(grown, np.float32)
            arrays[name.replace(".0.", f".{layer}.")] = values
    write_arrays(tmp_path / "large.ckpt", arrays)
    total = (tmp_path / "large.ckpt").stat().st_size
    largest = max(array.nbytes for array in arrays.values())
    assert total > 300_000_000
    peaks = []
    for path in (STAGE2, tmp_path / "large.ckpt"):
        out = tmp_path / f"out-{path.stem}"
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, "convert", path, "--out", out, *HEADS],
            cwd=ROOT_DIR, env=program_env(), capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 1.5 * largest < total / 4


MEASURE = (
    "import re\n"
    "from pathlib import Path\n"
    "from fastffn_cli.app import main\n"
    "try:\n"
    "    main()\n"
    "except SystemExit as stop:\n"
    "    assert not stop.code, stop.code\n"
    # Not getrusage: its maximum counts the parent's memory before the exec, too.
    "status = Path('/proc/self/status').read_text()\n"
    "print(1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]))\n"
)


def test_layers_that_stayed_dense_have_no_place_beside_factors():
    given = default_config(["Model.ffn={kind: low_rank, rank: 2, dense_layers: [0]}"])
    model = given.config.Model
    with pytest.raises(UserError, match="layers 0 are dense here"):
        SYSTEM.rules(model, ())
