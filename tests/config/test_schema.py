"""Every key of the schema arrives from a file and from an override, and is explained everywhere."""

import json
from pathlib import Path

import pytest

from fastffn_cli.config.complete import complete_config_name, complete_override
from fastffn_cli.config.dump import dump_with_origins, format_value
from fastffn_cli.config.explain import explain_key, find_key
from fastffn_cli.config.ffn import FFN_KINDS
from fastffn_cli.config.keys import all_keys, leaf_keys, sections
from fastffn_cli.config.load import default_config, flatten, load_config
from fastffn_cli.config.scalars import parse_scalar
from fastffn_cli.config.schema import Config
from fastffn_cli.config.shipped import shipped_names
from fastffn_cli.config.table import json_schema, key_table_markdown
from fastffn_cli.errors import ConfigError

# Values for the keys whose neighbours or ranges do not let any value through.
SPECIAL = {
    "Global.device": "cpu",
    "Model.hidden_size": 512,
    "Model.num_attention_heads": 8,
    "Model.ffn.kind": "low_rank",
    "Model.ffn.dense_layers": [0, -1],
    "Model.ffn.layer_ranks": [4] * 24,
    "Model.ffn.blocks": 8,
    "Data.dataset.split": "8,1,1",
    "Data.dataset.max_seq_len": 512,
    "Data.batch_size.global_batch_size": 16,
    "Data.batch_size.local_batch_size": 24,
    "Generation.num_beams": 0,
    "Offline_Eval.max_seq_len": 512,
    "Offline_Eval.overlapping_eval": 16,
    "Profiler.scheduler": [2, 6],
    "Engine.mix_precision.custom_black_list": ["softmax"],
    "Engine.mix_precision.custom_white_list": ["matmul_v2"],
}
ONLY_ONE = {
    "Distributed.dp_degree",
    "Distributed.mp_degree",
    "Distributed.pp_degree",
    "Distributed.sharding.sharding_degree",
    "Inference.mp_degree",
}
SINGLE_CHOICE = {"Optimizer.name"}


def another_value(path):
    """Return a valid value that is not the default."""
    key = leaf_keys()[path]
    if path in SPECIAL:
        return SPECIAL[path]
    if key.choices:
        value = next(choice for choice in key.choices if choice != key.default)
        return [value] if key.expected.startswith("a list") else value
    if key.expected.startswith("an integer"):
        return (key.default or 2) + 1
    if key.expected.startswith("a number"):
        return (key.default or 0.5) / 2
    assert key.expected.startswith("text"), path
    return "some/where"


def settable():
    return [path for path in leaf_keys() if path not in ONLY_ONE | SINGLE_CHOICE]


def with_kind(path):
    kinds = ("low_rank",) if path == "Schedule.switch" else leaf_keys()[path].kinds
    return [f"Model.ffn.kind={kinds[0]}"] if kinds else []


def value_of(resolved, path):
    value = dict(flatten(resolved.config))[path]
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("path", settable())
def test_a_key_set_by_an_override_arrives(path):
    value = another_value(path)
    override = f"{path}={format_value(value)}"
    resolved = default_config([*with_kind(path), override])
    assert value_of(resolved, path) == value
    assert str(resolved.origins[path]) == f"-o {override}"
    default = leaf_keys()[path].default
    assert value != (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("path", settable())
def test_a_key_set_in_a_file_arrives(tmp_path, path):
    value = another_value(path)
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path.split("."))]
    file = tmp_path / "a.yaml"
    file.write_text("\n".join(lines) + f" {format_value(value)}\n")
    resolved = load_config(str(file), with_kind(path))
    assert value_of(resolved, path) == value
    assert resolved.origins[path].line == len(lines)


@pytest.mark.parametrize("path", sorted(ONLY_ONE))
def test_a_degree_above_one_is_refused_and_one_is_accepted(path):
    assert value_of(default_config([f"{path}=1"]), path) == 1
    with pytest.raises(ConfigError, match=r"(set the degrees|Set it) to 1"):
        default_config([f"{path}=2"])


def test_the_schema_has_fleetx_sections_and_keys():
    assert sections() == (
        "Global",
        "Engine",
        "Model",
        "Data",
        "Optimizer",
        "Schedule",
        "Distributed",
        "Fused",
        "Generation",
        "Offline_Eval",
        "Inference",
        "Profiler",
    )
    assert set(flatten_paths(Config())) <= set(leaf_keys())


def flatten_paths(config):
    return [path for path, _ in flatten(config) if path != "notes"]


@pytest.mark.parametrize("path", list(all_keys()))
def test_every_key_and_block_has_an_explanation(path):
    assert all_keys()[path].description.endswith(".")
    rows = dict(explain_key(path))
    assert rows["meaning"] == all_keys()[path].description
    if path in leaf_keys():
        assert rows["type"]
        assert rows["default"]


def test_every_kind_of_feed_forward_is_in_the_schema():
    for kind, options in FFN_KINDS.items():
        assert options(kind=kind).kind == kind
        for name in options.model_fields:
            assert f"Model.ffn.{name}" in leaf_keys()


