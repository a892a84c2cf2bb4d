"""FleetX's YAML, in all its forms, becomes the Config it means, and every key's story is told."""

import json
from pathlib import Path
from random import Random

import pytest
import yaml

from fastffn_cli.config.dialect_spelling import flat_keys, is_opaque
from fastffn_cli.config.dump import dump_config, format_value
from fastffn_cli.config.explain import find_key
from fastffn_cli.config.fleetx_keys import FOREIGN
from fastffn_cli.config.fleetx_values import COSINE
from fastffn_cli.config.keys import leaf_keys
from fastffn_cli.config.load import default_config, load_config
from fastffn_cli.config.shipped import shipped_names
from fastffn_cli.engine.schedule import build_schedule
from fastffn_cli.errors import ConfigError

FILES = Path(__file__).parent.parent / "fixtures" / "fleetx_yaml"
FORMS = {
    "A_config": "fastffn",
    "E_eval_config": "fleetx-2022-08",
    "N_config": "ppfleetx",
    "N_eval_config": "ppfleetx",
    "pretrain_gpt_345M": "ppfleetx",
    "stage_1_of_theirs": "ppfleetx",
    "examples_transformer": "ppfleetx-transformer",
    "july_flat": "fleetx-2022-07",
    "july_pretraining": "fleetx-2022-07",
}


def load(name, *overrides):
    return load_config(str(FILES / f"{name}.yaml"), overrides)


def value_of(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def story(resolved):
    """Return what is told of each key, by the name it was written with."""
    return {move.source: move for move in resolved.moves}


# --- every form ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_a_file_of_each_form_loads_and_is_recognised(name, form):
    resolved = load(name)
    assert resolved.dialect.name == form
    assert bool(resolved.dialect.summary) == (form != "fastffn")
    assert all(move.why for move in resolved.moves if move.target is None)


@pytest.mark.parametrize("name", FORMS)
def test_a_resolved_file_is_native_and_equal(name, tmp_path):
    resolved = load(name)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(resolved.config))
    again = load_config(str(file))
    assert again.config == resolved.config
    assert (again.dialect.name, again.moves) == ("fastffn", ())


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_config_has_no_story(name):
    resolved = load_config(name, processes=None)
    assert (resolved.dialect.name, resolved.moves) == ("fastffn", ())


@pytest.mark.parametrize("name", ["A_config", "N_config"])
def test_a_fixture_loads_to_the_numbers_it_was_run_with(name):
    """Both runs: one model and one schedule, batches of 4; N in two micro-batches."""
    config = load(name).config
    expected = {
        "Model.vocab_size": 128, "Model.hidden_size": 32, "Model.num_layers": 2,
        "Model.num_attention_heads": 4, "Model.ffn_hidden_size": 128,
        "Model.max_position_embeddings": 64, "Model.hidden_dropout_prob": 0.0,
        "Data.batch_size.global_batch_size": 4, "Data.batch_size.local_batch_size": 4,
        "Data.batch_size.micro_batch_size": 4 if name == "A_config" else 2,
        "Engine.accumulate_steps": 1 if name == "A_config" else 2,
        "Data.dataset.max_seq_len": 32, "Data.dataset.split": "900,80,20",
        "Data.dataset.input_dir": "./tiny_data",
        "Global.seed": 1024, "Optimizer.weight_decay": 0.1, "Optimizer.adam_beta1": 0.9,
        "Optimizer.adam_beta2": 0.999, "Optimizer.adam_epsilon": 1e-8,
        "Optimizer.grad_clip": 1.0, "Optimizer.lr.decay_steps": 10,
        "Optimizer.lr.warmup_rate": 0.3, "Optimizer.lr.max_lr": 0.005,
        "Optimizer.lr.min_lr": 0.0001, "Engine.max_steps": 6, "Engine.eval_freq": 3,
        "Engine.eval_iters": 2, "Engine.save_load.save_steps": 3,
        "Engine.mix_precision.enable": False,
    }  # fmt: skip
    assert {key: value_of(config, key) for key in expected} == expected


def test_the_schedule_of_both_fixtures_is_the_one_fleetx_ran():
    ran = [
        0.0016666666666666668, 0.0033333333333333335, 0.005,
        0.004757373726360927, 0.004077550014553897, 0.0030951762881929698,
    ]  # fmt: skip
    for name in ("A_config", "N_config"):  # N ran these one step later, behind an update with 0
        schedule = build_schedule(load(name).config.Optimizer.lr, 6)
        assert [schedule(step) for step in range(1, 7)] == pytest.approx(ran, rel=1e-12)


