"""Every wrong input gets its exact text: file, line, what is wrong, what to type instead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastffn_cli
from fastffn_cli.config.load import load_config
from fastffn_cli.errors import EXIT_USAGE, ConfigError
from tests.config.wrong_dialects import WRONG_DIALECTS
from tests.config.wrong_inputs import WRONG_INPUTS


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems_of(text, *overrides):
    Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config("bad.yaml", overrides)
    assert caught.value.exit_code == EXIT_USAGE == 2
    return caught.value.problems


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_a_wrong_input_is_explained(name):
    text, overrides, expected = WRONG_INPUTS[name]
    assert problems_of(text, *overrides) == expected


@pytest.mark.parametrize("name", WRONG_DIALECTS)
def test_a_wrong_input_of_fleetx_is_explained(name):
    text, overrides, expected = WRONG_DIALECTS[name]
    assert problems_of(text, *overrides) == expected


def test_all_problems_come_together_in_the_order_of_the_file():
    problems = problems_of(
        "_base_: base.yaml\n"
        "Generation: {min_dec_len: 9, max_dec_len: 8}\n"
        "Engine:\n  max_stps: 5\n  eval_iters: 0\n"
        "Engine:\n  eval_iters: 1\n"
        "Model:\n  hidden_size: 100\n  num_attention_heads: 12\n  use_recompute: on\n",
        "Global.seed=x",
        "Global.device",
    )
    places = [problem.split("  ")[0] for problem in problems]
    assert places == [
        "bad.yaml:1",
        "bad.yaml:2",
        "bad.yaml:4",
        "bad.yaml:5",
        "bad.yaml:6",
        "bad.yaml:10",
        "bad.yaml:11",
        "-o Global.seed=x",
        "-o Global.device",
    ]


def test_a_problem_in_a_base_names_the_base():
    Path("base.yaml").write_text("Engine:\n  eval_iters: 0\n")
    problems = problems_of("_base_: base.yaml\nEngine:\n  logging_freq: 0\n")
    assert [problem.split("  ")[0] for problem in problems] == ["bad.yaml:3", "base.yaml:2"]


def test_a_circle_of_two_files_is_refused():
    Path("other.yaml").write_text("_base_: bad.yaml\n")
    assert problems_of("_base_: other.yaml\n") == [
        "other.yaml:1  '_base_' goes round in a circle: bad.yaml -> other.yaml -> bad.yaml. "
        "Remove one of them"
    ]


def test_rules_of_an_invalid_value_are_not_reported_beside_it():
    problems = problems_of("Model: {hidden_size: wide, num_attention_heads: 7}\n")
    assert len(problems) == 1
    problems = problems_of("Model: {hidden_size: 8, num_attention_heads: 2, ffn: {kind: low}}\n")
    assert len(problems) == 1


def test_aliases_that_explode_are_stopped():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        refs = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{refs}]")
    assert problems_of("\n".join(lines)) == [
        "bad.yaml:1  aliases make this file too large: write the values out"
    ]


@pytest.mark.parametrize("text", ["notes: " + "[" * 5000, "notes: " + "{a: " * 5000])
def test_endless_nesting_is_stopped(text):
    assert problems_of(text) == ["bad.yaml:1  nested too deeply: write it with fewer levels"]


def test_bytes_that_are_no_text_are_named():
    assert problems_of(b"notes:\n  a: \xff\n") == [
        "bad.yaml:2  byte 0xff is not UTF-8: save it as UTF-8"
    ]
    assert problems_of("notes:\n  a: \x07\n") == [
        "bad.yaml:2  the character '\\x07' is not allowed: remove it"
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "gpt-124m-fastfn",
            "there is no file 'gpt-124m-fastfn' and no shipped config of that name. "
            "Did you mean 'gpt-124m-fastffn'?",
        ),
        (
            "configs/gpt-345m-dense.yaml",
            "there is no file 'configs/gpt-345m-dense.yaml' and no shipped config of that name. "
            "Did you mean 'gpt-345m-dense'?",
        ),
        (
            "mine.yml",
            "there is no file 'mine.yml' and no shipped config of that name. "
            "Did you mean 'mine.yaml'?",
        ),
        (
            "gpt-6l",
            "there is no file 'gpt-6l' and no shipped config of that name. "
            "Did you mean 'gpt-6l-dense' or 'gpt-6l-fastffn' or 'gpt-6l-post'?",
        ),
        ("zzz", "there is no file 'zzz' and no shipped config of that name."),
        ("run", "run is a folder. Type -c run/config.yaml"),
        ("empty", "empty is a folder. Name a YAML file in it"),
    ],
)
def test_a_missing_file_is_answered_with_the_nearest_one(source, expected):
    Path("mine.yaml").touch()
    Path("run").mkdir()
    Path("run/config.yaml").touch()
    Path("empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert caught.value.problems == [expected]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "Optimizer:\n  lr:\n    max_lr: 1e-5\n    min_lr: 5e-5\n",
            "bad.yaml:4  min_lr 5e-05 is above max_lr 1e-05: the learning rate will rise after "
            "the warm-up. Exchange the two unless you mean it",
        ),
        (
            "Optimizer:\n  lr:\n    decay_steps: 10\n    warmup_steps: 20\n",
            "bad.yaml:4  warmup_steps 20 is longer than decay_steps 10: max_lr is never reached. "
            "Set Optimizer.lr.warmup_steps below 10",
        ),
        (
            "Engine:\n  max_steps: 10\nOptimizer:\n  lr:\n    warmup_steps: 20\n",
            "bad.yaml:5  warmup_steps 20 is longer than max_steps 10: max_lr is never reached. "
            "Set Optimizer.lr.warmup_steps below 10",
        ),
        (
            "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n"
            "  ffn: {kind: low_rank, rank: 60}\n",
            "bad.yaml:4  factors of rank 60 cost as much as the dense weights they replace: set "
            "Model.ffn.rank to at most 51",
        ),
        (
            "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  attention_rank: 43\n",
            "bad.yaml:4  factors of rank 43 cost as much as the whole matrices they replace: set "
            "Model.attention_rank to at most 42, or leave it blank",
        ),
        (
            "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  vocab_size: 192\n"
            "  embedding_rank: 48\n",
            "bad.yaml:5  factors of rank 48 cost as much as the whole matrices they replace: set "
            "Model.embedding_rank to at most 47, or leave it blank",
        ),
        (
            "Data: {dataset: {split: '0,1,1'}}\n",
            "bad.yaml:1  split 0,1,1 leaves nothing to train on: the weights are train, valid, "
            "test, as in 949,50,1",
        ),
        (
            "Engine: {mix_precision: {dtype: bfloat16}}\n",
            "bad.yaml:1  dtype bfloat16 has no effect while mixed precision is off: add "
            "Engine.mix_precision.enable: true",
        ),
    ],
)
def test_what_is_probably_a_mistake_is_a_warning(text, warning):
    Path("bad.yaml").write_text(text)
    resolved = load_config("bad.yaml")
    assert resolved.warnings == [warning]


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (
            "Engine: {max_steps: 10}\nOptimizer: {lr: {decay_steps: 20}}\n",
            "bad.yaml:2  decay_steps 20 is longer than the run's 10 steps: the learning rate does "
            "not come down to min_lr",
        ),
        (
            "Optimizer: {lr: {warmup_steps: 5, warmup_rate: 0.1}}\n",
            "bad.yaml:1  warmup_rate has no effect beside warmup_steps",
        ),
        (
            "Optimizer: {lr: {name: constant, min_lr: 1e-6}}\n",
            "bad.yaml:1  min_lr has no effect on a constant schedule",
        ),
        (
            "Engine: {max_steps: 10, num_train_epochs: 3}\n",
            "bad.yaml:1  max_steps 10 decides the length of the run; num_train_epochs 3 has no "
            "effect",
        ),
        (
            "Model: {recompute_granularity: core_attn}\n",
            "bad.yaml:1  recompute_granularity has no effect while use_recompute is false",
        ),
        (
            "Model: {ffn: {kind: low_rank, lr_cap: 2}}\n",
            "bad.yaml:1  lr_cap has no effect while lr_rule is none",
        ),
        (
            "Model: {type_vocab_size: 16}\n",
            "bad.yaml:1  Model.type_vocab_size is accepted and has no effect: a GPT has no token "
            "types",
        ),
        (
            "Fused: {tensor_fusion: True}\n",
            "bad.yaml:1  Fused.tensor_fusion is accepted and has no effect: weights keep a buffer "
            "each",
        ),
    ],
)
def test_what_has_no_effect_is_a_notice(text, notice):
    Path("bad.yaml").write_text(text)
    resolved = load_config("bad.yaml")
    assert (resolved.warnings, resolved.notices) == ([], [notice])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unknown key", "tab", "heads do not divide the width"])
def test_the_program_prints_the_text_on_stderr_and_exits_with_2(name):
    text, overrides, expected = WRONG_INPUTS[name]
    Path("bad.yaml").write_text(text)
    arguments = [item for override in overrides for item in ("-o", override)]
    done = subprocess.run(
        [sys.executable, "-m", "fastffn_cli", "config", "-c", "bad.yaml", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(fastffn_cli.__file__).parent.parent)},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "1 problem in bad.yaml:\n" + expected[0] + "\nfastffn config KEY   explains a key\n"
    )
