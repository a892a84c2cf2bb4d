"""Plain scalars follow YAML 1.2, in files and in overrides alike."""

import math

import pytest

from fastffn_cli.config.load import default_config, load_config
from fastffn_cli.config.scalars import parse_scalar

SCALARS = [
    ("1e-5", 1e-5),
    ("1E5", 1e5),
    ("1.", 1.0),
    (".5", 0.5),
    ("-1.5e+3", -1500.0),
    ("+7", 7),
    ("010", 10),
    ("-0", 0),
    ("0o17", 15),
    ("0x1F", 31),
    ("12:30", "12:30"),
    ("1_000", "1_000"),
    ("2026-11-21", "2026-11-21"),
    ("yes", "yes"),
    ("no", "no"),
    ("on", "on"),
    ("off", "off"),
    ("true", True),
    ("False", False),
    ("TRUE", True),
    ("tRUE", "tRUE"),
    ("~", None),
    ("null", None),
    ("", None),
    ("None", "None"),
    (".inf", math.inf),
    ("-.Inf", -math.inf),
    ("inf", "inf"),
    ("nan", "nan"),
    ("1e", "1e"),
    (".", "."),
    ("0o8", "0o8"),
    ("949,50,1", "949,50,1"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_a_plain_scalar_has_its_yaml_1_2_value(text, value):
    parsed = parse_scalar(text)
    assert type(parsed) is type(value)
    assert parsed == value


def test_nan_is_a_number():
    assert math.isnan(parse_scalar(".nan"))


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_files_and_overrides_read_the_same_scalar(tmp_path, text, value):
    file = tmp_path / "a.yaml"
    file.write_text(f"notes:\n  a: {text}\n")
    from_file = load_config(str(file)).config.notes
    from_override = default_config([f"notes.a={text}"]).config.notes
    expected = {} if value is None else {"a": value}
    assert from_file == from_override == expected


def test_quotes_and_the_string_tag_keep_text(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("notes: {a: '10', b: !!str 10, c: \"off\", d: !!float 3}\n")
    assert load_config(str(file)).config.notes == {"a": "10", "b": "10", "c": "off", "d": 3.0}


def test_a_whole_float_is_an_integer_and_an_integer_is_a_number():
    config = default_config(["Engine.max_steps=1e6", "Optimizer.grad_clip=1"]).config
    assert config.Engine.max_steps == 1_000_000
    assert isinstance(config.Engine.max_steps, int)
    assert isinstance(config.Optimizer.grad_clip, float)
