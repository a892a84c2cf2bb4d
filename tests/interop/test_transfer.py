"""`convert` between systems, from end to end: round trips, refusals, what is said about them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastffn_cli.interop.registry import SYSTEMS
from tests.conftest import program_env

HEADS = "-o", "Model.num_attention_heads=4"


def lonely_weights(convert, checkpoint):
    """A model.pdparams with nothing beside it, as people pass it on."""
    theirs = convert(checkpoint, "--format", "fleetx", "--out", "theirs")
    alone = theirs.with_name("alone")
    alone.mkdir()
    return shutil.copy(theirs / "model.pdparams", alone)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_bit_equal(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


@pytest.fixture(scope="module")
def checkpoint(trained_run):
    return trained_run.checkpoint_dir


@pytest.fixture
def convert(fastffn, workplace):
    """`convert(...)` must succeed; gives the folder it wrote."""

    def call(*arguments):
        done = fastffn("convert", *arguments, "--json")
        assert done.code == 0, done.err
        return workplace.dir / json.loads(done.out)["out"]

    return call


@pytest.fixture
def refused(fastffn, workplace):
    """`refused(...)` must end with exit 2 and leave nothing new; gives what it said."""

    def call(*arguments):
        before = sorted(workplace.dir.rglob("*"))
        done = fastffn("convert", *arguments)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        assert sorted(workplace.dir.rglob("*")) == before
        return " ".join(done.err.split())

    return call


@pytest.mark.parametrize("system", SYSTEMS)
def test_native_to_theirs_and_back_is_bit_equal(system, checkpoint, convert, workplace):
    dense = convert(checkpoint, "--out", "dense")
    theirs = convert(dense, "--format", system, "--out", "theirs")
    back = convert(theirs, "--out", "back", *HEADS)
    assert_bit_equal(weights(dense), weights(back))
    assert not (theirs / "manifest.json").exists()


def test_factors_go_to_mindspore_and_back_bit_equal(checkpoint, convert):
    theirs = convert(checkpoint, "--to", "low_rank", "--format", "mindspore", "--out", "theirs")
    back = convert(theirs, "--to", "low_rank", "--out", "back", *HEADS)
    assert_bit_equal(weights(checkpoint), weights(back))


def test_from_one_foreign_system_to_the_next(checkpoint, convert):
    dense = convert(checkpoint, "--out", "dense")
    step = dense
    for system in SYSTEMS:
        step = convert(
            step, "--format", system, "--out", f"in-{system}", *(HEADS * (step != dense))
        )
    assert_bit_equal(weights(dense), weights(convert(step, "--out", "back", *HEADS)))


def test_factors_are_merged_and_checked_on_the_way_out(checkpoint, convert, fastffn):
    done = fastffn("convert", checkpoint, "--format", "hf", "--out", "out")
    assert done.code == 0
    assert "max |logit difference|" in done.err
    dense = convert(checkpoint, "--out", "dense")
    assert_bit_equal(weights(dense), weights(convert("out", "--out", "back")))


def test_the_step_and_the_source_are_recorded(checkpoint, convert):
    theirs = convert(checkpoint, "--format", "fleetx", "--out", "theirs")
    trainer = json.loads((convert(theirs, "--out", "back", *HEADS) / "trainer.json").read_text())
    assert trainer["step"] == 8
    assert trainer["stage"] == "convert"
    assert trainer["source"] == str(theirs)


def test_a_converted_checkpoint_is_evaluated_like_its_origin(
    checkpoint, convert, fastffn, data_dir
):
    dense = convert(checkpoint, "--out", "dense")
    back = convert(convert(dense, "--format", "hf", "--out", "hf"), "--out", "back")
    losses = []
    for folder in (dense, back):
        done = fastffn("eval", folder, "--data", data_dir, "--part", "all", "--json")
        assert done.code == 0, done.err
        losses.append(json.loads(done.out)["loss"])
    assert losses[0] == losses[1]


def test_a_tokenizer_can_be_put_beside_foreign_weights(checkpoint, convert):
    file = lonely_weights(convert, checkpoint)
    without = convert(file, "--out", "without", *HEADS)
    assert not (without / "tokenizer.json").exists()
    given = convert(file, "--tokenizer", "bytes", "--out", "with", *HEADS)
    assert (given / "tokenizer.json").exists()


def large_tokenizer(folder):
    """Write a tokenizer.json of a thousand ids."""
    vocabulary = {f"t{number}": number for number in range(999)} | {"<|endoftext|>": 999}
    spec = folder / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    spec.write_text(json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None,
                                "pre_tokenizer": None, "post_processor": None, "decoder": None,
                                "truncation": None, "padding": None, "model": model}))  # fmt: skip
    return spec


def test_a_named_tokenizer_that_is_too_large_is_refused(checkpoint, convert, refused, tmp_path):
    theirs = convert(checkpoint, "--format", "fleetx", "--out", "theirs")
    said = refused(theirs, "--tokenizer", large_tokenizer(tmp_path), "--out", "x", *HEADS)
    assert "1,000 ids" in said
    assert "do not belong together" in said


def test_a_tokenizer_that_outgrew_its_model_is_left_behind(checkpoint, convert, fastffn):
    theirs = convert(checkpoint, "--format", "hf", "--out", "theirs")
    large_tokenizer(theirs)
    done = fastffn("convert", theirs, "--out", "x")
    assert done.code == 0
    assert "1,000 ids" in done.err
    assert "it is left behind" in done.err


def test_names_that_a_terminal_would_obey_are_refused(refused, workplace):
    names = ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "\x1b[2J")
    arrays = {name: np.zeros((2, 2), np.float32) for name in names}
    save_file(arrays, workplace.dir / "model.safetensors")
    said = refused("model.safetensors", "--out", "x", *HEADS)
    assert "names are not text, such as '\\x1b[2J'" in said


def test_heads_that_no_file_tells_are_asked_for(checkpoint, convert, refused):
    said = refused(lonely_weights(convert, checkpoint), "--out", "x")
    assert "-o Model.num_attention_heads=N" in said
    assert "-c FILE" in said


def test_sizes_that_contradict_the_files_are_listed_together(checkpoint, convert, refused):
    theirs = convert(checkpoint, "--format", "hf", "--out", "theirs")
    said = refused(
        theirs, "--out", "x", *("-o", "Model.num_layers=7", "-o", "Model.num_attention_heads=5")
    )
    assert "-o Model.num_layers=7 Model.num_layers is 7 here, and 2 in" in said
    assert "Model.num_attention_heads is 5 here, and 4 in" in said


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.bin", b"", "an empty file"),
        ("model.bin", b"\0" * 600, "a file of zeros"),
        ("model.pdparams", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("model.safetensors", b"<!DOCTYPE html><html>", "a web page"),
        ("model.ckpt", b"\x1f\x8b\x08" + bytes(99), "gzip"),
        ("model.ckpt", b"hello, this is text\n", "a text that begins with 'hello, this is text'"),
        ("model.ckpt", b"\x93NUMPY\x01\0", "NumPy"),
        ("model.bin", bytes(range(1, 200)), "a binary file of an unknown kind"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_seems_to_be(
    name, content, expected, refused, workplace
):
    (workplace.dir / name).write_bytes(content)
    said = refused(workplace.dir / name, "--out", "x")
    assert expected in said
    assert "What is read" in said


def test_another_model_of_hugging_face_is_called_by_its_type(refused, workplace):
    (workplace.dir / "bert").mkdir()
    (workplace.dir / "bert" / "config.json").write_text('{"model_type": "bert"}')
    save_file({"x": np.zeros(1, np.float32)}, workplace.dir / "bert" / "model.safetensors")
    assert "model_type 'bert'" in refused("bert", "--out", "x")


def test_the_wrong_system_is_told_the_right_one(checkpoint, convert, refused):
    theirs = convert(checkpoint, "--format", "hf", "--out", "theirs")
    said = refused(theirs, "--from", "mindspore", "--out", "x")
    assert "it is of Hugging Face GPT-2" in said
    assert "--from hf" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere",), "nowhere does not exist"),
        (("--from", "hf"), "needs the path"),
        (
            ("tiny.yaml", "--from", "keras"),
            "unknown system 'keras'; there are fleetx, hf, mindspore",
        ),
        (("--format", "onnx"), "unknown system 'onnx'"),
    ],
)
def test_options_that_name_nothing_are_refused(arguments, expected, refused):
    assert expected in refused(*arguments, "--out", "x")


def test_factors_have_no_place_in_systems_without_them(checkpoint, refused):
    for system in ("hf", "fleetx"):
        said = refused(checkpoint, "--to", "low_rank", "--format", system, "--out", "x")
        assert "--to dense" in said


def test_another_rank_is_made_by_way_of_dense(checkpoint, refused):
    said = refused(
        checkpoint, "--to", "low_rank", "--rank", "2", "--format", "mindspore", "--out", "x"
    )
    assert "rank 4, not 2" in said


def test_an_existing_folder_is_not_touched(checkpoint, refused, workplace):
    (workplace.dir / "there").mkdir()
    assert "nothing was overwritten" in refused(checkpoint, "--format", "hf", "--out", "there")


def test_a_configuration_is_for_foreign_checkpoints(checkpoint, refused, workplace):
    said = refused(checkpoint, "-c", workplace.config_file, "--out", "x")
    assert "-c and -o are for other systems' checkpoints" in said


@pytest.mark.parametrize("command", ["eval", "generate", "posttrain"])
def test_commands_that_need_a_native_checkpoint_say_what_to_type(
    command, checkpoint, convert, fastffn, workplace
):
    theirs = convert(checkpoint, "--format", "hf", "--out", "theirs")
    arguments = {
        "eval": (theirs,),
        "generate": ("x", "--model", theirs),
        "posttrain": ("-c", workplace.config_file, "--from", theirs,
                      "-o", "Model.ffn.kind=dense"),
    }[command]  # fmt: skip
    done = fastffn(command, *arguments)
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "is a checkpoint of Hugging Face GPT-2; it has to be converted first" in said
    assert "fastffn convert" in said


@pytest.mark.parametrize("system", SYSTEMS)
def test_inspect_shows_every_system(system, checkpoint, convert, fastffn):
    theirs = convert(checkpoint, "--format", system, "--out", "theirs")
    done = fastffn("inspect", theirs, "--json", "--tensors")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown["kind"] == "foreign checkpoint"
    assert shown["system"] in (system, "mindspore")
    assert shown["model"]["num_layers"] == 2
    assert shown["model"]["hidden_size"] == 32
    assert shown["parameters"] == sum(int(np.prod(tensor["shape"])) for tensor in shown["tensors"])
    text = fastffn("inspect", theirs, "--tensors")
    assert "2 layers x 32" in text.out
    assert shown["tensors"][0]["name"] in text.out


def test_inspect_says_what_an_unknown_file_seems_to_be(fastffn, workplace):
    (workplace.dir / "x.bin").write_bytes(b"")
    done = fastffn("inspect", "x.bin")
    assert done.code == 2
    assert "an empty file" in " ".join(done.err.split())


def test_a_foreign_checkpoint_is_found_by_content_under_any_name(checkpoint, convert, workplace):
    theirs = convert(checkpoint, "--format", "fleetx", "--out", "theirs")
    shutil.copy(theirs / "model.pdparams", workplace.dir / "weights.bin")
    back = convert("weights.bin", "--out", "back", *HEADS)
    assert_bit_equal(weights(convert(theirs, "--out", "again", *HEADS)), weights(back))


def test_an_output_below_a_file_is_refused(checkpoint, refused, workplace):
    (workplace.dir / "notes.txt").write_text("x")
    said = refused(checkpoint, "--format", "hf", "--out", "notes.txt/x")
    assert "notes.txt/x cannot be made" in said


def test_what_a_killed_conversion_left_is_removed_by_the_next_one(checkpoint, convert, workplace):
    left = workplace.dir / ".theirs.4999999.tmp"  # no process has a number as large
    other = workplace.dir / ".others.4999999.tmp"
    for folder in (left, other):
        folder.mkdir()
    convert(checkpoint, "--format", "hf", "--out", "theirs")
    assert not left.exists()
    assert other.exists()


def test_a_folder_of_one_broken_file_says_what_the_file_is(refused, workplace):
    (workplace.dir / "model").mkdir()
    (workplace.dir / "model" / "model.pdparams").write_bytes(b"")
    said = refused("model", "--out", "x")
    assert "model.pdparams is an empty file" in said


def test_sigterm_ends_a_conversion_without_leftovers(checkpoint, workplace):
    slow = (
        "import os, signal, sys\n"
        "from fastffn_cli.interop import writing\n"
        "whole = writing.split_tensors\n"
        "def split(rules, weights):\n"
        "    tensors = whole(rules, weights)\n"
        "    last = list(tensors)[-1]\n"
        "    def read():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return tensors[last].read()\n"
        "    first = type(tensors[last])(tensors[last].shape, tensors[last].dtype, read)\n"
        "    return {**tensors, last: first}\n"
        "writing.split_tensors = split\n"
        "from fastffn_cli.app import main\n"
        "sys.argv = ['fastffn', *sys.argv[1:]]\n"
        "main()\n"
    )
    arguments = ["convert", str(checkpoint), "--format", "hf", "--out", "killed", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", slow, *arguments],
        cwd=workplace.dir, env=program_env(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert done.stdout == ""
    assert not list(workplace.dir.glob("*killed*"))
