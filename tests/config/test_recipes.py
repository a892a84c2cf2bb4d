"""`Optimizer.recipe`: a block of defaults, and which layer wins over which."""

import pytest

from fastffn_cli.config.dump import dump_config
from fastffn_cli.config.load import default_config, flatten, load_config, parse_config_file
from fastffn_cli.config.recipes import RECIPES
from fastffn_cli.config.schema import Config
from fastffn_cli.errors import ConfigError

NAME = "mindspore-fastffn"
TYPED = f"Optimizer.recipe={NAME}"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_file(text, name="a.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write_file


def changed(resolved):
    """What differs from an empty file's section."""
    usual = dict(flatten(Config()))
    values = dict(flatten(resolved.config))
    return {
        key.removeprefix("Optimizer."): values[key]
        for key in values
        if key.startswith("Optimizer.") and values[key] != usual[key]
    }


def test_the_recipe_is_the_originals():
    assert changed(default_config([TYPED])) == {
        "recipe": NAME,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "bias_correction": False,
        "grad_clip": 0.0,
        "lr.name": "mindspore_cosine",
        "lr.warmup_rate": 0.1,
        "lr.max_lr": 1e-4,
    }
    config = default_config([TYPED]).config.Optimizer
    assert (config.adam_beta1, config.adam_epsilon, config.lr.min_lr) == (0.9, 1e-8, 1e-5)


def test_a_recipe_is_nothing_but_the_keys_it_stands_for():
    def overrides(values, prefix):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from overrides(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}={value}"

    plain = default_config(list(overrides(RECIPES[NAME], "Optimizer."))).config
    named = default_config([TYPED]).config
    assert plain.Optimizer.model_copy(update={"recipe": NAME}) == named.Optimizer


def test_the_shipped_stages_keep_the_originals_numbers():
    first, second = (load_config(name).config for name in (NAME, f"{NAME}-post"))
    for config, length, kind in ((first, 1024, "low_rank"), (second, 1023, "dense")):
        model, data = config.Model, config.Data
        assert (model.vocab_size, model.hidden_size, model.masked_token_id) == (50257, 768, 50256)
        assert (model.num_layers, model.num_attention_heads) == (12, 12)
        assert (model.max_position_embeddings, data.dataset.max_seq_len) == (length, length)
        assert (model.hidden_dropout_prob, model.attention_probs_dropout_prob) == (0.1, 0.1)
        assert (model.embedding_dropout_prob, model.initializer_range) == (0.0, 0.01)
        assert model.ffn.kind == kind
        assert (data.batch_size.global_batch_size, data.dataset.split) == (8, "1,0,0")
        assert (config.Engine.num_train_epochs, config.Engine.max_steps) == (1, None)
        assert config.Optimizer == default_config([TYPED]).config.Optimizer
    assert (first.Model.ffn.rank, first.Model.ffn.init) == (8, "normal")


def test_every_value_says_where_it_comes_from(write):
    file = write(f"Optimizer:\n  recipe: {NAME}\n  weight_decay: 0.05\n")
    origins = load_config(file, ["Optimizer.lr.max_lr=1e-3"]).origins
    assert str(origins["Optimizer.recipe"]) == "a.yaml:2"
    assert str(origins["Optimizer.weight_decay"]) == "a.yaml:3"
    assert str(origins["Optimizer.lr.max_lr"]) == "-o Optimizer.lr.max_lr=1e-3"
    assert str(origins["Optimizer.lr.name"]) == f"recipe {NAME}"
    assert str(origins["Optimizer.lr.warmup_steps"]) == "default"


def test_keys_beside_and_above_win(write):
    write(f"Optimizer: {{recipe: {NAME}, weight_decay: 0.05}}\n", "base.yaml")
    file = write("_base_: base.yaml\nOptimizer: {lr: {warmup_steps: 2000}}\n")
    resolved = load_config(file, ["Optimizer.grad_clip=1"])
    config = resolved.config.Optimizer
    assert (config.weight_decay, config.grad_clip, config.lr.warmup_steps) == (0.05, 1.0, 2000)
    assert (config.bias_correction, config.lr.name) == (False, "mindspore_cosine")
    assert resolved.notices == []


def test_what_lies_below_is_covered(write):
    write("Optimizer: {weight_decay: 0.05, lr: {decay_steps: 360000, max_lr: 1}}\n", "base.yaml")
    file = write(f"_base_: base.yaml\nOptimizer: {{recipe: {NAME}}}\n")
    assert changed(load_config(file)) == changed(default_config([TYPED]))
    assert changed(load_config("gpt-124m-fastffn", [TYPED])) == changed(default_config([TYPED]))


@pytest.mark.parametrize(
    "overrides",
    [[TYPED, "Optimizer.weight_decay=0.3"], ["Optimizer.weight_decay=0.3", TYPED]],
)
def test_the_order_on_the_command_line_does_not_matter(overrides):
    config = load_config("gpt-124m-fastffn", overrides).config.Optimizer
    assert (config.weight_decay, config.lr.decay_steps) == (0.3, None)


@pytest.mark.parametrize(
    "text",
    [
        f"Optimizer:\n  recipe: {NAME}\n  weight_decay:\n  lr:\n",
        f"Optimizer:\n  _inherited_: False\n  recipe: {NAME}\n",
    ],
)
def test_blanks_and_a_new_start_leave_the_recipe(write, text):
    assert changed(load_config(write(text))) == changed(default_config([TYPED]))


def test_a_blank_recipe_on_the_command_line_is_none(write):
    file = write(f"Optimizer: {{recipe: {NAME}}}\n")
    assert changed(load_config(file, ["Optimizer.recipe="])) == {}


def test_a_dumped_recipe_reads_back_equal(write):
    config = default_config([TYPED, "Optimizer.lr.warmup_steps=5", "Optimizer.grad_clip=2"]).config
    file = write(dump_config(config))
    assert parse_config_file(file) == config
    assert load_config(file).notices == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("mindspore_fastffn", "Did you mean 'mindspore-fastffn'?"),
        ("[a]", "must be 'mindspore-fastffn', not [a] (list)"),
        ("{a: 1}", "must be 'mindspore-fastffn', not a block of keys"),
    ],
)
def test_an_unknown_recipe_is_refused(value, words):
    with pytest.raises(ConfigError) as caught:
        default_config([f"Optimizer.recipe={value}"])
    (problem,) = caught.value.problems
    assert words in problem


def test_other_mistakes_are_still_found_beside_a_recipe(write):
    file = write("Optimizer: {weight_decai: 1, lr: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [TYPED])
    assert [word in str(caught.value.problems) for word in ("weight_decai", "Optimizer.lr")]
    assert len(caught.value.problems) == 2
