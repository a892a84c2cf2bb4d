"""Known traps of FleetX's YAML are named, values that depend on each other come out as there."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.config.dialect import read_dialect
from fastffn_cli.config.fleetx_traps import find_traps
from fastffn_cli.config.load import load_config
from fastffn_cli.config.yaml_tree import read_tree
from fastffn_cli.engine.schedule import build_schedule
from fastffn_cli.errors import ConfigError
from tests.config.wrong_dialects import WRONG_DIALECTS

PPFLEETX = "Global: {local_batch_size: 8}\n"
CLIP = "  grad_clip: {name: ClipGradByGlobalNorm, clip_norm: 1.0}\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load_text(text, *overrides):
        Path("a.yaml").write_text(text)
        return load_config("a.yaml", overrides)

    return load_text


def why(resolved, source):
    return next(move.why for move in resolved.moves if move.source == source)


# --- following the advice ------------------------------------------------------------------------

ADVISED = [
    "other optimizers", "coupled weight decay", "schedule of steps", "line behind a warm-up",
    "clip of experts", "experts", "vision model", "quantisation of August 2022 without a switch",
    "other folder for validation", "other split for validation", "other length for validation",
]  # fmt: skip


@pytest.mark.parametrize("name", ADVISED)
def test_what_an_error_says_to_type_makes_the_file_load(name, load):
    text, overrides, problems = WRONG_DIALECTS[name]
    advice = [word.rstrip(".,;") for line in problems for word in re.findall(r"-o (\S+)", line)]
    assert advice
    load(text, *overrides, *advice)


# --- vocabulary ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "unit", "padded"), [(50257, 128, 50304), (128, 128, 128), (1, 64, 64)]
)
def test_the_vocabulary_is_padded_as_there(load, rows, unit, padded):
    """vocab_size_with_padding of ppfleetx: count up to a multiple of unit * mp_degree."""
    rows = max(rows, 2)
    resolved = load(f"Model:\n  vocab_size: {rows}\n  vocab_size_divisible_unit: {unit}\n")
    assert resolved.config.Model.vocab_size == padded
    assert str(resolved.origins["Model.vocab_size"]) == "a.yaml:2"
    told = why(resolved, "Model.vocab_size_divisible_unit")
    assert str(padded) in told
    assert (f"{rows} rows are padded" in told) == (rows != padded)


@pytest.mark.parametrize(("degree", "padded"), [(2, 50432), (8, 51200)])
def test_the_vocabulary_grows_with_tensor_parallelism(degree, padded):
    """The rows of ppfleetx's published 13B (mp 2) and 175B (mp 8) models."""
    text = (
        "Model: {vocab_size: 50257, vocab_size_divisible_unit: 128}\n"
        f"Distributed: {{mp_degree: {degree}}}\n"
    )
    reading = read_dialect(read_tree(text, "a.yaml", []), lambda origin: (0, 0))
    find_traps(reading)
    assert reading.value("Model.vocab_size") == padded


def test_a_vocabulary_written_as_a_float_is_padded(load):
    text = "Model: {vocab_size: 5e4, vocab_size_divisible_unit: 128}\n"
    assert load(text).config.Model.vocab_size == 50048


def test_a_blank_vocabulary_that_ppfleetx_would_pad_is_a_warning(load):
    (warning,) = load("Model: {vocab_size_divisible_unit: 128}\n").warnings
    assert "pads it to a multiple of 128" in warning
    assert "-o Model.vocab_size=50304" in warning


def test_an_override_of_the_vocabulary_is_padded_too_and_a_unit_of_one_pads_nothing(load):
    text = "Model:\n  vocab_size: 50257\n  vocab_size_divisible_unit: 128\n"
    assert load(text, "Model.vocab_size=1000").config.Model.vocab_size == 1024
    one = load(text, "Model.vocab_size_divisible_unit=1")
    assert one.config.Model.vocab_size == 50257


def test_a_vocabulary_that_ppfleetx_would_pad_unasked_is_a_warning(load):
    resolved = load(PPFLEETX + "Model:\n  vocab_size: 50257\n")
    assert resolved.config.Model.vocab_size == 50257
    assert resolved.warnings == [
        "a.yaml:3  vocab_size 50257: ppfleetx of 2023 pads it to 50304 without being asked, here "
        "it stays. Type -o Model.vocab_size=50304 for checkpoints that have these rows"
    ]
    assert load("Model:\n  vocab_size: 50257\n").warnings == []


# --- schedule ------------------------------------------------------------------------------------

LR = "  lr:\n    name: CosineAnnealingWithWarmupDecay\n    max_lr: 0.001\n    min_lr: 0.0001\n"


