"""GPT-2 of transformers and ours: the same function, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastffn_cli.data.tokenizer import Tokenizer, build_tokenizer
from fastffn_cli.interop.huggingface_tokenizer import write_tokenizer
from tests.conftest import FIXTURES_DIR, Outcome, TrainedRun, write_corpus
from tests.interop.native import continue_greedily, logits_and_loss

NEEDED = "needs torch and transformers: make parity"
torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)

pytestmark = pytest.mark.parity

Program = Callable[..., Outcome]
TOLERANCE = 1e-5  # of logits of up to about 4, and of the loss, in float32
NEW_TOKENS = 40
PROMPTS = ([1, 2, 3], [17], [5, 5, 90, 4, 31, 8, 2], list(range(20)))

# Shapes that fit nothing: odd vocabularies, one head, inner widths of their own.
MODELS: dict[str, dict[str, Any]] = {
    "three heads of 4": {"vocab_size": 97, "n_embd": 12, "n_head": 3, "n_layer": 2, "n_inner": 20},
    "one head": {"vocab_size": 128, "n_embd": 64, "n_head": 1, "n_layer": 1},
    "five heads of 8": {"vocab_size": 257, "n_embd": 40, "n_head": 5, "n_layer": 3},
    "heads of one value": {"vocab_size": 131, "n_embd": 6, "n_head": 6, "n_layer": 4, "n_inner": 7},
}
ACTIVATIONS = (
    "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "quick_gelu",
)  # fmt: skip


def make_model(seed: int = 0, **sizes: Any) -> Any:
    """A model of random weights, biases and norms, whose logits reach about 4."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(n_positions=64, **sizes)
    model = transformers.GPT2LMHeadModel(config).eval()
    spread = 0.8 / config.n_embd**0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln_" in name and "weight" in name else 0.0, spread)
    return model


def outputs(model: Any, ids_BT: np.ndarray) -> tuple[np.ndarray, float]:
    ids = torch.from_numpy(ids_BT)
    with torch.no_grad():
        result = model(input_ids=ids, labels=ids)
    return result.logits.numpy(), float(result.loss)


def greedy(model: Any, prompt: list[int], length: int = NEW_TOKENS) -> list[int]:
    ids = torch.tensor([prompt])
    done = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=length,
        pad_token_id=0,
        eos_token_id=None,
    )
    return done[0, len(prompt) :].tolist()


def some_ids(model: Any, seed: int = 1) -> np.ndarray:
    config = model.config
    return np.random.default_rng(seed).integers(0, config.vocab_size, (3, config.n_positions))


