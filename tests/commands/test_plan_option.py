"""`--dry-run` of a layout on several cards, and `--plan`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

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
    assert re.search(r"per card [\d.]+ K parameters, float32, about [\d.]+ KiB: weights", shown)
    assert re.search(r"\(the fullest, stage [12] of 2\)", shown)
    assert "bubble 50.0% of a step" in shown
    assert "256 tokens a step = 4 sequences x 32 x 1 accumulated x 2 data parallel" in shown
    assert "memory " not in shown  # of one card, which would hold all of it

    refused = fastffn("pretrain", "-c", "tiny.yaml", *SEVERAL)

    assert refused.code == 2
    assert (
        "sharding_degree 2 x mp_degree 2 x pp_degree 2 takes 8 processes, and this is one: type "
        "`fastffn launch --nproc 8 -- pretrain ...`, or set the degrees to 1"
    ) in flat(refused.err)
    assert not workplace.run_dir.exists()


SHARDED = "Distributed.sharding={{sharding_degree: 2, sharding_stage: {}}}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((SHARDED.format(3),), "sharding_stage 3 is planned with --dry-run, and not trained with"),
        (
            (SHARDED.format(2), "Model.ffn={kind: moe}"),
            "sharding_stage 2 needs a gradient in every process",
        ),
        (
            (SHARDED.format(2), "Schedule.switch=fraction"),
            "sharding_stage 2 keeps no gradients for the switch",
        ),
        (
            ("Distributed.sharding={sharding_degree: 2, sharding_offload: true}",),
            "sharding_offload is not in this version: set it to False",
        ),
        (
            ("Distributed.dp_degree=2", "Schedule.switch=slope"),
            "switch slope measures in one process, and there are 2: set switch to fraction",
        ),
    ],
)
def test_what_training_refuses_is_a_warning_of_a_plan(
    workplace: Workplace, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(str(workplace.config_file), words, processes=2)
    assert message in caught.value.message

    planned = load_config(str(workplace.config_file), words, processes=None)

    assert planned.planned_only
    told = [line for line in planned.warnings if "planned only: " in line]
    assert len(told) == 1 and f"planned only: {message}" in told[0]
    assert not any("sharding_offload" in line for line in planned.notices)


def test_a_dry_run_does_not_say_that_a_refused_layout_fits(fastffn: Program) -> None:
    planned = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "-o", SHARDED.format(3))
    assert planned.code == 0, planned.err
    assert "planned only: sharding_stage 3" in planned.err
    assert "dry run: planned only, as the warnings say, nothing was written" in planned.err
    assert "everything fits together" not in planned.err


def test_offloading_alone_has_no_effect(workplace: Workplace) -> None:
    words = ["Distributed.sharding.sharding_offload=true"]
    notices = load_config(str(workplace.config_file), words).notices
    (notice,) = [line for line in notices if "sharding_offload" in line]
    assert notice.endswith("is accepted and has no effect: it is not in this version")


@pytest.mark.parametrize(
    ("cores", "free", "row"),
    [
        (
            2,
            2**50,
            r"this machine about [\d.]+ [KM]iB for 2 processes, 1048576.00 GiB free \(cpu\) ",
        ),
        (2, 2**10, r"for 2 processes, 1.0 KiB free \(cpu\): MORE THAN THERE IS"),
        (1, 2**10, None),
    ],
)
def test_a_layout_is_compared_with_the_memory_of_a_machine_that_has_its_cards(
    fastffn: Program, monkeypatch: pytest.MonkeyPatch, cores: int, free: int, row: str | None
) -> None:
    monkeypatch.setattr("fastffn_cli.engine.device.usable_cores", lambda: cores)
    monkeypatch.setattr("fastffn_cli.engine.host_memory.free_memory", lambda: free)
    planned = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "-o", "Distributed.dp_degree=2")

    assert planned.code == 0, planned.err
    shown = flat(planned.out)
    assert re.search(row, shown) if row else "this machine" not in shown
    short = bool(row and "MORE" in row)
    assert ("it needs more memory than there is" in planned.err) is short


def test_processes_of_a_cpu_share_its_memory(workplace: Workplace) -> None:
    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.device import Device

    words = ["Distributed.dp_degree=2"]
    resolved = load_config(str(workplace.config_file), words, processes=None)
    drawn = draw_blueprint(resolved, Device("cpu"), stage="pretrain", dry_run=True)
    assert drawn.cards is not None
    assert replace(drawn, processes_here=2).memory_here == 2 * drawn.cards.memory
    assert replace(drawn, processes_here=None).memory_here is None
    cards = replace(drawn, processes_here=2, device=Device("gpu"))
    assert cards.memory_here == drawn.cards.memory


def test_a_planned_layout_has_the_precision_that_is_asked_for(fastffn: Program) -> None:
    half = ("-o", "Engine.mix_precision.use_pure_fp16=true")
    planned = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", *SEVERAL, *half)
    assert planned.code == 0, planned.err
    assert re.search(r"per card [\d.]+ K parameters, float16 O2, about", flat(planned.out))
    assert "float32" not in planned.out + planned.err

    alone = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", *half)
    assert "training in float32" in flat(alone.err)


def test_a_command_without_a_dry_run_refuses_several_processes(fastffn: Program) -> None:
    refused = fastffn("bench", "-c", "tiny.yaml", "-o", "Distributed.dp_degree=2")
    assert refused.code == 2
    assert "dp_degree 2 takes 2 processes, and this is one" in flat(refused.err)


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
    assert "take more cards, or cards with more memory" in done.err


def test_cards_that_nothing_divides_among_are_not_too_few(fastffn: Program) -> None:
    done = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "--plan", "99991x32GB")
    assert done.code == 0
    assert "fits 99991 cards" in done.err
    assert "take a number of cards that divides the batch, the layers or the heads" in done.err
    assert "more cards" not in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "4x32GB"), "Type --dry-run --plan 4x32GB"),
        (("--dry-run", "--plan", "many"), "--plan many: cards x memory of each is expected"),
        (("--dry-run", "--plan", f"{'9' * 30}x1GB"), "a plan has at most 1,000,000 cards"),
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
        resolved = load_config(str(workplace.config_file), overrides, processes=None)
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
    config = load_config(str(workplace.config_file), overrides, processes=None).config
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
        load_config(str(workplace.config_file), overrides, processes=None)
    assert message in caught.value.message