@pytest.mark.parametrize("name", ["E_eval_config", "N_eval_config"])
def test_an_evaluation_fixture_loads_to_the_numbers_it_was_run_with(name):
    config = load(name).config
    section, model = config.Offline_Eval, config.Model
    assert (section.eval_path, section.cloze_eval, section.batch_size) == ("./wiki.txt", False, 4)
    assert (section.overlapping_eval, section.max_seq_len) == (32, 64)
    assert (model.vocab_size, model.hidden_size, model.num_layers) == (50304, 4, 2)
    assert (model.num_attention_heads, model.ffn_hidden_size) == (2, 32)


def test_both_fixtures_of_one_experiment_are_one_config():
    ours, theirs = load("A_config").config.model_dump(), load("N_config").config.model_dump()
    differing = {
        (section, key) for section in ours for key in ours[section]
        if ours[section][key] != theirs[section][key]
    }  # fmt: skip
    # N computes in two micro batches, has other settings of generation, and names its own lists.
    assert differing <= {("Data", "batch_size"), ("Engine", "accumulate_steps")} | {
        ("Generation", key) for key in ours["Generation"]
    }


def test_the_flat_and_the_nested_form_of_july_mean_the_same():
    text = (FILES / "july_flat.yaml").read_text()
    resolved = load("july_flat")
    for line in text.splitlines():
        name, _, written = line.partition(":")
        if written.strip():
            origin = resolved.origins[flat_keys()[name]]
            assert Path(origin.file).name == "july_flat.yaml"
            assert text.splitlines()[origin.line - 1].startswith(name)
    config = load("july_pretraining").config
    assert (config.Engine.max_steps, config.Model.hidden_size) == (500, 64)
    assert (config.Optimizer.lr.max_lr, config.Data.dataset.max_seq_len) == (1e-5, 128)


def test_keys_of_the_engine_under_global_arrive():
    config = load("examples_transformer").config
    engine = config.Engine
    assert (engine.max_steps, engine.eval_freq, engine.eval_iters) == (1000, 100, 3)
    assert engine.mix_precision.custom_black_list == ("reduce_sum",)
    assert engine.save_load.save_steps == 200
    assert (config.Data.batch_size.micro_batch_size, engine.accumulate_steps) == (2, 2)
    assert (config.Global.device, config.Global.seed) == ("cpu", 7)
    assert (config.Optimizer.grad_clip, config.Optimizer.adam_beta2) == (0.5, 0.95)


# --- inheritance ---------------------------------------------------------------------------------


def test_a_chain_of_bases_is_read_in_its_own_names():
    resolved = load("pretrain_gpt_345M")
    config = resolved.config
    assert config.Data.batch_size.local_batch_size == 8
    assert config.Data.dataset.split == "969,30,1"
    assert (config.Optimizer.lr.max_lr, config.Optimizer.lr.warmup_rate) == (3e-4, 0.02)
    assert config.Optimizer.adam_epsilon == 1e-8
    assert config.Engine.mix_precision.level == "O2"
    origin = resolved.origins["Optimizer.adam_epsilon"]
    assert (Path(origin.file).name, origin.line) == ("pretrain_gpt_base.yaml", 66)


def test_a_file_of_ours_may_stand_on_one_of_theirs():
    resolved = load("stage_1_of_theirs")
    assert (resolved.config.Model.ffn.kind, resolved.config.Model.ffn.rank) == ("low_rank", 32)
    assert resolved.config.Data.batch_size.local_batch_size == 16
    assert story(resolved)["Global.local_batch_size"].target is None
    assert story(resolved)["Global.local_batch_size"].why.endswith(
        "stage_1_of_theirs.yaml:6 decides"
    )


def test_inherited_false_forgets_a_block_of_theirs(write):
    write("Global: {local_batch_size: 4, micro_batch_size: 2}\n", "base.yaml")
    name = write("_base_: base.yaml\nGlobal: {_inherited_: False, local_batch_size: 8}\n")
    sizes = load_config(name).config.Data.batch_size
    assert (sizes.local_batch_size, sizes.micro_batch_size) == (8, 8)
    write("Optimizer:\n  grad_clip: {name: ClipGradByGlobalNorm, clip_norm: 0.5}\n", "base.yaml")
    name = write("_base_: base.yaml\nOptimizer: {grad_clip: {clip_norm: 0.25}}\n")
    assert load_config(name).config.Optimizer.grad_clip == 0.25