def test_a_missing_use_increments_is_named(load):
    warned = [
        "a.yaml:5  without lr.use_increments: true, ppfleetx of 2023 keeps the learning rate at 0 "
        "for ever. Here it follows the schedule, and decay_steps counts optimizer steps"
    ]
    text = PPFLEETX + "Optimizer:\n" + CLIP + LR
    assert load(text).warnings == warned
    assert load(text + "    use_increments: True\n").warnings == []
    assert len(load(text + "    use_increments: False\n").warnings) == 1


def test_a_line_without_warm_up_is_theirs_step_by_step(load):
    """ppfleetx: learning_rate * max(0, 1 - t / T), t = 0 at the first update; here t = 1."""
    resolved = load(
        "Optimizer:\n  lr: {name: LinearDecayWithWarmup, learning_rate: 0.003, warmup: 0, "
        "total_steps: 50}\n"
    )
    schedule = build_schedule(resolved.config.Optimizer.lr, 50)
    steps = np.arange(1, 60)
    expected = 0.003 * np.maximum(0.0, 1.0 - steps / 50)
    np.testing.assert_allclose([schedule(int(step)) for step in steps], expected, atol=1e-12)


# --- length of the run ---------------------------------------------------------------------------


def test_epochs_decide_in_run_mode_epoch(load):
    resolved = load(
        "Engine:\n  run_mode: epoch\n  max_steps: 500\n  num_train_epochs: 3\n  eval_freq: 1\n"
    )
    engine = resolved.config.Engine
    assert (engine.max_steps, engine.num_train_epochs, engine.eval_freq) == (None, 3, 500)
    assert resolved.warnings == [
        "a.yaml:5  eval_freq 1 counts epochs in run_mode epoch; here it counts steps, and 500 "
        "(default) is taken. Type -o Engine.eval_freq=STEPS"
    ]
    again = load("Engine: {run_mode: epoch}\n", "Engine.max_steps=7", "Engine.eval_freq=2")
    assert (again.config.Engine.max_steps, again.config.Engine.eval_freq) == (7, 2)


def test_minus_one_is_no_limit(load):
    resolved = load("Engine: {max_steps: -1, test_iters: -1, eval_freq: -1}\n")
    engine = resolved.config.Engine
    assert (engine.max_steps, engine.test_iters, engine.eval_freq) == (None, None, -1)
    assert why(resolved, "Engine.eval_freq") == "no evaluation in the loop, as there"


def test_accumulation_is_derived_in_their_files_and_checked_in_ours(load):
    text = "Global: {local_batch_size: 8, micro_batch_size: 2}\nEngine: {accumulate_steps: 1}\n"
    resolved = load(text)
    assert resolved.config.Engine.accumulate_steps == 4
    assert "local_batch_size / micro_batch_size" in why(resolved, "Engine.accumulate_steps")
    assert load(text, "Engine.accumulate_steps=2").config.Engine.accumulate_steps == 2


def test_one_more_update_and_never_saving_are_told(load):
    resolved = load(
        PPFLEETX + "Engine: {max_steps: 6, eval_freq: 2, save_load: {save_steps: -1}}\n"
    )
    assert why(resolved, "Engine.max_steps") == "this many updates; ppfleetx makes one more"
    assert "at the end of the run" in why(resolved, "Engine.save_load.save_steps")


# --- data ----------------------------------------------------------------------------------------


def test_validation_and_test_that_agree_are_fine_however_they_are_written(load):
    resolved = load(
        "Data:\n"
        "  Train: {dataset: {input_dir: ./data, split: [969, 30, 1], max_seq_len: 64}}\n"
        "  Eval: {dataset: {input_dir: data/, split: '969,30,1', max_seq_len: 64}}\n"
        "  Test: {dataset: {input_dir: ./data/, split: 969/30/1, max_seq_len: 64}}\n"
    )
    assert resolved.config.Data.dataset.split == "969,30,1"
    assert resolved.warnings == []
    assert why(resolved, "Data.Eval.dataset.split") == "the same for all parts"


def test_a_value_for_all_parts_covers_the_parts_of_a_base(load):
    Path("base.yaml").write_text(
        "Data:\n  Train: {dataset: {max_seq_len: 512}}\n  Eval: {dataset: {max_seq_len: 512}}\n"
    )
    base = "_base_: base.yaml\n"
    ours = load(base + "Data: {dataset: {max_seq_len: 64}}\n")
    assert ours.config.Data.dataset.max_seq_len == 64
    assert why(ours, "Data.Eval.dataset.max_seq_len") == "a.yaml:2 decides for all parts"
    both = ("Data.Train.dataset.max_seq_len=32", "Data.Eval.dataset.max_seq_len=32")
    assert load(base, *both).config.Data.dataset.max_seq_len == 32
    with pytest.raises(ConfigError, match="sequences of all parts have one length"):
        load(base, both[0])