# --- explanations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Optimizer.lr.max_lr", "Optimizer.lr.max_lr"),
        ("optimizer.LR.max_lr", "Optimizer.lr.max_lr"),
        ("max_lr", "Optimizer.lr.max_lr"),
        ("rank", "Model.ffn.rank"),
        ("lr.min_lr", "Optimizer.lr.min_lr"),
        ("Model", "Model"),
    ],
)
def test_a_key_is_found_by_its_path_or_its_unique_last_part(name, path):
    assert find_key(name) == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_lrr", "unknown key 'max_lrr'. Did you mean 'Optimizer.lr.max_lr'?"),
        (
            "max_seq_len",
            "'max_seq_len' is the name of 2 keys: Data.dataset.max_seq_len, "
            "Offline_Eval.max_seq_len. Type one of them",
        ),
        ("qqqq", "unknown key 'qqqq'."),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(name, expected):
    with pytest.raises(ConfigError) as caught:
        find_key(name)
    assert caught.value.problems == [expected]


def test_an_explanation_tells_type_range_default_value_and_origin():
    resolved = default_config(["Model.hidden_dropout_prob=0.2"])
    assert dict(explain_key("Model.hidden_dropout_prob", resolved)) == {
        "meaning": "Dropout of embeddings, attention outputs and feed-forwards.",
        "type": "a number of at least 0 and below 1",
        "default": "0.1",
        "value": "0.2   (-o Model.hidden_dropout_prob=0.2)",
        "write": "-o Model.hidden_dropout_prob=0.1",
    }
    assert dict(explain_key("Model.ffn.rank", resolved))["value"].startswith("none")


@pytest.mark.parametrize("path", settable())
def test_the_example_of_an_explanation_can_be_typed(path):
    example = dict(explain_key(path))["write"].removeprefix("-o ")
    placeholder = example.endswith(("=N", "=..."))
    if not placeholder:
        default_config([*with_kind(path), example])


def test_the_key_table_has_a_row_for_every_key():
    lines = key_table_markdown().splitlines()
    names = [line.split("`")[1] for line in lines[2:]]
    assert names == [*leaf_keys(), "notes"]
    assert all(line.replace("\\|", "").count("|") == 5 for line in lines)


def test_the_resolved_text_is_valid_yaml_with_an_origin_behind_every_value(tmp_path):
    resolved = load_config("gpt-124m-fastffn", ["Engine.max_steps=7"])
    text = dump_with_origins(resolved.config, resolved.origins)
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert load_config(str(file)).config == resolved.config
    commented = {line.split(":")[0].strip(): line for line in text.splitlines() if "  # " in line}
    assert commented["max_steps"].endswith("# -o")
    assert commented["rank"].endswith("gpt-124m-fastffn.yaml:9")
    assert commented["ffn_hidden_size"].endswith("# derived")
    assert commented["cpu_threads"].endswith("# default (blank: every core)")
    assert sum("  # " in line for line in text.splitlines()) == len(resolved.origins)


# --- JSON schema ---------------------------------------------------------------------------------


def test_the_json_schema_describes_every_key_and_allows_what_the_loader_allows():
    schema = json.loads(json.dumps(json_schema()))
    defs = schema["$defs"]

    def resolve(node):
        for option in node.get("anyOf", [node]):
            if "$ref" in option:
                return defs[option["$ref"].rpartition("/")[2]]
        return node

    for path, key in all_keys().items():
        node = schema
        for name in path.split("."):
            if path.startswith("Model.ffn.") and name == key.name:
                kind = key.kinds[0] if key.kinds else "dense"
                node = defs[FFN_KINDS[kind].__name__]
            node = resolve(node)["properties"][name]
        assert node["description"] == key.description
        nullable = {"type": "null"} in node.get("anyOf", ())
        assert nullable == (not key.field.is_required()), path
    assert '"ge"' not in json.dumps(schema)
    assert defs["EngineSection"]["properties"]["max_steps"]["anyOf"][0]["minimum"] == 1
    assert set(schema["properties"]) >= {"_base_", "_inherited_", "notes", *sections()}
    assert schema["additionalProperties"] is False


# --- completion ----------------------------------------------------------------------------------


def test_overrides_complete_to_keys_and_choices():
    assert [name for name, _ in complete_override("Optimizer.lr.m")] == [
        "Optimizer.lr.max_lr=",
        "Optimizer.lr.min_lr=",
    ]
    assert [name for name, _ in complete_override("Model.ffn.kind=low")] == [
        "Model.ffn.kind=low_rank",
        "Model.ffn.kind=low_rank_activation",
    ]
    assert [name for name, _ in complete_override("Model.use_recompute=t")] == [
        "Model.use_recompute=true"
    ]
    assert complete_override("nonsense") == []


def test_config_names_complete_to_shipped_names_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt-mine.yaml").touch()
    Path("gpt-notes.txt").touch()
    Path("gpt-runs").mkdir()
    Path("gpt-runs/config.yaml").touch()
    found = complete_config_name("gpt-")
    assert found == [
        *(name for name in shipped_names() if name.startswith("gpt-")),
        "gpt-mine.yaml",
        "gpt-runs/",
    ]
    assert complete_config_name("gpt-runs/") == ["gpt-runs/config.yaml"]
    assert complete_config_name("gpt-runs/con") == ["gpt-runs/config.yaml"]
    assert complete_config_name("missing/x") == []


def test_choices_are_written_as_the_parser_reads_them():
    for path, key in leaf_keys().items():
        for choice in key.choices:
            text = format_value(choice)
            assert parse_scalar(text) == choice, path