def test_a_blank_of_ours_over_a_value_of_theirs_is_the_default(write):
    write("Global: {local_batch_size: 4}\n", "base.yaml")
    name = write("_base_: base.yaml\nData: {batch_size: {local_batch_size: }}\n")
    assert load_config(name).config.Data.batch_size.local_batch_size == 8


# --- overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_an_override_in_their_names_works_on_every_form(name):
    resolved = load(
        name, "Global.local_batch_size=12", "Global.micro_batch_size=3", "Optimizer.beta1=0.8",
        "Optimizer.grad_clip.clip_norm=0.125", "Global.max_steps=77", "max_lr=3e-3",
    )  # fmt: skip
    config = resolved.config
    assert config.Data.batch_size.local_batch_size == 12
    assert (config.Data.batch_size.micro_batch_size, config.Engine.accumulate_steps) == (3, 4)
    assert (config.Optimizer.adam_beta1, config.Optimizer.grad_clip) == (0.8, 0.125)
    assert (config.Engine.max_steps, config.Optimizer.lr.max_lr) == (77, 3e-3)
    assert str(resolved.origins["Optimizer.adam_beta1"]) == "-o Optimizer.beta1=0.8"
    assert "-o Optimizer.beta1=0.8  is read as Optimizer.adam_beta1=0.8" in resolved.notices


@pytest.mark.parametrize("name", FORMS)
def test_an_override_in_our_names_works_on_every_form(name):
    config = load(
        name, "Data.batch_size.local_batch_size=12", "Data.batch_size.micro_batch_size=3",
        "Optimizer.adam_beta1=0.8", "Optimizer.grad_clip=0.125", "Engine.max_steps=77",
        "Optimizer.lr.max_lr=3e-3", "Data.dataset.max_seq_len=16", "Data.dataset.input_dir=./d",
    ).config  # fmt: skip
    assert (config.Data.batch_size.local_batch_size, config.Engine.accumulate_steps) == (12, 4)
    assert (config.Optimizer.adam_beta1, config.Optimizer.grad_clip) == (0.8, 0.125)
    assert (config.Engine.max_steps, config.Optimizer.lr.max_lr) == (77, 3e-3)
    assert (config.Data.dataset.max_seq_len, config.Data.dataset.input_dir) == (16, "./d")


def test_the_last_override_wins_whatever_its_names(write):
    both = ("Global.local_batch_size=4", "Data.batch_size.local_batch_size=16")
    for order, size in ((both, 16), (both[::-1], 4)):
        assert default_config(order).config.Data.batch_size.local_batch_size == size
    name = write("Global: {max_steps: 5}\n")
    assert (
        load_config(name, ["Engine.max_steps=6", "Global.max_steps=7"]).config.Engine.max_steps == 7
    )


def test_a_blank_override_undoes_a_value_under_its_other_name(write):
    name = write("Global: {max_steps: 5}\nOptimizer: {beta1: 0.5}\n")
    config = load_config(name, ["Engine.max_steps=", "Optimizer.adam_beta1="]).config
    assert (config.Engine.max_steps, config.Optimizer.adam_beta1) == (None, 0.9)


def test_a_key_of_theirs_under_two_names_is_one(write):
    name = write("Engine: {run_mode: step, max_steps: 9}\nGlobal: {run_mode: epoch}\n")
    with pytest.raises(ConfigError, match=r"'Engine.run_mode' is step \(line 1\) and 'Global.run"):
        load_config(name)
    name = write("Engine: {run_mode: step, max_steps: 9}\n")
    assert load_config(name, ["Global.run_mode=epoch"]).config.Engine.max_steps is None


def test_equal_values_under_two_names_are_fine(write):
    name = write(
        "Data: {dataset: {split: '8,1,1', input_dir: ./d}, "
        "Train: {dataset: {split: [8, 1, 1], input_dir: d/}}}\n"
    )
    assert load_config(name).config.Data.dataset.split == "8,1,1"
    name = write("Global: {local_batch_size: 4}\nData: {batch_size: {local_batch_size: 4}}\n")
    assert load_config(name).config.Data.batch_size.local_batch_size == 4


