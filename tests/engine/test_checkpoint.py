"""Checkpoints: what is written comes back, what does not fit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

from fastffn_cli.engine import storage
from fastffn_cli.engine.checkpoint import (
    Checkpoint,
    Verification,
    load_model,
    model_tensors,
    read_checkpoint,
    set_weights,
    write_checkpoint,
)
from fastffn_cli.errors import CheckpointError, ConfigError, UserError
from models.gpt import GPT, GPTConfig
from tests.conftest import TrainedRun
from tests.engine.runs import flip_byte


def small_gpt(**changes: object) -> GPT:
    sizes = {
        **{"vocab_size": 20, "hidden_size": 8, "num_layers": 1, "num_attention_heads": 2},
        **{"ffn_hidden_size": 16, "max_position_embeddings": 8},
    }
    return GPT(GPTConfig(**{**sizes, **changes}))  # type: ignore[arg-type]


@pytest.fixture
def trained(trained_run: TrainedRun) -> Checkpoint:
    return read_checkpoint(trained_run.checkpoint_dir)


def test_what_is_written_is_read(tmp_path: Path, trained: Checkpoint) -> None:
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.float64([1e-300])}
    state = {"a.moment1": np.full((3, 2), 1e-38, np.float32)}
    write_checkpoint(
        tmp_path / "new",
        config=trained.config,
        trainer={"step": 3, "note": "ü"},
        tensors=weights,
        optimizer_state=state,
        tokenizer_dir=trained.path,
    )

    read = read_checkpoint(tmp_path / "new")

    assert (read.step, read.trainer["note"]) == (3, "ü")
    assert read.config == trained.config
    for name, array in {**weights, **state}.items():
        found = {**read.tensors(), **read.optimizer_state()}[name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    tokenizer, original = read.tokenizer(), trained.tokenizer()
    assert tokenizer is not None
    assert original is not None
    assert tokenizer.encode("river") == original.encode("river")


def test_a_checkpoint_is_never_overwritten(tmp_path: Path, trained: Checkpoint) -> None:
    shutil.copytree(trained.path, tmp_path / "old")
    with pytest.raises(UserError, match="exists already"):
        write_checkpoint(
            tmp_path / "old", config=trained.config, trainer={"step": 1}, tensors={"a": np.ones(1)}
        )
    assert read_checkpoint(tmp_path / "old").step == 8


def test_files_are_safetensors_json_and_yaml_only(trained: Checkpoint) -> None:
    for file in trained.path.iterdir():
        assert file.suffix in (".safetensors", ".json", ".yaml")
        assert not file.read_bytes().startswith(b"\x80")  # a pickle


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "trainer.json is not readable"),
        ('{"step": 1}', "trainer.json is not readable"),
        ('{"format": 1, "step": "many"}', "trainer.json is not readable"),
        ('{"format": 99, "step": 1}', "has checkpoint format 99; this version reads 1"),
        ("[1]", "trainer.json is not readable"),
    ],
)
def test_a_trainer_record_that_makes_no_sense_is_refused(
    tmp_path: Path, trained: Checkpoint, content: str, message: str
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(trained.path, folder)
    (folder / "trainer.json").write_text(content, encoding="utf-8")
    (folder / "manifest.json").unlink()
    storage.write_manifest(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_a_configuration_that_makes_no_sense_is_refused(
    tmp_path: Path, trained: Checkpoint
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(trained.path, folder)
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("Modell: {}\n")
    (folder / "manifest.json").unlink()
    storage.write_manifest(folder)
    with pytest.raises(ConfigError, match="Modell"):
        read_checkpoint(folder)


def test_weights_that_do_not_fit_are_listed() -> None:
    model = small_gpt()
    tensors = model_tensors(model)
    tensors["norm.weight"] = np.zeros(9, np.float32)
    tensors["surplus"] = tensors.pop("norm.bias")
    before = model_tensors(model)

    with pytest.raises(CheckpointError) as caught:
        set_weights(model, tensors, "somewhere")

    assert caught.value.message.splitlines() == [
        "somewhere does not fit the model:",
        *("missing: norm.bias", "unknown: surplus", "norm.weight is [9], the model needs [8]"),
    ]
    for name, array in model_tensors(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_load_model_gives_the_trained_function_in_eval_mode(
    trained_run: TrainedRun, trained: Checkpoint
) -> None:
    loaded = load_model(trained_run.checkpoint_dir)

    assert not loaded.model.training
    assert loaded.step == 8
    assert loaded.model.config.ffn["init"] == "spectral"  # what the run was, not how it was loaded
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("über")) == "über"
    saved = trained.tensors()
    for name, array in model_tensors(loaded.model).items():
        assert array.tobytes() == saved[name].tobytes(), name
    ids = paddle.to_tensor([[1, 2, 3]])
    np.testing.assert_array_equal(loaded.model(ids).numpy(), loaded.model(ids).numpy())


def test_half_precision_weights_are_stored_exactly_as_float32() -> None:
    model = small_gpt()
    model.to(dtype="bfloat16")
    tensors = model_tensors(model)
    again = small_gpt()
    again.to(dtype="bfloat16")
    set_weights(again, tensors, "memory")
    assert {array.dtype for array in tensors.values()} == {np.dtype("float32")}
    for name, array in model_tensors(again).items():
        np.testing.assert_array_equal(array, tensors[name])


def test_the_manifest_lists_every_file(trained: Checkpoint) -> None:
    manifest = json.loads((trained.path / "manifest.json").read_text(encoding="utf-8"))
    names = {path.name for path in trained.path.iterdir()} - {"manifest.json"}
    assert manifest["files"].keys() == names


def test_load_model_refuses_altered_weights_though_they_fit(
    tmp_path: Path, trained_run: TrainedRun
) -> None:
    folder = Path(shutil.copytree(trained_run.checkpoint_dir, tmp_path / "step"))
    flip_byte(folder / "model.safetensors", -2)

    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match its sha256"):
        load_model(folder)


def test_load_model_tells_of_the_damage_and_not_of_what_it_led_to(
    tmp_path: Path, trained_run: TrainedRun
) -> None:
    folder = Path(shutil.copytree(trained_run.checkpoint_dir, tmp_path / "step"))
    file = folder / "config.yaml"
    text = file.read_text(encoding="utf-8")
    assert "hidden_size: 32" in text
    file.write_text(text.replace("hidden_size: 32", "hidden_size: 64"), encoding="utf-8")

    with pytest.raises(CheckpointError, match=r"config\.yaml does not match its sha256"):
        load_model(folder)


def test_load_model_does_not_read_the_state_of_the_optimizer(
    tmp_path: Path, trained_run: TrainedRun
) -> None:
    folder = Path(shutil.copytree(trained_run.checkpoint_dir, tmp_path / "step"))
    flip_byte(folder / "optimizer.safetensors", -2)

    assert load_model(folder).step == 8
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors does not match"):
        read_checkpoint(folder)


def test_a_verification_that_cannot_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        Verification(tmp_path / "nothing").require_whole()