def test_a_file_with_validation_alone_is_read_from_it(load):
    dataset = load(
        "Data: {Eval: {dataset: {input_dir: ./d, max_seq_len: 64}}}\n"
    ).config.Data.dataset
    assert (dataset.input_dir, dataset.max_seq_len) == ("./d", 64)


def test_a_test_part_that_differs_is_a_warning(load):
    resolved = load(
        "Data:\n  Train: {dataset: {split: [969, 30, 1]}}\n  Test: {dataset: {split: [9, 0, 1]}}\n"
    )
    assert resolved.config.Data.dataset.split == "969,30,1"
    assert resolved.warnings == [
        "a.yaml:3  Data.Test.dataset.split is [9, 0, 1], and Data.dataset.split is [969, 30, 1] "
        "(a.yaml:2): one split makes all parts. The one of Test has no effect"
    ]


def test_index_files_of_theirs_are_named_where_there_are_any(load):
    text = "Data: {dataset: {input_dir: ./data}}\n"
    assert load(text).notices == []
    Path("data").mkdir()
    Path("data/x_ids.npy").touch()
    assert load(text).notices == []
    for part in ("train", "Eval"):
        Path(f"data/x_gpt_{part}_indexmap_60ns_48sl_doc_idx.npy").touch()
    (notice,) = load(text).notices
    assert notice.startswith("./data holds 2 index files of FleetX's")


# --- precision, parallelism, evaluation ----------------------------------------------------------


def test_a_stage_without_a_degree_is_a_warning(load):
    assert load("Distributed:\n  sharding:\n    sharding_stage: 2\n").warnings == [
        "a.yaml:3  sharding_stage 2 has no effect while sharding_degree is 1: nothing is shared. "
        "Remove it, or set sharding_degree"
    ]


def test_a_number_that_is_text_for_pyyaml_is_told(load):
    resolved = load("Optimizer:\n  beta1: 0.9\n  epsilon: 1e-8\n" + CLIP)
    assert resolved.config.Optimizer.adam_epsilon == 1e-8
    assert "reads one without point or sign as text" in why(resolved, "Optimizer.epsilon")
    assert why(load("Optimizer:\n  epsilon: 1.0e-8\n" + CLIP), "Optimizer.epsilon") == ""
    assert load("Optimizer: {adam_epsilon: 1e-8}\n").moves == ()


def test_an_evaluation_without_a_causal_mask_is_a_warning(load):
    text = "Model: {module: GPTEvalModule, vocab_size: 128, fused_softmax_with_triangular: true}\n"
    (warning,) = load(text).warnings
    assert "evaluates on CUDA without its causal mask" in warning
    assert load(text.replace("GPTEvalModule", "GPTModule")).warnings == []


def test_a_file_of_weights_to_evaluate_is_sent_to_the_command_line(load):
    (warning,) = load("Eval: {ckpt_dir: ./step_9/model.pdparams}\n").warnings
    assert "fastffn convert ./step_9/model.pdparams -c FILE, then fastffn eval" in warning


# --- what is not written -------------------------------------------------------------------------


def test_keys_that_an_august_file_leaves_out_are_named_with_both_defaults(load):
    marks = "Model: {hidden_size: 64, type_vocab_size: 16, fused_linear: False}\n"
    missing = marks + "Optimizer:\n  weight_decay: 0.1\n  lr: {max_lr: 0.001, decay_steps: 9}\n"
    assert load(missing).warnings == [
        "a.yaml:2  'Optimizer' leaves out keys for which FleetX has another default: lr.min_lr "
        "5.0e-05 (here 1.0e-05), grad_clip 0.0 (here 1.0). Write the ones you mean"
    ]
    assert load(marks).warnings == []
    ours = missing.replace("fused_linear: False", "fused_linear: False, ffn: {kind: low_rank}")
    assert load(ours).warnings == []
    assert load("Optimizer: {weight_decay: 0.1}\n").warnings == []


def test_blanks_that_mean_nothing_there_are_named(load):
    resolved = load(PPFLEETX + "Optimizer:\n  weight_decay:\n  grad_clip:\n")
    assert resolved.warnings == [
        "a.yaml:3  Optimizer.weight_decay is blank, which is no decay at ppfleetx and the default "
        "0.01 here. Type -o 'Optimizer.weight_decay=0' if you mean the former",
        "a.yaml:4  Optimizer.grad_clip is blank, which is no clip at ppfleetx and the default 1.0 "
        "here. Type -o 'Optimizer.grad_clip=0' if you mean the former",
    ]
    assert load("Optimizer:\n  weight_decay:\n").warnings == []