def test_names_without_a_section_count_in_a_flat_file_only(write):
    assert load_config(write("max_steps: 5\nseed: 3\n")).config.Engine.max_steps == 5
    with pytest.raises(ConfigError, match="unknown key 'max_steps'"):
        load_config(write("Engine: {eval_freq: 5}\nmax_steps: 5\n"))
    flat = "max_steps: 5\nhidden_size: 64\nnum_attention_heads: 4\nModel: {ffn: {kind: low_rank}}\n"
    config = load_config(write(flat)).config
    assert (config.Model.hidden_size, config.Model.ffn.kind) == (64, "low_rank")


# --- the table -----------------------------------------------------------------------------------

# What a key accepts, where it does not accept anything.
ACCEPTED = {
    "Engine.run_mode": "step",
    "Engine.max_steps": -1,
    "Engine.test_iters": -1,
    "Engine.mix_precision.level": "o1",
    "Engine.use_recompute": True,
    "Model.sequence_parallel": True,
    "Model.module": "GPTModule",
    "Model.name": "GPT",
    "Model.num_experts": [1],
    "Optimizer.name": "FusedAdamW",
    "Optimizer.lr.name": COSINE,
    "Optimizer.grad_clip.name": "ClipGradByGlobalNorm",
    "Optimizer.grad_clip.clip_norm": 0.5,
}
NEVER = {"Model.pretrained"}


def accepted_value(path):
    if path in ACCEPTED:
        return ACCEPTED[path]
    if path.endswith(".enable"):
        return False
    if path.endswith("dataset.name"):
        return "GPTDataset"
    if path.endswith("sampler.name"):
        return "GPTBatchSampler"
    target = FOREIGN[path].to if isinstance(FOREIGN[path].to, str) else path
    native = path.replace("Data.Eval", "Data").replace("Data.Test", "Data")
    key = leaf_keys().get(target) or leaf_keys().get(native)
    if key is not None and key.expected.startswith("text"):
        return "8,1,1" if path.endswith("split") else "./d"
    if key is not None and key.expected.startswith("a number"):
        return 0.25
    return 8


@pytest.mark.parametrize("path", sorted(FOREIGN.keys() - NEVER))
def test_every_key_of_the_table_is_accepted_and_told(path, write):
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path.split("."))]
    text = "\n".join(lines) + f" {format_value(accepted_value(path))}\n"
    if path.startswith("Quantization.") and not path.endswith("enable"):
        text += "  enable: False\n"
    resolved = load_config(write(text))
    move = story(resolved)[path]
    assert move.origin.line == len(lines)
    assert move.why or move.target
    if move.target is not None and path != "Engine.run_mode":
        assert move.target in leaf_keys()
    assert resolved.dialect.summary in resolved.notices


@pytest.mark.parametrize(
    "path",
    sorted(path for path in FOREIGN if not any(is_opaque(path[:end]) for end in range(len(path)))),
)
def test_a_misspelt_key_of_the_table_is_an_error_with_a_suggestion(path, write):
    wrong = path + "x"
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(wrong.split("."))]
    with pytest.raises(ConfigError) as caught:
        load_config(write("\n".join(lines) + " 1\n"))
    assert any(f"unknown key '{wrong}'" in line or f"unknown key '{'.'.join(wrong.split('.')[:2])}'"
               in line for line in caught.value.problems)  # fmt: skip
    if len(path.rpartition(".")[2]) > 2:
        assert f"Did you mean '{path}'?" in caught.value.problems[0]


def leaves(tree, path=()):
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from leaves(node, (*path, name))
        else:
            yield ".".join((*path, name)), node


def draw_file(random):
    """Return a mapping of keys of either system, each with a value that it accepts."""
    native = [key for key in leaf_keys() if not key.startswith(("Model.ffn", "Optimizer.recipe"))]
    names = {path: path for path in (*native, *sorted(FOREIGN.keys() - NEVER))}
    engine = [name for name in names if name.startswith("Engine.") and "recompute" not in name]
    names |= {f"Global.{name.partition('.')[2]}": name for name in engine}
    tree = {}
    for source in random.sample(list(names), random.randint(1, 25)):
        path = names[source]
        value = accepted_value(path) if path in FOREIGN else leaf_keys()[path].default
        *blocks, name = source.split(".")
        block = tree
        for inner in blocks:
            block = block.setdefault(inner, {}) if isinstance(block, dict) else None
        if isinstance(block, dict) and not isinstance(block.get(name), dict):
            block[name] = list(value) if isinstance(value, tuple) else value
    if "Quantization" in tree:
        tree["Quantization"]["enable"] = False
    return tree


