"""`--dry-run` of a layout on several cards, and `--plan`."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from fastffn_cli.config.load import load_config
from fastffn_cli.engine.blueprint import Blueprint
from fastffn_cli.errors import ConfigError
from tests.conftest import Outcome, Workplace

Program = Callable[..., Outcome]
SEVERAL = (
    *("-o", "Distributed.mp_degree=2", "-o", "Distributed.pp_degree=2"),
    *("-o", "Distributed.sharding.sharding_degree=2"),
)


def flat(text: str) -> str:
    return re.sub(r"[\s│]+", " ", text)


def test_a_dry_run_plans_a_layout_that_training_refuses(
    fastffn: Program, workplace: Workplace
) -> None:
    planned = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", *SEVERAL)

    assert planned.code == 0, planned.err
    shown = flat(planned.out)
    assert "layout 8 cards: sharding 2 x mp 2 x pp 2 (stage 1), 1 x 4 sequences" in shown
    assert re.search(r"per card [\d.]+ K parameters, about [\d.]+ KiB: weights", shown)
    assert re.search(r"\(the fullest, stage [12] of 2\)", shown)
    assert "bubble 50.0% of a step" in shown
    assert "256 tokens a step = 4 sequences x 32 x 1 accumulated x 2 data parallel" in shown
    assert "memory " not in shown  # of one card, which would hold all of it

    refused = fastffn("pretrain", "-c", "tiny.yaml", *SEVERAL)

    assert refused.code == 2
    assert refused.err.count("needs `fastffn launch`, which is not in this version") == 3
    assert not workplace.run_dir.exists()


def test_a_command_without_a_dry_run_refuses_several_processes(fastffn: Program) -> None:
    refused = fastffn("bench", "-c", "tiny.yaml", "-o", "Distributed.dp_degree=2")
    assert refused.code == 2
    assert "dp_degree 2 needs `fastffn launch`" in refused.err


def test_a_layout_that_the_model_does_not_allow_is_refused(fastffn: Program) -> None:
    refused = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "-o", "Distributed.pp_degree=3")

    assert refused.code == 2
    assert "pp_degree 3 does not divide num_layers 2: set pp_degree to 2" in refused.err


def test_plan_proposes_layouts_whose_words_give_the_same_layout(fastffn: Program) -> None:
    proposed = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "--plan", "4x32GB")

    assert proposed.code == 0, proposed.err
    assert "layouts for 4 cards of 32.00 GiB, V100" in proposed.out
    assert "estimated, not measured: V100" in proposed.err
    (line,) = [row for row in proposed.err.splitlines() if row.startswith("the first of them: ")]
    cell = proposed.out.split("tokens/s")[1].splitlines()[2].split("│")[1]
    first = cell.partition("(")[0].strip()  # a narrow terminal breaks the cell behind it

    typed = line.removeprefix("the first of them: ").split()
    planned = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", *typed)

    assert planned.code == 0, planned.err
    assert f"layout 4 cards: {first}" in flat(planned.out)


def test_nothing_fits(fastffn: Program) -> None:
    done = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "--plan", "1x0.00001GB")
    assert done.code == 0
    assert "no layout of this model and its global_batch_size 8 fits 1 cards" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "4x32GB"), "Type --dry-run --plan 4x32GB"),
        (("--dry-run", "--plan", "many"), "--plan many: cards x memory of each is expected"),
    ],
)
def test_plan_of_the_wrong_form_is_refused(
    fastffn: Program, words: tuple[str, ...], message: str
) -> None:
    refused = fastffn("pretrain", "-c", "tiny.yaml", *words)
    assert refused.code == 2
    assert message in refused.err


def test_the_stage_of_the_run_that_needs_most_is_planned(workplace: Workplace) -> None:
    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.device import use_device
    from models.gpt import count_parameters

    def draw(*words: str) -> Blueprint:
        overrides = [*words, "Distributed.dp_degree=2"]
        resolved = load_config(str(workplace.config_file), overrides, plan_only=True)
        return draw_blueprint(resolved, use_device("cpu"), stage="pretrain", dry_run=True)

    dense = draw("Model.ffn={kind: dense}")
    switched = draw("Schedule.switch=fraction")
    assert switched.cards is not None
    assert switched.cards.parameters == count_parameters(dense.model)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ((), (8, 4, 4, 1)),
        (("Data.batch_size.micro_batch_size=1",), (8, 4, 1, 4)),
        (("Data.batch_size.local_batch_size=12",), (24, 12, 4, 3)),
        (("Data.batch_size={global_batch_size: 6, micro_batch_size: 3}",), (6, 3, 3, 1)),
        (("Engine.accumulate_steps=2",), (8, 4, 2, 2)),
    ],
)
def test_batch_sizes_follow_from_each_other(
    workplace: Workplace, words: tuple[str, ...], sizes: tuple[int, ...]
) -> None:
    overrides = [*words, "Distributed.dp_degree=2"]
    config = load_config(str(workplace.config_file), overrides, plan_only=True).config
    batch = config.Data.batch_size
    assert sizes == (
        *(batch.global_batch_size, batch.local_batch_size, batch.micro_batch_size),
        config.Engine.accumulate_steps,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("Data.batch_size.global_batch_size=7",),
            "global_batch_size 7 is not a multiple of the 2 cards of dp_degree x sharding_degree: "
            "set global_batch_size to 8",
        ),
        (
            ("Data.batch_size={global_batch_size: 8, local_batch_size: 8, micro_batch_size: 4}",),
            "global_batch_size 8 is not local_batch_size 8 x the 2 cards of dp_degree x "
            "sharding_degree: set global_batch_size to 16, or leave one blank",
        ),
        (
            ("Data.batch_size={global_batch_size: 12, micro_batch_size: 4}",),
            "global_batch_size 12 is not a multiple of micro_batch_size 4 x 2 cards: set "
            "micro_batch_size to 3, or global_batch_size to 16",
        ),
    ],
)
def test_batch_sizes_that_do_not_agree(
    workplace: Workplace, words: tuple[str, ...], message: str
) -> None:
    overrides = [*words, "Distributed.dp_degree=2"]
    with pytest.raises(ConfigError) as caught:
        load_config(str(workplace.config_file), overrides, plan_only=True)
    assert message in caught.value.message
