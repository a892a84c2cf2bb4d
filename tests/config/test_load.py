"""Files become one validated Config: seed blocks, inheritance, overrides, origins, dumps."""

import dataclasses
import io
import os
import sys
from pathlib import Path

import pydantic
import pytest

from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.load import default_config, flatten, load_config, parse_config_file
from fastffn_cli.config.shipped import shipped_dir, shipped_names
from fastffn_cli.errors import ConfigError

SEED_BLOCKS = Path(__file__).parent.parent / "fixtures" / "seed_blocks"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_file(text, name="a.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return name

    return write_file


# --- the seed document ---------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["data", "model", "optimizer", "engine", "fused", "generation"])
def test_each_yaml_block_of_the_seed_document_loads_unchanged(block):
    resolved = load_config(str(SEED_BLOCKS / f"{block}.yaml"))
    assert any(origin.kind == "file" for origin in resolved.origins.values())


def test_the_seed_blocks_one_below_the_other_load_as_one_file(write):
    order = ("data", "model", "optimizer", "engine", "fused", "generation")
    text = "\n".join((SEED_BLOCKS / f"{name}.yaml").read_text() for name in order)
    resolved = load_config(write(text))
    config = resolved.config
    assert config.Data.dataset.input_dir == "./data"
    assert config.Model.vocab_size == 50304
    assert config.Model.ffn_hidden_size == 4096
    assert config.Model.recompute_granularity == "full"
    assert config.Optimizer.adam_epsilon == 1e-8
    assert config.Optimizer.lr.decay_steps == 360000
    assert config.Engine.max_steps == 500000
    assert config.Engine.accumulate_steps == 1
    assert config.Engine.mix_precision.use_pure_fp16 is True
    assert config.Engine.mix_precision.enable is True
    assert config.Engine.save_load.ckpt_dir is None
    assert config.Generation.decode_strategy == "sampling"
    warned = [line.split(maxsplit=1)[1] for line in resolved.warnings]
    assert [line for line in warned if line.startswith("min_lr")] == [
        "min_lr 5e-05 is above max_lr 1e-05: the learning rate will rise after the warm-up. "
        "Exchange the two unless you mean it"
    ]
    # The document indents three of its blocks; pasted together they lie inside `Data`.
    assert [line.split("'")[1] for line in warned if "is indented under" in line] == [
        "Model",
        "Optimizer",
        "Engine",
    ]
    assert [line.split()[1] for line in resolved.notices] == [
        "Model.type_vocab_size",
        "Model.fused_linear",
    ]


# --- shipped files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_config_loads_with_nothing_to_say(name):
    resolved = load_config(name, processes=None)
    assert resolved.warnings == []
    assert resolved.notices == []
    assert resolved.config.Engine.save_load.output_dir == f"./runs/{name}"
    assert load_config(f"{name}.yaml", processes=None).config == resolved.config


def test_every_model_ships_in_three_forms():
    models = {name.rpartition("-")[0] for name in shipped_names() if name.startswith("gpt-")}
    assert models == {"gpt-6l", "gpt-124m", "gpt-345m", "gpt-1.3b"}
    for model in models:
        kinds = {
            form: load_config(f"{model}-{form}").config.Model.ffn.kind
            for form in ("dense", "fastffn", "post")
        }
        assert kinds == {"dense": "dense", "fastffn": "low_rank", "post": "dense"}


def test_stage_one_and_the_baseline_differ_in_nothing_but_the_feed_forward_and_the_folder():
    for model in ("gpt-6l", "gpt-124m", "gpt-345m", "gpt-1.3b"):
        stage_one = dict(flatten(load_config(f"{model}-fastffn").config))
        dense = dict(flatten(load_config(f"{model}-dense").config))
        differing = {key for key in dense if dense[key] != stage_one.get(key)}
        assert differing == {"Model.ffn.kind", "Engine.save_load.output_dir"}


def test_the_seed_experiment_keeps_its_numbers():
    config = load_config("gpt-6l-fastffn").config
    model, lr = config.Model, config.Optimizer.lr
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (6, 768, 12)
    assert (model.vocab_size, config.Data.dataset.max_seq_len) == (50257, 1024)
    assert (model.ffn.rank, model.ffn.init) == (8, "normal")
    assert config.Data.batch_size.global_batch_size == 16
    assert (lr.max_lr, lr.min_lr, lr.warmup_steps) == (5e-6, 1e-7, 2000)
    assert (config.Engine.num_train_epochs, config.Engine.max_steps) == (1, None)


def test_the_1_3b_model_recomputes():
    assert load_config("gpt-1.3b-post").config.Model.use_recompute is True


def test_a_folder_of_a_shipped_name_does_not_hide_it(write):
    Path("demo").mkdir()
    assert load_config("demo").config.Engine.save_load.output_dir == "./runs/demo"


def test_a_file_goes_before_a_shipped_name(write):
    write("Global: {seed: 7}\n", "demo")
    assert load_config("demo").config.Global.seed == 7


def test_a_file_may_build_on_a_shipped_name(write):
    resolved = load_config(write("_base_: gpt-124m-fastffn\nGlobal: {seed: 3}\n"))
    assert resolved.config.Model.hidden_size == 768
    assert resolved.config.Global.seed == 3
    assert Path(resolved.origins["Model.hidden_size"].file).name == "gpt-124m-dense.yaml"


# --- inheritance ---------------------------------------------------------------------------------


def test_a_base_is_found_relative_to_its_file_and_lies_below_it(write):
    write("Global: {seed: 1}\nEngine: {eval_iters: 4, eval_freq: 9}\n", "deep/root.yaml")
    write("_base_: ../deep/root.yaml\nEngine: {eval_freq: 8}\n", "side/middle.yaml")
    name = write("_base_: side/middle.yaml\nEngine: {logging_freq: 7}\n")
    resolved = load_config(name)
    engine = resolved.config.Engine
    assert (engine.eval_iters, engine.eval_freq, engine.logging_freq) == (4, 8, 7)
    assert str(resolved.origins["Engine.eval_iters"]) == "deep/root.yaml:2"
    assert str(resolved.origins["Engine.eval_freq"]) == "side/middle.yaml:2"
    assert str(resolved.origins["Engine.logging_freq"]) == "a.yaml:2"


def test_the_later_of_several_bases_wins(write):
    write("Global: {seed: 1}\nEngine: {eval_iters: 4}\n", "one.yaml")
    write("Global: {seed: 2}\n", "two.yaml")
    config = load_config(write("_base_: [one.yaml, two.yaml]\n")).config
    assert (config.Global.seed, config.Engine.eval_iters) == (2, 4)


def test_a_base_may_be_met_twice_when_it_is_no_circle(write):
    write("Global: {seed: 5}\n", "root.yaml")
    write("_base_: root.yaml\n", "one.yaml")
    write("_base_: root.yaml\n", "two.yaml")
    assert load_config(write("_base_: [one.yaml, two.yaml]\n")).config.Global.seed == 5


def test_inherited_false_replaces_a_block(write):
    write("Optimizer: {weight_decay: 0.5, lr: {max_lr: 1e-3, min_lr: 1e-4}}\n", "base.yaml")
    name = write("_base_: base.yaml\nOptimizer:\n  lr: {_inherited_: False, max_lr: 2e-3}\n")
    optimizer = load_config(name).config.Optimizer
    assert (optimizer.lr.max_lr, optimizer.lr.min_lr) == (2e-3, 1e-5)
    assert optimizer.weight_decay == 0.5


def test_a_blank_value_is_the_default_also_over_a_base(write):
    write("Engine: {eval_iters: 4}\nModel: {recompute_granularity: }\n", "base.yaml")
    config = load_config(write("_base_: base.yaml\nEngine:\n  eval_iters:\n")).config
    assert config.Engine.eval_iters == 10
    assert config.Model.recompute_granularity == "full"


def test_a_blank_block_says_nothing(write):
    write("Engine: {eval_iters: 4}\n", "base.yaml")
    assert load_config(write("_base_: base.yaml\nEngine:\nModel:\n")).config.Engine.eval_iters == 4


def test_another_kind_of_feed_forward_drops_the_options_of_the_old(write):
    name = write("Model: {ffn: {kind: low_rank, rank: 4, init: normal}}\n")
    assert load_config(name, ["Model.ffn.kind=dense"]).config.Model.ffn.kind == "dense"
    kept = load_config(name, ["Model.ffn.kind=low_rank"]).config.Model.ffn
    assert (kept.rank, kept.init) == (4, "normal")


def test_anchors_and_merge_keys_work(write):
    name = write(
        "notes: {lr: &lr {max_lr: 1e-3, min_lr: 1e-4}}\nOptimizer:\n  lr: {<<: *lr, min_lr: 1e-5}\n"
    )
    lr = load_config(name).config.Optimizer.lr
    assert (lr.max_lr, lr.min_lr) == (1e-3, 1e-5)


def test_fleetx_august_name_of_the_evaluation_section_is_understood(write):
    resolved = load_config(write("Eval: {overlapping_eval: 16}\n"))
    assert resolved.config.Offline_Eval.overlapping_eval == 16
    assert resolved.notices == [
        "a.yaml is read as FleetX (August 2022) YAML: 1 key moved "
        "(fastffn config -c a.yaml lists them)"
    ]


# --- overrides -----------------------------------------------------------------------------------


def test_the_last_override_wins_over_earlier_ones_and_the_file(write):
    name = write("Global: {seed: 1}\n")
    assert load_config(name, ["Global.seed=2", "Global.seed=3"]).config.Global.seed == 3


def test_an_override_may_hold_equals_signs_lists_and_blocks():
    config = default_config(
        [
            "notes.command=a=b=c",
            "Engine.log_sinks=[visualdl, tensorboard]",
            "Model.ffn={kind: low_rank, rank: 4}",
            "Data.dataset.split=[8, 1, 1]",
            "Engine.mix_precision.custom_black_list.1=softmax",
        ]
    ).config
    assert config.notes == {"command": "a=b=c"}
    assert config.Engine.log_sinks == ("visualdl", "tensorboard")
    assert config.Model.ffn.rank == 4
    assert config.Data.dataset.split == "8,1,1"
    assert config.Engine.mix_precision.custom_black_list == (
        "reduce_sum",
        "softmax",
        "elementwise_div",
    )


def test_a_blank_override_goes_back_to_the_default(write):
    name = write("Engine: {max_steps: 5}\nModel: {ffn: {kind: low_rank}}\n")
    config = load_config(name, ["Engine.max_steps=", "Model.ffn="]).config
    assert config.Engine.max_steps is None
    assert config.Model.ffn.kind == "dense"


def test_an_override_is_never_evaluated(tmp_path):
    proof = tmp_path / "proof"
    code = f"__import__('pathlib').Path({str(proof)!r}).touch()"
    config = default_config([f'notes.a="{code}"', "notes.b=1+1"]).config
    assert config.notes == {"a": code, "b": "1+1"}
    assert not proof.exists()


def test_the_sources_of_the_package_hold_no_eval_exec_or_unsafe_loader():
    import ast

    import fastffn_cli.config

    for file in Path(fastffn_cli.config.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node, "id", getattr(node, "attr", None))
            assert name not in {"eval", "exec", "UnsafeLoader", "FullLoader", "unsafe_load"}, file


@pytest.mark.parametrize("device", ["npu", "npu:1", "intel_hpu", "mlu:0", "gpu:3"])
def test_any_type_of_device_may_be_a_plugins(write, device):
    resolved = load_config(write(f"Global: {{device: '{device}'}}\n"))
    assert resolved.config.Global.device == device


@pytest.mark.parametrize(
    "device", ["cuda:0", "ascend", "cpu:1", "auto:0", "npu:", "npu:x", "NPU", ""]
)
def test_what_no_device_can_be_called_is_refused(write, device):
    with pytest.raises(ConfigError, match="must be auto, cpu, gpu, npu or a"):
        load_config(write(f"Global: {{device: '{device}'}}\n"))


def test_the_device_option_outranks_everything(write):
    resolved = load_config(write("Global: {device: cpu}\n"), ["Global.device=npu"], device="gpu:1")
    assert resolved.config.Global.device == "gpu:1"
    assert str(resolved.origins["Global.device"]) == "--device gpu:1"


# --- stdin, origins, the result ------------------------------------------------------------------


def test_a_dash_reads_stdin(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"Global:\n  seed: 12\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    resolved = load_config("-")
    assert resolved.config.Global.seed == 12
    assert str(resolved.origins["Global.seed"]) == "<stdin>:2"


def test_a_byte_order_mark_and_windows_lines_are_harmless(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfGlobal:\r\n  seed: 12\r\n")
    assert load_config(str(file)).config.Global.seed == 12


def test_every_key_has_an_origin(write):
    resolved = load_config(write("Global:\n  seed: 3\n"), ["Engine.eval_iters=2"])
    assert set(resolved.origins) == {key for key, _ in flatten(resolved.config)}
    kinds = {key: origin.kind for key, origin in resolved.origins.items()}
    assert kinds["Global.seed"] == "file"
    assert kinds["Engine.eval_iters"] == "override"
    assert kinds["Model.ffn_hidden_size"] == "derived"
    assert kinds["Model.hidden_size"] == "default"
    assert (resolved.origins["Global.seed"].file, resolved.origins["Global.seed"].line) == (
        "a.yaml",
        2,
    )
    assert resolved.origins["Engine.eval_iters"].text == "-o Engine.eval_iters=2"
    assert resolved.overrides == ("Engine.eval_iters=2",)
    assert resolved.source == "a.yaml"


def test_a_config_is_frozen():
    resolved = default_config()
    with pytest.raises(pydantic.ValidationError):
        resolved.config.Model.hidden_size = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolved.source = "x"


def test_require_reports_every_missing_value_at_once(write):
    resolved = load_config(write("Model: {vocab_size: 10}\n"))
    with pytest.raises(ConfigError) as caught:
        resolved.require("Data.dataset.input_dir", "Model.vocab_size", "Engine.max_steps")
    assert [line.split("'")[1] for line in caught.value.problems] == [
        "Data.dataset.input_dir",
        "Engine.max_steps",
    ]
    resolved.require("Model.vocab_size")


# --- derived values ------------------------------------------------------------------------------


def sizes(*overrides, file=None):
    config = (load_config(file, overrides) if file else default_config(overrides)).config
    batch = config.Data.batch_size
    assert batch.global_batch_size == batch.local_batch_size
    return batch.global_batch_size, batch.micro_batch_size, config.Engine.accumulate_steps


def test_batch_sizes_follow_from_each_other():
    prefix = "Data.batch_size."
    assert sizes() == (8, 8, 1)
    assert sizes(prefix + "global_batch_size=32") == (32, 8, 4)
    assert sizes(prefix + "local_batch_size=32") == (32, 8, 4)
    assert sizes(prefix + "micro_batch_size=4") == (4, 4, 1)
    assert sizes(prefix + "global_batch_size=4") == (4, 4, 1)
    assert sizes("Engine.accumulate_steps=3") == (24, 8, 3)
    both = ("Engine.accumulate_steps=2", prefix + "global_batch_size=8")
    assert sizes(*both) == (8, 4, 2)


def test_an_override_outranks_what_a_resolved_file_derived(write):
    name = write(dump_config(default_config(["Data.batch_size.global_batch_size=16"]).config))
    prefix = "Data.batch_size."
    assert sizes(prefix + "micro_batch_size=4", file=name) == (16, 4, 4)
    assert sizes(prefix + "global_batch_size=32", file=name) == (32, 8, 4)
    assert sizes(prefix + "local_batch_size=4", file=name) == (4, 4, 1)
    assert sizes("Engine.accumulate_steps=4", file=name) == (16, 4, 4)
    pieces = ("Engine.accumulate_steps=3", prefix + "micro_batch_size=2")
    assert sizes(*pieces, file=name) == (6, 2, 3)


def test_pure_fp16_is_the_short_form_of_three_keys(write):
    name = write("Engine: {mix_precision: {use_pure_fp16: True}}\n")
    mix = load_config(name).config.Engine.mix_precision
    assert (mix.enable, mix.dtype, mix.level) == (True, "float16", "O2")
    prefix = "Engine.mix_precision."
    mix = load_config(name, [prefix + "dtype=bfloat16"]).config.Engine.mix_precision
    assert (mix.enable, mix.dtype) == (True, "bfloat16")
    assert not load_config(name, [prefix + "enable=false"]).config.Engine.mix_precision.enable
    resolved = write(dump_config(load_config(name).config), "resolved.yaml")
    assert not load_config(
        resolved, [prefix + "use_pure_fp16=false"]
    ).config.Engine.mix_precision.enable


# --- writing and reading back --------------------------------------------------------------------

AWKWARD = [
    "off", "1e-5", "010", "12:30", "null", "~", "0o17", ".inf", "a: b", "# x", "- x", "<<", "",
    " x", "line\nline", "tab\there", "é 中", "'", '"', "{a}", "[b]", "*c", "&d", "@e", "%f",
    "2026-11-21", "1_000", "x" * 300, "a, b", "!!str x", "\u2028", "\x85",
]  # fmt: skip


@pytest.mark.parametrize("name", shipped_names())
def test_a_dumped_shipped_config_reads_back_equal(tmp_path, name):
    config = load_config(name, processes=None).config
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert parse_config_file(file) == config
    assert load_config(str(file), processes=None).notices == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("Optimizer.lr.power=2", "power has no effect on a cosine schedule"),
        ("Optimizer.lr.num_cycles=2", "num_cycles has no effect on a cosine schedule"),
        ("Distributed.sequence_parallel=true", "sequence_parallel has no effect while mp_degree"),
    ],
)
def test_an_option_of_what_is_not_there_is_noted(override, said):
    (notice,) = default_config([override]).notices
    assert said in notice


def test_split_models_switch_at_a_share_of_the_run_alone(write):
    degrees = ["Distributed.mp_degree=2", "Distributed.pp_degree=2"]
    file = write("Schedule: {switch: fraction}\nModel: {ffn: {kind: low_rank}}\n")
    assert load_config(file, degrees, processes=4).config.Schedule.switch == "fraction"
    with pytest.raises(ConfigError, match="switch slope measures in one process") as caught:
        load_config(file, [*degrees, "Schedule.switch=slope"], processes=4)
    assert len(caught.value.problems) == 1


def test_awkward_text_and_numbers_read_back_equal(tmp_path):
    notes = {
        "texts": AWKWARD,
        "inner": {text: text for text in AWKWARD if text},
        "numbers": [0, -1, 1e-300, 1e300, 0.1, 1e16, 123456789012345678, True, None],
        "empty": {},
        "lists": [[1, [2]], {"a": [{"b": "off"}]}],
    }
    config = default_config().config.model_copy(update={"notes": notes})
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert parse_config_file(file) == config


def test_other_programs_read_the_same_values_from_a_dump():
    import yaml

    config = default_config(["notes.a=off", "Optimizer.lr.max_lr=1e-5", "notes.b=010x"]).config
    values = yaml.safe_load(dump_config(config))
    assert values["notes"] == {"a": "off", "b": "010x"}
    assert values["Optimizer"]["lr"]["max_lr"] == 1e-5
    assert values["Data"]["dataset"]["split"] == "949,50,1"


def test_a_missing_dump_is_a_plain_error(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        parse_config_file(tmp_path / "config.yaml")


def test_the_wheel_folder_goes_first(tmp_path, monkeypatch):
    import fastffn_cli.config.shipped as shipped

    package = tmp_path / "site" / "fastffn_cli"
    (package / "config").mkdir(parents=True)
    (package / "shipped_configs").mkdir()
    (package / "shipped_configs" / "mine.yaml").write_text("Global: {seed: 9}\n")
    monkeypatch.setattr(shipped, "__file__", str(package / "config" / "shipped.py"))
    assert shipped.shipped_names() == ["mine"]
    assert shipped_dir() == package / "shipped_configs"
    assert load_config("mine").config.Global.seed == 9


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="Use -c -"):
        load_config(str(tmp_path / "pipe.yaml"))