def check_same(model: Any, checkpoint: Path) -> None:
    ids = some_ids(model)
    theirs, their_loss = outputs(model, ids)
    ours, our_loss = logits_and_loss(checkpoint, ids)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    assert our_loss == pytest.approx(their_loss, abs=TOLERANCE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_admitted_activation_is_the_same_function(
    fastffn: Program, tmp_path: Path, activation: str
) -> None:
    sizes = MODELS["five heads of 8"]
    model = make_model(seed=2, activation_function=activation, **sizes)
    model.save_pretrained(tmp_path / "theirs")

    done = fastffn("convert", tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "ours")

    assert done.code == 0, done.err
    check_same(model, tmp_path / "ours")


def save_safetensors(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def save_shards(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="8kB")


def save_torch_shards(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="8kB", safe_serialization=False)


def save_torch(model: Any, folder: Path, **options: Any) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)


def save_torch_legacy(model: Any, folder: Path) -> None:
    save_torch(model, folder, _use_new_zipfile_serialization=False)


def save_bare(model: Any, folder: Path) -> None:
    model.transformer.save_pretrained(folder)


WAYS = {
    "safetensors": (save_safetensors, {"model.safetensors"}),
    "shards": (save_shards, {"model.safetensors.index.json"}),
    "torch": (save_torch, {"pytorch_model.bin"}),
    "torch before 1.6": (save_torch_legacy, {"pytorch_model.bin"}),
    "torch shards": (save_torch_shards, {"pytorch_model.bin.index.json"}),
    "without a head": (save_bare, {"model.safetensors"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_computes_and_continues_as_in_transformers(
    fastffn: Program, tmp_path: Path, name: str
) -> None:
    model = make_model(**MODELS[name])
    model.save_pretrained(tmp_path / "theirs")

    done = fastffn("convert", tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "ours")

    assert done.code == 0, done.err
    check_same(model, tmp_path / "ours")
    expected = [greedy(model, prompt) for prompt in PROMPTS]
    assert continue_greedily(tmp_path / "ours", PROMPTS, NEW_TOKENS) == expected


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_saving_is_read(fastffn: Program, tmp_path: Path, way: str) -> None:
    model = make_model(seed=3, **MODELS["three heads of 4"])
    save, files = WAYS[way]
    save(model, tmp_path / "theirs")
    assert files <= {file.name for file in (tmp_path / "theirs").iterdir()}

    done = fastffn("convert", tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "ours")

    assert done.code == 0, done.err
    check_same(model, tmp_path / "ours")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("save", [save_safetensors, save_torch, save_torch_legacy])
def test_half_precision_is_read_exactly(
    fastffn: Program, tmp_path: Path, dtype: str, save: Callable[[Any, Path], None]
) -> None:
    model = make_model(seed=4, **MODELS["one head"]).to(getattr(torch, dtype))
    save(model, tmp_path / "theirs")

    done = fastffn("convert", tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "ours")

    assert done.code == 0, done.err
    check_same(model.float(), tmp_path / "ours")


def test_a_trained_head_of_its_own_is_refused(fastffn: Program, tmp_path: Path) -> None:
    sizes = MODELS["three heads of 4"]
    model = make_model(tie_word_embeddings=False, **sizes)
    model.save_pretrained(tmp_path / "theirs")

    done = fastffn("convert", tmp_path / "theirs", "--from", "hf", "--out", tmp_path / "ours")

    assert done.code == 2
    assert "lm_head.weight differs from wte.weight" in done.err
    assert not (tmp_path / "ours").exists()


def test_transformers_opens_what_is_exported(
    fastffn: Program, tmp_path: Path, trained_run: TrainedRun
) -> None:
    merged, exported, back = (tmp_path / name for name in ("merged", "exported", "back"))
    assert fastffn("convert", trained_run.checkpoint_dir, "--out", merged).code == 0

    done = fastffn("convert", merged, "--format", "hf", "--out", exported)

    assert done.code == 0, done.err
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        exported, output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    model.eval()
    ids = some_ids(model)
    theirs, their_loss = outputs(model, ids)
    ours, our_loss = logits_and_loss(merged, ids)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)
    assert their_loss == pytest.approx(our_loss, abs=TOLERANCE)
    assert continue_greedily(merged, [[104, 105]], 28)[0] == greedy(model, [104, 105], 28)

    assert fastffn("convert", exported, "--from", "hf", "--out", back).code == 0
    before, after = (load_file(each / "model.safetensors") for each in (merged, back))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_transformers_writes_back_what_it_read_of_ours(
    fastffn: Program, tmp_path: Path, trained_run: TrainedRun
) -> None:
    exported = tmp_path / "exported"
    done = fastffn("convert", trained_run.checkpoint_dir, "--format", "hf", "--out", exported)
    assert done.code == 0, done.err

    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    model.save_pretrained(tmp_path / "theirs")

    ours, theirs = (folder / "model.safetensors" for folder in (exported, tmp_path / "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    ours_config, their_config = (
        json.loads((folder / "config.json").read_text())
        for folder in (exported, tmp_path / "theirs")
    )
    shared = ours_config.keys() & their_config.keys()
    assert {key: ours_config[key] for key in shared} == {key: their_config[key] for key in shared}


TEXTS = (
    "the river runs under an old bridge",
    " two  spaces\tand\na line\r\n\n",
    "Naïve café, 日本語, 👩‍👩‍👧 and \x00\x1b[31m",
    "e\u0301 vs é; 12345 + 67,890 isn't -1e-5",
    "",
)


@pytest.mark.parametrize("kind", ["bytes", "trained", "gpt2"])
def test_auto_tokenizer_gives_our_ids(tmp_path: Path, kind: str) -> None:
    if kind == "gpt2":
        ours = Tokenizer.load(FIXTURES_DIR / "hf_gpt2" / "model")
    else:
        corpus = write_corpus(tmp_path / "corpus.jsonl", documents=20)
        ours = build_tokenizer("bytes" if kind == "bytes" else "train:400", [corpus])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"model_type": "gpt2"}')

    write_tokenizer(tmp_path / "out", ours, 64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")

    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == ours.eos_id
    assert theirs.model_max_length == 64
    assert theirs("a" + ours.eos_token)["input_ids"][-1] == ours.eos_id
    if kind != "bytes":
        pair = transformers.GPT2Tokenizer(
            str(tmp_path / "out" / "vocab.json"), str(tmp_path / "out" / "merges.txt")
        )
        for text in TEXTS:
            assert pair(text)["input_ids"] == ours.encode(text)


def test_tokenizers_of_transformers_are_read(tmp_path: Path) -> None:
    theirs = transformers.GPT2TokenizerFast.from_pretrained(FIXTURES_DIR / "hf_gpt2" / "model")
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()

    ours = Tokenizer.load(tmp_path)

    assert ours.eos_id == theirs.eos_token_id
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
