"""A MindFormers YAML and the presets made of such, as a user types them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable

import pytest

from fastffn_cli.config.load import load_config
from fastffn_cli.distributed.layout import read_layout
from fastffn_cli.engine.model import gpt_config
from models.gpt import count_parameters
from tests.conftest import FIXTURES_DIR, Outcome, Workplace

Program = Callable[..., Outcome]
FILES = FIXTURES_DIR / "mindformers_yaml"


def flat(text: str) -> str:
    return re.sub(r"[\s│]+", " ", text)


@pytest.mark.parametrize(
    ("name", "parameters", "layout"),
    [
        ("gpt2", 124_439_808, None),
        (
            "gpt2-13b",
            12_848_143_360,
            "layout 32 cards: sharding 4 x mp 2 x pp 4 (stage 1), 24 x 2 sequences, sequence "
            "parallel, recompute",
        ),
        (
            "gpt2-52b",
            64 * (12 * 8192**2 + 13 * 8192) + (50257 + 1024) * 8192 + 2 * 8192,
            "layout 128 cards: sharding 8 x pp 16 (stage 1), 64 x 2 sequences, recompute",
        ),
    ],
)
def test_a_preset_is_planned_without_its_cards(
    fastffn: Program, workplace: Workplace, name: str, parameters: int, layout: str | None
) -> None:
    data = load_config(str(workplace.config_file)).config.Data.dataset.input_dir
    done = fastffn("pretrain", "-c", name, "--dry-run", "-o", f"Data.dataset.input_dir={data}")
    assert done.code == 0, done.err
    assert layout is None or layout in flat(done.out)
    config = load_config(name, processes=None).config
    assert count_parameters(gpt_config(config)) == parameters


def test_slices_are_planned_as_the_key_says() -> None:
    config = load_config("gpt2-13b", processes=None).config
    assert read_layout(config).sequence_parallel is True
    key = "Distributed.sequence_parallel"
    config = load_config("gpt2-13b", [f"{key}=false"], processes=None).config
    assert read_layout(config).sequence_parallel is False
    alone = load_config("gpt2-13b", ["Distributed.mp_degree=1"], processes=None)
    assert read_layout(alone.config).sequence_parallel is False
    assert any("sequence_parallel has no effect while mp_degree is 1" in n for n in alone.notices)


def test_every_key_is_printed_with_its_place_and_what_became_of_it(
    fastffn: Program, workplace: Workplace
) -> None:
    shutil.copytree(FILES, workplace.dir / "configs")
    done = fastffn("config", "-c", "configs/gpt2/run_gpt2_13b_32_cards.yaml")
    assert done.code == 0, done.err
    place = "configs/gpt2/run_gpt2_13b_32_cards.yaml"
    said = re.sub(" +", " ", done.err)
    assert (
        f"{place}:20 parallel_config.data_parallel -> Distributed.sharding.sharding_degree" in said
    )
    assert f"{place}:3 context.mode: accepted, no effect: it belongs to MindSpore's" in said
    assert "is read as MindFormers YAML: " in said and "0 as they are" in said
    assert "sharding_degree: 4" in done.out
    as_json = fastffn("config", "-c", place, "--json")
    content = json.loads(as_json.out)
    assert content["dialect"]["name"] == "mindformers"
    assert content["config"]["Distributed"]["pp_degree"] == 4


def test_a_file_of_theirs_trains(fastffn: Program, workplace: Workplace) -> None:
    """The 13B file with its numbers made small: every part of it is used."""
    shutil.copytree(FILES, workplace.dir / "configs")
    tiny = load_config(str(workplace.config_file)).config
    small = [
        "parallel_config.data_parallel=1", "parallel_config.model_parallel=1",
        "model.model_config.vocab_size=512", "model.model_config.eos_token=0",
        "model.model_config.embedding_size=16", "model.model_config.num_layers=2",
        "model.model_config.num_heads=2", "model.model_config.seq_length=16",
        f"train_dataset.data_loader.dataset_dir={tiny.Data.dataset.input_dir}",
        "lr_schedule.warmup_steps=2", "Engine.max_steps=4",
        "runner_config.per_epoch_size=1", "output_dir=runs/theirs",
    ]  # fmt: skip
    words = [word for override in small for word in ("-o", override)]
    path = "configs/gpt2/run_gpt2_13b.yaml"
    done = fastffn("pretrain", "-c", path, "--device", "cpu", *words)
    assert done.code == 0, done.err
    records = (workplace.dir / "runs" / "theirs" / "metrics.jsonl").read_text().splitlines()
    rates = [
        record["learning_rate"] for record in map(json.loads, records) if record["event"] == "train"
    ]
    assert rates == pytest.approx([0.0, 2.5e-5, 5e-5, 2.55e-5])