def test_no_key_is_lost_whatever_is_mixed(write):
    loaded = 0
    for seed in range(200):
        tree = draw_file(Random(seed))
        try:
            resolved = load_config(write(yaml.safe_dump(tree)))
        except ConfigError as error:  # two names with different values
            assert all("both mean" in line or "have to" in line or "all parts" in line
                       for line in error.problems)  # fmt: skip
            continue
        loaded += 1
        told = {move.source for move in resolved.moves}
        written = {key for key, origin in resolved.origins.items() if origin.kind == "file"}
        for path, value in leaves(tree):
            assert value is None or path in told | written, (seed, path)
        write(dump_config(resolved.config), "again.yaml")
        assert load_config("again.yaml").config == resolved.config
    assert loaded > 150


def test_no_key_of_the_table_hides_one_of_the_schema():
    native = {path for path in FOREIGN if path in leaf_keys()}
    assert native == {
        "Engine.max_steps", "Engine.test_iters", "Engine.mix_precision.level", "Optimizer.name",
        "Optimizer.lr.name",
    }  # fmt: skip
    for path, rule in FOREIGN.items():
        assert not isinstance(rule.to, str) or rule.to in leaf_keys(), path


def test_a_key_is_explained_under_their_name():
    assert find_key("Optimizer.beta1") == "Optimizer.adam_beta1"
    assert find_key("Global.max_steps") == "Engine.max_steps"
    assert find_key("Eval.eval_path") == "Offline_Eval.eval_path"
    assert find_key("beta2") == "Optimizer.adam_beta2"
    with pytest.raises(ConfigError, match="has no effect: q, k and v are one matrix"):
        find_key("Model.fuse_attn_qkv")


# --- what is told --------------------------------------------------------------------------------


def test_the_story_has_each_key_with_its_place_and_reason(write):
    resolved = load_config(
        write("Global:\n  seed: 3\n  local_batch_size: 4\nModel:\n  fuse_attn_qkv: True\n")
    )
    assert [move.line() for move in resolved.moves] == [
        "theirs.yaml:3  Global.local_batch_size -> Data.batch_size.local_batch_size",
        "theirs.yaml:5  Model.fuse_attn_qkv: accepted, no effect: q, k and v are one matrix here; "
        "convert reads checkpoints of both forms",
    ]
    assert resolved.moves[0].as_json() == {
        "from": "Global.local_batch_size", "to": "Data.batch_size.local_batch_size", "value": 4,
        "why": "", "place": "theirs.yaml:3",
    }  # fmt: skip
    assert resolved.notices == [
        "theirs.yaml is read as ppfleetx (2023) YAML: 1 key moved, 1 without effect "
        "(fastffn config -c theirs.yaml lists them)"
    ]
    assert str(resolved.origins["Data.batch_size.local_batch_size"]) == "theirs.yaml:3"
    assert resolved.dialect.unchanged == 1


def test_a_value_that_is_read_as_another_is_told():
    lines = {move.source: move.line().split("  ")[1] for move in load("pretrain_gpt_345M").moves}
    assert lines["Optimizer.name"] == "Optimizer.name: FusedAdamW is read as AdamW"
    assert lines["Optimizer.lr.name"].startswith(f"Optimizer.lr.name: {COSINE} is read as cosine; ")
    assert "first update with learning rate 0" in lines["Optimizer.lr.name"]


def test_a_value_that_json_does_not_have_is_text_there(write):
    (move,) = load_config(write("Tuning: {debug: [.inf, 1]}\n")).moves
    assert json.dumps(move.as_json()["value"], allow_nan=False) == '[".inf", 1]'


def test_a_native_file_says_nothing_of_dialects(write):
    resolved = load_config(write("Model: {type_vocab_size: 16}\n"))
    assert (resolved.dialect.name, resolved.dialect.summary) == ("fastffn", None)
    assert resolved.notices == [
        "theirs.yaml:1  Model.type_vocab_size is accepted and has no effect: a GPT has no token "
        "types"
    ]
