"""MindFormers' YAML becomes the Config it means, and every key's story is told."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from fastffn_cli.config import mindformers_keys
from fastffn_cli.config.dialect_spelling import flat_keys
from fastffn_cli.config.dump import dump_config, format_value
from fastffn_cli.config.keys import leaf_keys
from fastffn_cli.config.load import flatten, load_config
from fastffn_cli.config.mindformers_keys import ALIASES, KEYS, MODEL, OPAQUE
from fastffn_cli.errors import ConfigError

FILES = Path(__file__).parent.parent / "fixtures" / "mindformers_yaml"
NAMES = ("run_gpt2", "run_gpt2_13b", "run_gpt2_13b_32_cards", "run_gpt2_52b")


def load(name, *overrides):
    return load_config(str(FILES / f"{name}.yaml"), overrides, processes=None)


def values(resolved):
    return dict(flatten(resolved.config))


def lines_of(resolved):
    return [move.line() for move in resolved.moves]


def problems_of(text, write, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(write(text), overrides, processes=None)
    return caught.value.problems


# --- whole files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_its_bases_loads_and_every_key_has_a_line(name):
    resolved = load(f"gpt2/{name}")
    assert resolved.dialect.name == "mindformers"
    assert resolved.warnings == []
    assert resolved.notices == [resolved.dialect.summary]
    assert resolved.dialect.unchanged == 0
    assert all(move.why for move in resolved.moves if move.target is None)
    told = {(move.origin.file, move.origin.line) for move in resolved.moves}
    assert told == written_lines(f"gpt2/{name}.yaml")


def written_lines(name):
    """Return file and line of each key that counts: those of lists and opaque blocks as one."""
    return {(shown(FILES / file), line) for file, line in written_keys(Path(name)).values()}


def written_keys(file):
    """Merge as MindFormers does: bases replace whole blocks, the file covers single keys."""
    own = dict(nodes(yaml.compose((FILES / file).read_text()), ()))
    bases = yaml.safe_load((FILES / file).read_text()).get("base_config", [])
    merged = {}
    for base in bases if isinstance(bases, list) else [bases]:
        lower = written_keys(file.parent / base)
        blocks = {path[0] for path in lower}
        merged = {path: place for path, place in merged.items() if path[0] not in blocks} | lower
    own.pop(("base_config",), None)
    return merged | {path: (file, line) for path, line in own.items()}


def nodes(node, path):
    for key, value in node.value:
        inner = (*path, key.value)
        if isinstance(value, yaml.MappingNode) and ".".join(inner) not in OPAQUE:
            yield from nodes(value, inner)
        else:
            yield inner, key.start_mark.line + 1


def shown(file):
    try:
        return str(file.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(file.resolve())


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_file_is_native_and_equal(name, tmp_path):
    resolved = load(f"gpt2/{name}")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(resolved.config))
    again = load_config(str(file), processes=None)
    assert again.config == resolved.config
    assert (again.dialect.name, again.moves) == ("fastffn", ())


def test_gpt2_loads_to_the_values_of_its_files():
    found = values(load("gpt2/run_gpt2"))
    expected = {
        "Global.seed": 0, "Global.device": "npu", "Engine.num_train_epochs": 3,
        "Engine.save_load.save_steps": 100, "Engine.save_load.keep_last": 5,
        "Engine.logging_freq": 1, "Engine.mix_precision.enable": True,
        "Engine.mix_precision.dtype": "float16", "Engine.mix_precision.level": "O1",
        "Model.vocab_size": 50257, "Model.hidden_size": 768, "Model.num_layers": 12,
        "Model.num_attention_heads": 12, "Model.ffn_hidden_size": 3072, "Model.hidden_act": "gelu",
        "Model.max_position_embeddings": 1024, "Model.embedding_dropout_prob": 0.0,
        "Model.hidden_dropout_prob": 0.1, "Model.masked_token_id": 50256,
        "Model.use_recompute": False, "Data.dataset.max_seq_len": 1024,
        "Data.dataset.eos_id": 50256, "Data.dataset.input_dir": None,
        "Data.batch_size.global_batch_size": 8, "Data.batch_size.micro_batch_size": 8,
        "Optimizer.weight_decay": 0.1, "Optimizer.adam_beta1": 0.9, "Optimizer.adam_beta2": 0.95,
        "Optimizer.adam_epsilon": 1e-8, "Optimizer.bias_correction": False,
        "Optimizer.grad_clip": 1.0, "Optimizer.lr.name": "polynomial",
        "Optimizer.lr.count_from": 0, "Optimizer.lr.max_lr": 1e-4, "Optimizer.lr.min_lr": 1e-5,
        "Optimizer.lr.warmup_steps": 0, "Optimizer.lr.decay_steps": None,
        "Distributed.dp_degree": 1, "Distributed.sharding.sharding_degree": 1,
        "Generation.top_k": 5, "Generation.top_p": 1.0, "Generation.decode_strategy": "sampling",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert "softmax" in found["Engine.mix_precision.custom_black_list"]


def test_13b_of_32_cards_loads_to_the_values_of_its_model_card():
    resolved = load("gpt2/run_gpt2_13b_32_cards")
    found = values(resolved)
    expected = {
        "Distributed.dp_degree": 1, "Distributed.sharding.sharding_degree": 4,
        "Distributed.sharding.sharding_stage": 1, "Distributed.mp_degree": 2,
        "Distributed.pp_degree": 4, "Distributed.sequence_parallel": True,
        "Engine.accumulate_steps": 24, "Data.batch_size.micro_batch_size": 2,
        "Data.batch_size.global_batch_size": 192, "Model.use_recompute": True,
        "Model.hidden_act": "fast_gelu", "Model.hidden_size": 5120, "Model.num_layers": 40,
        "Engine.mix_precision.level": "O2", "Engine.save_load.save_steps": 500,
        "Optimizer.lr.warmup_steps": 2000, "Optimizer.lr.max_lr": 5e-5,
        "Optimizer.lr.min_lr": 1e-6, "Engine.num_train_epochs": 2, "Engine.logging_freq": 2,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    origin = resolved.origins["Distributed.mp_degree"]
    assert (Path(origin.file).name, origin.line) == ("run_gpt2_13b_32_cards.yaml", 21)


def test_13b_as_released_splits_tensors_alone():
    found = values(load("gpt2/run_gpt2_13b"))
    assert (found["Distributed.mp_degree"], found["Distributed.pp_degree"]) == (8, 1)
    assert found["Engine.accumulate_steps"] == 1
    assert found["Data.batch_size.global_batch_size"] == 8
    assert found["Distributed.sequence_parallel"] is False


def test_52b_as_released_is_built_on_the_13b_model():
    found = values(load("gpt2/run_gpt2_52b"))
    assert (found["Model.hidden_size"], found["Model.num_layers"]) == (5120, 40)
    assert (found["Distributed.pp_degree"], found["Engine.accumulate_steps"]) == (16, 64)
    assert found["Data.batch_size.global_batch_size"] == 2 * 8 * 64


@pytest.mark.parametrize(
    ("preset", "name", "model"),
    [
        ("gpt2", "run_gpt2", "gpt2"),
        ("gpt2-13b", "run_gpt2_13b_32_cards", "gpt2_13b"),
        ("gpt2-52b", "run_gpt2_52b", "gpt2_52b"),
    ],
)
def test_a_shipped_preset_is_the_file_it_was_made_of(preset, name, model, tmp_path):
    shutil.copytree(FILES, tmp_path / "files")
    file = tmp_path / "files" / "gpt2" / f"{name}.yaml"
    file.write_text(file.read_text().replace("gpt2_13b.yaml'", f"{model}.yaml'"))
    ours = dict(flatten(load_config(preset, processes=None).config))
    theirs = dict(flatten(load_config(str(file), processes=None).config))
    # The machine's own, and the end of text, which the data tell.
    own = {"Global.device", "Engine.save_load.output_dir", "Data.dataset.input_dir",
           "Data.dataset.eos_id"}  # fmt: skip
    assert {key for key in ours if ours[key] != theirs[key]} == own


# --- base files, overrides, files of ours --------------------------------------------------------


def test_a_later_base_replaces_whole_blocks_and_the_file_covers_key_by_key(write):
    write("runner_config: {epochs: 3, batch_size: 8}\nseed: 1\n", "a.yaml")
    write("runner_config: {batch_size: 4}\n", "b.yaml")
    text = "base_config: [a.yaml, ./b.yaml]\nrunner_config: {sink_size: 5}\nmodel:\n  arch:\n"
    found = values(load_config(write(text)))
    assert found["Engine.num_train_epochs"] == 1  # of a.yaml's block nothing is left
    assert found["Data.batch_size.local_batch_size"] == 4
    assert (found["Engine.logging_freq"], found["Global.seed"]) == (5, 1)


def test_a_base_that_is_missing_or_goes_round_is_told(write):
    (problem,) = problems_of("base_config: ./gone.yaml\ncontext: {mode: 0}\n", write)
    assert problem.startswith("theirs.yaml:1  'base_config' names gone.yaml, and there is no such")
    (problem,) = problems_of("base_config: theirs.yaml\ncontext: {mode: 0}\n", write)
    assert "'base_config' goes round in a circle" in problem


def test_overrides_in_both_names_decide():
    found = values(
        load(
            "gpt2/run_gpt2_13b_32_cards", "runner_config.batch_size=1",
            "parallel_config.model_parallel=1", "Distributed.pp_degree=2", "Optimizer.grad_clip=0",
            "optimizer.beta2=0.9", "max_lr=1e-3", "seed=7",
        )
    )  # fmt: skip
    assert found["Data.batch_size.micro_batch_size"] == 1
    assert found["Data.batch_size.local_batch_size"] == 24
    assert (found["Distributed.mp_degree"], found["Distributed.pp_degree"]) == (1, 2)
    assert found["Distributed.sequence_parallel"] is False  # nothing to divide among
    assert (found["Optimizer.grad_clip"], found["Optimizer.adam_beta2"]) == (0.0, 0.9)
    assert (found["Optimizer.lr.max_lr"], found["Global.seed"]) == (1e-3, 7)


def test_an_override_of_the_micro_batch_keeps_the_step():
    found = values(load("gpt2/run_gpt2_13b_32_cards", "Data.batch_size.micro_batch_size=4"))
    assert found["Data.batch_size.global_batch_size"] == 192
    assert found["Engine.accumulate_steps"] == 12


def test_a_file_of_ours_may_stand_on_one_of_theirs(write, tmp_path):
    shutil.copytree(FILES, tmp_path / "theirs")
    text = (
        "_base_: theirs/gpt2/run_gpt2.yaml\nModel: {ffn: {kind: low_rank, rank: 32}}\n"
        "Optimizer: {lr: {max_lr: 1e-3}}\n"
    )
    resolved = load_config(write(text, "ours.yaml"))
    assert (resolved.config.Model.ffn.kind, resolved.config.Model.ffn.rank) == ("low_rank", 32)
    assert resolved.config.Model.hidden_size == 768
    assert resolved.config.Optimizer.lr.max_lr == 1e-3
    covered = [line for line in lines_of(resolved) if "lr_schedule.learning_rate" in line]
    assert covered[0].endswith(
        "lr_schedule.learning_rate: accepted, no effect: ours.yaml:3 decides"
    )


# --- the table -----------------------------------------------------------------------------------

ACCEPTED = {
    "context.device_target": "CPU", "context.device_id": 0, "use_parallel": True,
    "optimizer.type": "adamw", "optimizer.betas": [0.9, 0.95], "lr_schedule.type": "cosine",
    "lr_schedule.num_cycles": 0.5, "lr_schedule.total_steps": -1, "lr_schedule.warmup_lr_init": 0.0,
    "callbacks": [{"type": "CheckpointMointor", "save_checkpoint_steps": 5}],
    "output_dir": "./o", "resume_or_finetune_checkpoint": "", "parallel.parallel_mode": 1,
    "train_dataset.data_loader.dataset_dir": "./d", "moe_config.expert_num": 1,
    "parallel_config.expert_parallel": 1, f"{MODEL}.type": "GPT2Config",
    "model.arch.type": "GPT2LMHeadModel", "trainer.type": "CausalLanguageModelingTrainer",
    "train_dataset_task.type": "CausalLanguageModelDataset", f"{MODEL}.hidden_act": "fast_gelu",
    "runner_wrapper.type": "MFTrainOneStepCell", f"{MODEL}.eos_token": 7,
    "runner_wrapper.scale_sense.loss_scale_value": 1024, f"{MODEL}.embedding_size": 60,
    f"{MODEL}.vocab_size": 60000, f"{MODEL}.do_sample": True, "recompute_config.recompute": True,
    "recompute_config.select_recompute": False, f"{MODEL}.post_layernorm_residual": False,
}  # fmt: skip


def accepted_value(path):
    rule = KEYS[path]
    if path in ACCEPTED:
        return ACCEPTED[path]
    key = leaf_keys().get(rule.to) if isinstance(rule.to, str) else None
    for value in [0.25] if key and key.expected.startswith("a number") else [2, 0, True, False]:
        try:
            if rule.convert is not None:
                rule.convert(value)
        except ValueError:
            continue
        if key is None or key.accepts(value):
            return value
    return "float16" if path.endswith("dtype") or path.endswith("init_type") else ""


@pytest.mark.parametrize("path", sorted({*KEYS, *ALIASES}))
def test_every_key_of_the_table_is_accepted_and_told(path, write):
    value = format_value(accepted_value(ALIASES.get(path, path)))
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path.split("."))]
    text = "\n".join(lines) + f" {value}\ncontext: {{mode: 0}}\n"
    if path.startswith("context."):
        text = "\n".join(lines) + f" {value}\n"
    resolved = load_config(write(text), processes=None)
    moves = [move for move in resolved.moves if move.source.startswith(path)]
    assert moves and all(move.origin.line == len(lines) for move in moves)
    assert all(move.target in leaf_keys() or move.why for move in moves)


def test_names_of_this_table_are_no_flat_names_of_fleetx():
    assert not set(mindformers_keys.MARKS) & flat_keys().keys()


def test_names_of_later_releases_mean_the_same(write):
    text = (
        "model:\n  model_config: {hidden_size: 96, num_heads: 4, hidden_dropout_rate: 0.25, "
        "attention_dropout_rate: 0.5, eos_token_id: 3, softmax_compute_type: float16}\n"
    )
    model = load_config(write(text)).config.Model
    assert (model.hidden_size, model.hidden_dropout_prob) == (96, 0.25)
    assert (model.attention_probs_dropout_prob, model.masked_token_id) == (0.5, 3)


def test_what_a_block_leaves_out_is_mindformers_default(write):
    text = "model: {model_config: {type: GPT2Config}}\noptimizer: {type: adamw}\n"
    resolved = load_config(write(text + "lr_schedule: {type: polynomial, learning_rate: 1e-3}\n"))
    model, optimizer = resolved.config.Model, resolved.config.Optimizer
    assert (model.hidden_size, model.num_layers, model.num_attention_heads) == (768, 12, 12)
    assert (optimizer.adam_epsilon, optimizer.weight_decay) == (1e-6, 0.0)
    assert (optimizer.lr.min_lr, optimizer.lr.warmup_steps) == (1e-7, 0)
    assert any("left out, MindFormers' default" in line for line in lines_of(resolved))


@pytest.mark.parametrize(
    ("enabled", "shard", "degrees"),
    [("True", "True", (1, 4)), ("True", "False", (4, 1)), ("False", "True", (4, 1))],
)
def test_optimizer_states_are_shared_where_both_switches_say_so(enabled, shard, degrees, write):
    text = (
        f"parallel: {{enable_parallel_optimizer: {enabled}}}\n"
        f"parallel_config: {{data_parallel: 4, optimizer_shard: {shard}}}\n"
    )
    section = load_config(write(text), processes=None).config.Distributed
    assert (section.dp_degree, section.sharding.sharding_degree) == degrees


def test_a_card_is_numbered_where_there_is_one(write):
    text = "context: {device_target: GPU, device_id: 3}\n"
    assert load_config(write(text)).config.Global.device == "gpu:3"
    assert load_config(write(text + "use_parallel: True\n")).config.Global.device == "gpu"


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("", [], "Global.device: 3 is read as 'gpu:3'; its number"),
        ("use_parallel: True\n", [], "accepted, no effect: use_parallel is true, and the launch "
         "gives every process a device"),
        ("", ["context.device_target=CPU"], "accepted, no effect: a CPU has no number"),
        ("", ["context.device_id=0"], "accepted, no effect: the first one is taken anyway"),
        ("", ["Global.device=npu"], "accepted, no effect: Global.device decides"),
    ],
)  # fmt: skip
def test_the_number_of_a_card_says_whether_it_counts(text, overrides, told, write):
    name = write("context: {device_target: GPU, device_id: 3}\n" + text)
    resolved = load_config(name, overrides)
    (line,) = [line for line in lines_of(resolved) if "context.device_id" in line]
    assert line.endswith(told)


def test_a_switch_that_lets_the_number_count_has_an_effect(write):
    text = "context: {device_target: GPU, device_id: 3}\nuse_parallel: False\n"
    (line,) = [line for line in lines_of(load_config(write(text))) if "use_parallel" in line]
    assert line.endswith(
        "use_parallel -> Global.device: false is read as 'gpu:3'; its number counts"
    )


def test_an_override_without_effect_is_a_notice(write):
    name = write("context: {device_target: GPU}\nuse_parallel: True\n")
    notices = load_config(name, ["context.device_id=2"]).notices
    assert any(
        line.startswith("-o context.device_id=2  is accepted and has no effect: use_parallel is")
        for line in notices
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_the_earlier_of_two_overrides_that_mean_one_key_is_a_notice(reverse):
    typed = ["Distributed.mp_degree=4", "parallel_config.model_parallel=2"]
    earlier, later = reversed(typed) if reverse else typed
    resolved = load("gpt2/run_gpt2_13b", earlier, later)
    assert resolved.config.Distributed.mp_degree == (4 if reverse else 2)
    text = f"-o {earlier}  is accepted and has no effect: -o {later} decides"
    assert text in resolved.notices


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("parallel_config.model_parallel=4", "type Distributed.mp_degree"),
        ("model.model_config.hidden_size=4", "type Model.hidden_size"),
        ("parallel_config.data_parallel=4", "`fastffn config` lists our keys"),
    ],
)
def test_their_spelling_on_a_file_of_ours_is_known(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config("gpt2-13b", [override], processes=None)
    (problem,) = caught.value.problems
    spelling = override.partition("=")[0]
    assert f"'{spelling}' is MindFormers' spelling, for MindFormers' own files: {said}" in problem


def test_no_flag_of_the_page_is_mapped_and_without_a_counterpart():
    page = (Path(__file__).parents[2] / "docs/coming-from-mindspore.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    mapped = set(re.findall(r"`([\w.]+)`", " ".join(rows)))
    paragraph = page.split("Without a counterpart")[1].split("\n\n")[0]
    left_out = set(re.findall(r"`(\w+)`", paragraph))
    assert left_out and not left_out & mapped


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parallel_config: {data_paralel: 4}", "Did you mean 'parallel_config.data_parallel'?"),
        ("context: {mode: 0}\nrunner_confg: {epochs: 1}", "unknown key 'runner_confg'. Did you"),
        ("context: 3", "'context' must be a block of keys, not a value"),
        ("moe_config: {expert_num: 8}", "Type 1, and for experts of ours -o Model.ffn.kind=moe"),
        ("parallel_config: {expert_parallel: 2}", "experts of MindFormers are not read"),
        ("trainer: {type: ImageClassificationTrainer}", "Type -o trainer.type=CausalLanguage"),
        ("lr_schedule: {type: WarmUpCosineDecayV1}", "Type -o lr_schedule.type=cosine"),
        ("lr_schedule: {type: cosine, num_cycles: 2.0}", "a cosine falls once here"),
        ("lr_schedule: {warmup_lr_init: 1e-6}", "a warm-up starts at 0 here"),
        ("optimizer: {type: Lamb}", "Type -o optimizer.type=FusedAdamWeightDecay"),
        ("context: {device_target: TPU}", "must be one of Ascend, GPU, CPU"),
        ("model: {model_config: {hidden_act: relu}}", "activations are gelu and fast_gelu"),
        ("model: {model_config: {num_layers: twelve}}", "'model.model_config.num_layers' must be"),
        ("model: {model_config: {hidden_size: 12, embedding_size: 24}}", "keep one of the two"),
        ("runner_config: {has_trained_steps: 10}", "type --resume to go on"),
        ("context: {mode: 0}\nload_checkpoint: a.ckpt", "fastffn convert"),
        ("callbacks: [{type: Mystery}]", "callbacks: Mystery is not known here"),
        ("runner_wrapper: {use_clip_grad: 1}", "must be true or false"),
        ("parallel: {parallel_mode: 0}\nparallel_config: {model_parallel: 2}",
         "parallel.parallel_mode 0 splits the batch alone"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_to_type(text, said, write):
    (problem,) = problems_of(text + "\n", write)
    assert problem.startswith("theirs.yaml:")
    assert said in problem


WEIRD = ["[1, {a: [b]}]", "{a: 1}", "text", "''", "-5", "0", "0.5", "1e999", "true", "null",
         "[{type: [x]}]", "[{type: CheckpointMointor, save_checkpoint_steps: [1]}]"]  # fmt: skip


@pytest.mark.parametrize("weird", WEIRD)
def test_no_value_of_a_key_ends_in_anything_but_a_problem(weird, write):
    for path in sorted({*KEYS, *ALIASES, *OPAQUE}):
        lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path.split("."))]
        text = "\n".join(lines) + f" {weird}\n"
        text += "" if path.startswith("context") else "context: {mode: 0}\n"
        try:
            load_config(write(text), processes=None)
        except ConfigError as error:
            assert all(problem.startswith("theirs.yaml:") for problem in error.problems), path


def test_all_mistakes_are_told_at_once(write):
    text = "context: {mod: 0}\nmoe_config: {expert_num: 2}\nrunner_config: {epochs: none}\n"
    assert len(problems_of(text, write)) == 3


def test_a_switch_that_the_degrees_contradict_is_a_warning(write):
    text = "use_parallel: False\nparallel_config: {data_parallel: 4}\n"
    warnings = load_config(write(text), processes=None).warnings
    assert any("use_parallel is false, and the degrees multiply to 4" in line for line in warnings)


def test_an_excerpt_without_a_model_is_a_warning():
    (warning,) = load("card_13b").warnings
    assert "there is no model.model_config" in warning
