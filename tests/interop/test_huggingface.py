"""GPT-2 of Hugging Face: what is read, what is refused and why, what is written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fastffn_cli.data.tokenizer import Tokenizer, build_tokenizer, byte_letters
from fastffn_cli.engine.tensor_file import open_safetensors
from fastffn_cli.errors import CheckpointError, DataError
from fastffn_cli.interop import huggingface_weights
from fastffn_cli.interop.huggingface import SYSTEM
from fastffn_cli.interop.huggingface_tokenizer import write_tokenizer
from fastffn_cli.interop.huggingface_weights import open_weights, write_weights
from tests.conftest import FIXTURES_DIR, Outcome, TrainedRun
from tests.interop import torch_pickles
from tests.interop.gpt2_files import (
    HEADS,
    LAYERS,
    POSITIONS,
    ROWS,
    WIDE,
    WIDTH,
    gpt2_arrays,
    two_shards,
    write_config,
    write_gpt2,
    write_shards,
)
from tests.interop.native import continue_greedily, logits_and_loss

REFERENCE_DIR = FIXTURES_DIR / "hf_gpt2"
MODEL_DIR = REFERENCE_DIR / "model"
Program = Callable[..., Outcome]


def problems_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        SYSTEM.open(path)
    return str(refused.value)


# -- against transformers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE_DIR / "reference.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def converted_dir(fastffn: Program, tmp_path: Path) -> Path:
    """The reference model as one of our checkpoints."""
    done = fastffn("convert", MODEL_DIR, "--from", "hf", "--out", tmp_path / "converted")
    assert done.code == 0, done.err
    return tmp_path / "converted"


def test_logits_and_loss_are_those_of_transformers(
    converted_dir: Path, reference: dict[str, np.ndarray]
) -> None:
    logits, loss = logits_and_loss(converted_dir, reference["ids"])

    np.testing.assert_allclose(
        logits[..., :128], reference["plain.logits_first128"], rtol=0, atol=1e-5
    )
    log_sums = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(log_sums, reference["plain.lse"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1), reference["plain.argmax"])
    assert loss == pytest.approx(float(reference["plain.loss"]), abs=1e-5)


def test_greedy_continuations_are_those_of_transformers(
    converted_dir: Path, reference: dict[str, np.ndarray]
) -> None:
    prompts = [
        row[mask.astype(bool)].tolist()
        for row, mask in zip(reference["gen.prompt3"], reference["gen.prompt3_mask"], strict=True)
    ]
    prompts.append(reference["gen.prompt1"][0].tolist())
    expected = [
        *reference["gen.p3.greedy"][:, reference["gen.prompt3"].shape[1] :].tolist(),
        reference["gen.p1.greedy"][0, reference["gen.prompt1"].shape[1] :].tolist(),
    ]

    assert continue_greedily(converted_dir, prompts, 20) == expected


def test_the_tokenizer_gives_the_ids_of_transformers() -> None:
    tokenizer = SYSTEM.open(MODEL_DIR).tokenizer()
    cases = json.loads((REFERENCE_DIR / "tokenizer_cases.json").read_text(encoding="utf-8"))
    assert tokenizer is not None
    assert tokenizer.eos_id == 50256
    quoting = [case for case in cases if tokenizer.eos_token in case["text"]]
    assert len(cases) == 37
    assert len(quoting) == 2

    for case in cases:
        if case not in quoting:
            assert tokenizer.encode(case["text"]) == case["ids"]
            assert tokenizer.decode(case["ids"]) == case["decoded"]
    # On purpose: no text can contain the end of a document here.
    for case in quoting:
        assert 50256 in case["ids"]
        assert 50256 not in tokenizer.encode(case["text"])
        assert tokenizer.decode(tokenizer.encode(case["text"])) == case["text"]


def test_an_export_has_the_bytes_that_transformers_wrote(
    fastffn: Program, tmp_path: Path, converted_dir: Path
) -> None:
    out_dir = tmp_path / "exported"

    done = fastffn("convert", converted_dir, "--format", "hf", "--out", out_dir)

    assert done.code == 0, done.err
    for name in ("model.safetensors", "merges.txt"):
        assert (out_dir / name).read_bytes() == (MODEL_DIR / name).read_bytes()
    for name in ("config.json", "vocab.json", "generation_config.json"):
        ours, theirs = (json.loads((each / name).read_text()) for each in (out_dir, MODEL_DIR))
        shared = ours.keys() & theirs.keys()
        assert shared >= {"bos_token_id"} or name == "vocab.json"
        assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    with safe_open(out_dir / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert {file.name for file in out_dir.iterdir()} == {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }


# -- what is recognised and read -----------------------------------------------------------------


def test_the_configuration_becomes_the_model_section(tmp_path: Path) -> None:
    write_gpt2(tmp_path)

    opened = SYSTEM.open(tmp_path)

    assert opened.title == "Hugging Face GPT-2, model.safetensors"
    assert opened.model == {
        "vocab_size": ROWS,
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "ffn_hidden_size": WIDE,
        "max_position_embeddings": POSITIONS,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.2,
        "initializer_range": 0.03,
    }
    assert any("no tokenizer" in notice for notice in opened.notices)
    assert opened.tokenizer() is None


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("file", ["model.safetensors", "renamed.bin"])
def test_weights_alone_are_known_by_their_names(tmp_path: Path, prefix: str, file: str) -> None:
    save_file(gpt2_arrays(prefix), tmp_path / file)

    assert SYSTEM.recognise(tmp_path / file)
    opened = SYSTEM.open(tmp_path / file)
    assert "num_attention_heads" not in opened.model
    assert opened.model["ffn_hidden_size"] == WIDE
    assert any("attention heads is not known" in notice for notice in opened.notices)


def test_weights_without_a_configuration_need_the_number_of_heads(
    fastffn: Program, tmp_path: Path
) -> None:
    arrays = gpt2_arrays("")
    save_file(arrays, tmp_path / "w.safetensors")
    words = ("convert", tmp_path / "w.safetensors", "--from", "hf", "--out", tmp_path / "out")

    without = fastffn(*words)
    given = fastffn(*words, "-o", f"Model.num_attention_heads={HEADS}")

    assert without.code == 2
    assert "Model.num_attention_heads" in without.err
    assert given.code == 0, given.err
    ours = load_file(tmp_path / "out" / "model.safetensors")
    size = WIDTH // HEADS
    fused = ours["layers.1.self_attn.qkv_proj.weight"].reshape(WIDTH, HEADS, 3, size)
    keys = arrays["h.1.attn.c_attn.weight"][:, WIDTH : 2 * WIDTH]
    np.testing.assert_array_equal(fused[:, :, 1].reshape(WIDTH, WIDTH), keys)
    np.testing.assert_array_equal(ours["word_embeddings.weight"], arrays["wte.weight"])


def test_other_models_are_not_taken_for_gpt2(tmp_path: Path, trained_run: TrainedRun) -> None:
    write_gpt2(tmp_path / "llama", model_type="llama")
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"wte.weight": 1}))
    write_gpt2(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()

    os.mkfifo(tmp_path / "pipe")

    for name in ("llama", "other.safetensors", "plain.pkl", "broken", "empty", "pipe"):
        assert not SYSTEM.recognise(tmp_path / name), name
    assert not SYSTEM.recognise(tmp_path / "llama" / "model.safetensors")
    assert not SYSTEM.recognise(trained_run.checkpoint_dir)
    assert "'llama'" in problems_of(tmp_path / "llama")


def test_a_configuration_of_the_first_years_is_read(tmp_path: Path) -> None:
    write_gpt2(
        tmp_path,
        {
            **gpt2_arrays(""),
            "h.0.attn.bias": np.ones((1, 1, 32, 32), np.uint8),
            "h.0.attn.masked_bias": np.float32([-1e4]),
        },
        model_type=...,
        n_positions=...,
        n_ctx=POSITIONS,
    )

    assert SYSTEM.recognise(tmp_path)
    opened = SYSTEM.open(tmp_path)
    assert opened.model["max_position_embeddings"] == POSITIONS
    assert set(opened.ignored) == {"h.0.attn.bias", "h.0.attn.masked_bias"}
    assert opened.tensors.keys() == gpt2_arrays("").keys()


def test_safetensors_go_before_other_weights(tmp_path: Path) -> None:
    write_gpt2(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")

    opened = SYSTEM.open(tmp_path)

    assert opened.title.endswith("model.safetensors")
    assert any("pytorch_model.bin is there as well" in notice for notice in opened.notices)


def test_a_file_of_torch_is_read_without_torch(tmp_path: Path) -> None:
    arrays = gpt2_arrays("")
    content, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        strides = (array.shape[1], 1) if array.ndim == 2 else (1,)
        kept = torch_pickles.storage(array.size, key=str(number))
        content[name] = torch_pickles.tensor(kept, 0, array.shape, strides)
        storages[str(number)] = array.tobytes()
    content["lm_head.weight"] = content["wte.weight"]
    write_config(tmp_path)
    torch_pickles.write_legacy(tmp_path / "pytorch_model.bin", content, storages)

    opened = SYSTEM.open(tmp_path)

    assert opened.title == "Hugging Face GPT-2, pytorch_model.bin"
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.tensors[name].read(), array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"w": torch_pickles.tensor()}, "epoch": 3}, "'model', 'epoch'"),
        ({"layer.0.query": torch_pickles.tensor()}, "It has layer.0.query ..."),
        (
            torch_pickles.Call(torch_pickles.Name("transformers", "GPT2LMHeadModel"), ()),
            "transformers.GPT2LMHeadModel",
        ),
    ],
)
def test_a_file_of_torch_with_something_else_says_what_it_holds(
    fastffn: Program, tmp_path: Path, content: Any, words: str
) -> None:
    file = torch_pickles.write_zip(tmp_path / "checkpoint.pt", content, {"0": bytes(24)})

    done = fastffn("convert", file, "--out", tmp_path / "out")

    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "out").exists()


# -- the head ------------------------------------------------------------------------------------


def test_a_head_that_is_the_word_embedding_is_left_out(tmp_path: Path) -> None:
    arrays = gpt2_arrays()
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"].copy()
    write_gpt2(tmp_path, arrays, tie_word_embeddings=False)

    opened = SYSTEM.open(tmp_path)

    assert "lm_head.weight" not in opened.tensors
    read = opened.tensors["transformer.wte.weight"].read()
    np.testing.assert_array_equal(read, arrays["lm_head.weight"])


def test_a_head_of_its_own_is_refused_and_nothing_is_written(
    fastffn: Program, tmp_path: Path
) -> None:
    arrays = gpt2_arrays()
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"].copy()
    arrays["lm_head.weight"][-1, -1] += 1
    write_gpt2(tmp_path / "theirs", arrays)

    done = fastffn("convert", tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "out")

    assert done.code == 2
    assert "lm_head.weight differs from wte.weight" in done.err
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_tied_and_not_there_is_refused(tmp_path: Path) -> None:
    write_gpt2(tmp_path, tie_word_embeddings=False)

    assert "tie_word_embeddings" in problems_of(tmp_path)


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("activation_function", "gelu", "activation_function is 'gelu'"),
        ("activation_function", "silu", "only the tanh form of GELU"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06"),
        ("scale_attn_weights", False, "scale_attn_weights is False"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True"),
        ("add_cross_attention", True, "add_cross_attention is True"),
        ("n_head", 5, "n_head 5 does not divide n_embd 12"),
        ("n_head", 0, "n_head is 0, which is no positive integer"),
        ("n_head", True, "n_head is True"),
        ("n_layer", 3, "n_layer is 3, the tensors have 2"),
        ("n_inner", None, "n_inner is blank, that is 4 n_embd, the tensors have 20"),
        ("vocab_size", "61", "vocab_size is '61', which is no positive integer"),
        ("n_positions", 1024, "n_positions is 1024, the tensors have 32"),
        ("attn_pdrop", 1.5, "attn_pdrop is 1.5"),
        ("resid_pdrop", None, "resid_pdrop is None"),
        ("initializer_range", -1, "initializer_range is -1"),
        ("layer_norm_epsilon", 10**400, "layer_norm_epsilon is 1000"),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused_with_its_reason(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    write_gpt2(tmp_path, **{key: value})

    said = problems_of(tmp_path)

    assert words in said
    assert "config.json" in said


def test_all_problems_of_a_configuration_are_told_at_once(tmp_path: Path) -> None:
    write_gpt2(tmp_path, activation_function="relu", layer_norm_epsilon=1e-12, n_embd=16)

    said = problems_of(tmp_path)

    for words in ("'relu'", "1e-12", "n_embd is 16, the tensors have 12"):
        assert words in said


@pytest.mark.parametrize(
    "name", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"]
)
def test_all_spellings_of_tanh_gelu_are_read(tmp_path: Path, name: str) -> None:
    write_gpt2(tmp_path, activation_function=name)

    assert SYSTEM.open(tmp_path).model["hidden_size"] == WIDTH


def test_quick_gelu_is_fast_gelu_here(tmp_path: Path) -> None:
    write_gpt2(tmp_path, activation_function="quick_gelu")

    opened = SYSTEM.open(tmp_path)

    assert opened.model["hidden_act"] == "fast_gelu"


def test_a_fast_gelu_model_comes_back_equal_and_goes_where_it_is_computed(
    fastffn: Program, tmp_path: Path
) -> None:
    write_gpt2(tmp_path / "theirs", activation_function="quick_gelu")
    ids = np.random.default_rng(3).integers(0, ROWS, (2, 9))
    run = [("theirs", "--out", "ours"), ("ours", "--format", "hf", "--out", "back")]
    run.append(("ours", "--format", "mindformers", "--out", "mind"))
    for source, *words in run:
        words[-1] = str(tmp_path / words[-1])
        done = fastffn("convert", tmp_path / source, *words)
        assert done.code == 0, done.err
    assert json.loads((tmp_path / "back" / "config.json").read_text())["activation_function"] == (
        "quick_gelu"
    )
    assert "hidden_act=fast_gelu" in done.err
    logits, _ = logits_and_loss(tmp_path / "ours", ids)
    write_gpt2(tmp_path / "tanh", activation_function="gelu_new")
    assert fastffn("convert", tmp_path / "tanh", "--out", tmp_path / "other").code == 0
    others, _ = logits_and_loss(tmp_path / "other", ids)
    assert np.abs(logits - others).max() > 1e-4
    refused = fastffn("convert", tmp_path / "ours", "--format", "fleetx", "--out", tmp_path / "no")
    assert refused.code == 2
    assert "Model.hidden_act is fast_gelu here" in " ".join(refused.err.split())
    assert not (tmp_path / "no").exists()


def test_dropout_of_embeddings_is_kept_where_it_differs(tmp_path: Path) -> None:
    write_gpt2(tmp_path, resid_pdrop=0.25, embd_pdrop=0.0)

    opened = SYSTEM.open(tmp_path)

    assert opened.model["hidden_dropout_prob"] == 0.25
    assert opened.model["embedding_dropout_prob"] == 0.0


def test_missing_and_unexpected_tensors_are_listed(fastffn: Program, tmp_path: Path) -> None:
    arrays = gpt2_arrays()
    del arrays["transformer.h.1.ln_2.bias"]
    arrays["score.weight"] = np.zeros((2, WIDTH), np.float32)
    write_gpt2(tmp_path / "theirs", arrays)

    done = fastffn("convert", tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "out")

    assert done.code == 2
    assert "missing: transformer.h.1.ln_2.bias [12]" in done.err
    assert "unexpected: score.weight [2, 12]" in done.err


def test_a_folder_without_readable_weights_says_what_is_there(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert "tf_model.h5 of TensorFlow or Flax is not read" in problems_of(tmp_path)

    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in problems_of(tmp_path)

    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "an empty file" in problems_of(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_gpt2(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])

    assert str(file) in problems_of(tmp_path)


# -- shards --------------------------------------------------------------------------------------


def test_shards_are_put_together(tmp_path: Path) -> None:
    places, shards = two_shards()
    write_shards(tmp_path, places, shards)

    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert SYSTEM.recognise(path)
        opened = SYSTEM.open(path)
        assert opened.title == "Hugging Face GPT-2, 2 shards"
        assert opened.tensors.keys() == places.keys()
        for name, array in gpt2_arrays().items():
            np.testing.assert_array_equal(opened.tensors[name].read(), array)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    places, shards = two_shards()
    gone = next(iter(shards))
    write_shards(tmp_path, places, shards)
    (tmp_path / gone).unlink()

    assert f"shard {gone} is missing (14 tensors)" in problems_of(tmp_path)


def test_an_index_and_shards_that_disagree_are_refused_with_all_problems(tmp_path: Path) -> None:
    places, shards = two_shards()
    first, second = shards
    moved, lost = (name for name in list(places)[:4:2])
    shards[second][moved] = shards[first].pop(moved)
    shards[first].pop(lost)
    shards[second]["stray"] = np.zeros(2, np.float32)
    write_shards(tmp_path, places, shards)

    said = problems_of(tmp_path)

    assert f"{second} holds {moved}, the index says {first}" in said
    assert f"{first} has no {lost}, the index says it has" in said
    assert f"{second} holds stray, which the index does not name" in said


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.safetensors", "/etc/passwd", "a\\b", "C:x", "..", ".hidden"),
        *("", "a" * 300, "a\0b", "\ud800", 7, None, ["a"], {"a": "b"}),
    ],
)
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: Any) -> None:
    places, shards = two_shards()
    folder = tmp_path / "model"
    write_shards(folder, {**places, "transformer.wte.weight": name}, shards)
    shutil.copy(folder / next(iter(shards)), tmp_path / "outside.safetensors")

    assert "is no name of a file in this folder" in problems_of(folder)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    places, shards = two_shards()
    write_shards(tmp_path, places, shards)
    index = tmp_path / "model.safetensors.index.json"
    name, place = next(iter(places.items()))
    text = index.read_text()
    index.write_text(text.replace("{" + f'"{name}"', "{" + f'"{name}": "{place}", "{name}"', 1))
    assert index.read_text() != text

    assert "is there twice" in problems_of(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"a":' * 100_000])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)

    assert "model.safetensors.index.json" in problems_of(tmp_path)


def test_one_shard_alone_asks_for_its_folder(tmp_path: Path) -> None:
    places, shards = two_shards()
    write_shards(tmp_path, places, shards)

    with pytest.raises(CheckpointError, match="one of several shards") as refused:
        SYSTEM.open(tmp_path / next(iter(shards)))

    assert str(tmp_path) in str(refused.value.hint)


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    arrays = gpt2_arrays()
    save_file(arrays, tmp_path / "whole.safetensors")
    (tmp_path / "shards").mkdir()
    limit = 4000

    write_weights(tmp_path / "shards", open_safetensors(tmp_path / "whole.safetensors"), limit)

    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    for file in files:
        held = load_file(file)
        assert sum(array.nbytes for array in held.values()) <= limit or len(held) == 1
    weights = open_weights(tmp_path / "shards")
    assert len(weights.files) == len(files)
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights.tensors[name].read(), array)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())


def test_a_model_is_one_file_up_to_five_gigabytes() -> None:
    assert huggingface_weights.SHARD_BYTES == 5_000_000_000


# -- what is written -----------------------------------------------------------------------------


def test_a_round_trip_is_bit_equal(fastffn: Program, tmp_path: Path) -> None:
    write_gpt2(tmp_path / "theirs")
    steps = (
        (tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "ours"),
        (tmp_path / "ours", "--format", "hf", "--out", tmp_path / "again"),
        (tmp_path / "again", "--from", "hf", "--out", tmp_path / "ours-again"),
    )
    for words in steps:
        done = fastffn("convert", *words)
        assert done.code == 0, done.err

    for before, after in (("theirs", "again"), ("ours", "ours-again")):
        first, second = (tmp_path / each / "model.safetensors" for each in (before, after))
        assert first.read_bytes() == second.read_bytes()
    assert SYSTEM.open(tmp_path / "again").model == SYSTEM.open(tmp_path / "theirs").model
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] is None
    assert not list((tmp_path / "again").glob("tokenizer*"))


def test_factors_are_refused_and_merged_on_request(
    fastffn: Program, tmp_path: Path, trained_run: TrainedRun
) -> None:
    source = trained_run.checkpoint_dir
    low_rank = tmp_path / "low-rank"
    words = ("convert", source, "--format", "hf", "--out", tmp_path / "out")
    refused = fastffn(*words, "--to", "low_rank")
    assert refused.code == 2
    assert "'low_rank'" in refused.err
    assert "--to dense" in refused.err
    assert not (tmp_path / "out").exists()

    assert fastffn(*words, "--to", "dense").code == 0
    done = fastffn(
        *("convert", tmp_path / "out", "--from", "hf", "--to", "low_rank", "--rank", "8"),
        *("--out", low_rank),
    )
    assert done.code == 0, done.err
    factor = load_file(low_rank / "model.safetensors")["layers.0.ffn.linear1.left"]
    assert factor.shape == (32, 8)

    done = fastffn("convert", low_rank, "--to", "dense", "--format", "hf", "--out", tmp_path / "x")
    assert done.code == 0, done.err
    # The run's factors have rank 4, so that rank 8 keeps all of them.
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("out", "x"))
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=1e-6)


def test_a_tokenizer_that_is_not_of_gpt2s_kind_has_no_vocabulary_pair(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("bytes")

    write_tokenizer(tmp_path, tokenizer, 32)

    assert not (tmp_path / "vocab.json").exists()
    assert Tokenizer.load(tmp_path).encode("a b") == [97, 32, 98]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["eos_token"] == tokenizer.eos_token


def write_pair(folder: Path, config: dict[str, Any]) -> None:
    """A byte vocabulary as vocab.json + merges.txt, and a tokenizer_config.json."""
    letters = {letter: number for number, letter in enumerate(byte_letters())}
    vocabulary = {**letters, "<|endoftext|>": 256, "ab": 257}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_tokens_added_beside_a_vocabulary_pair_have_their_ids(tmp_path: Path) -> None:
    added = {"258": {"content": "<new>", "special": False}, "259": {"content": "<pad>"}}
    added["259"]["special"] = True
    write_pair(tmp_path, {"added_tokens_decoder": added})

    tokenizer = Tokenizer.load(tmp_path)

    assert tokenizer.vocab_size == 260
    assert tokenizer.encode("ab<new>c") == [257, 258, 99]
    # A special token is not found in a text, whoever named it.
    assert 259 not in tokenizer.encode("<pad>")
    assert tokenizer.token_text(259) == "<pad>"


def test_a_pair_that_sets_a_space_in_front_does_so(tmp_path: Path) -> None:
    write_pair(tmp_path, {"add_prefix_space": True})

    assert Tokenizer.load(tmp_path).encode("ab") == [32, 257]


@pytest.mark.parametrize(
    "added", [{"300": {"content": "<new>"}}, {"x": {}}, {"258": "<new>"}, ["<new>"], {"258": None}]
)
def test_added_tokens_that_do_not_follow_the_vocabulary_are_refused(
    tmp_path: Path, added: Any
) -> None:
    write_pair(tmp_path, {"added_tokens_decoder": added})

    with pytest.raises(DataError, match="the added tokens do not fit the vocabulary"):
        Tokenizer.load(tmp_path)


def test_a_hidden_token_is_written_with_a_warning(fastffn: Program, tmp_path: Path) -> None:
    write_gpt2(tmp_path / "theirs")
    words = ("convert", tmp_path / "theirs", "--from", "hf", "--format", "hf", "--out")

    plain = fastffn(*words, tmp_path / "plain")
    hidden = fastffn(*words, tmp_path / "hidden", "-o", "Model.masked_token_id=60")

    assert plain.code == hidden.code == 0, hidden.err
    assert "masked_token_id" not in plain.err
    assert "Hugging Face GPT-2 has no Model.masked_token_id: token 60" in hidden.err
