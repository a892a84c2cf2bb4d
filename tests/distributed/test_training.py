"""Training in several real processes is the training of one, at the same global batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.engine.session import step_seed
from tests.conftest import Workplace, make_workplace
from tests.distributed.trainings import (
    LOSS_TOLERANCE,
    ONE,
    Trained,
    assert_same_training,
    command,
    degrees,
    run_commands,
)

pytestmark = pytest.mark.slow

OF_TWO = ["dp2", "sharding2", "mp2", "pp2"]
OF_FOUR = [
    "sharding4", "pp4", "dp2 sharding2 stage2", "dp2 mp2", "dp2 pp2", "sharding2 mp2",
    "mp2 pp2 sequence",
]  # fmt: skip
# Layouts of the first and the second half of a run.
CONTINUED = [(ONE, "dp2"), ("sharding2", "mp2"), ("mp2", "sharding2"), ("pp2", ONE)]
HALF = "Engine.max_steps=3"
DROPS = [
    *degrees("dp2"),
    "Model.hidden_dropout_prob=0.2",
    "Model.attention_probs_dropout_prob=0.2",
    "Data.batch_size.micro_batch_size=4",
]
SWITCH = "Schedule={switch: fraction, at: 0.5, handover: lift}"
SWITCHING = ["dp2", "sharding2", "mp2 sequence", "pp2"]
# A run that ends behind the switch at its third step, to be continued as the others.
SHORT_SWITCH = [SWITCH.replace("0.5", "0.75"), "Engine.max_steps=4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """All trainings of this module, in four jobs: what takes long is the start of processes."""
    place = make_workplace(tmp_path_factory.mktemp("layouts"), data_dir)

    def first_half(before: str, after: str) -> list[str]:
        return command(place, f"{before} then {after}", [*degrees(before), HALF])

    def second_half(before: str, after: str) -> list[str]:
        return command(place, f"{before} then {after}", degrees(after), ["--resume"])

    run_commands(
        place,
        1,
        [command(place, "alone", [])]
        + [command(place, "switch", [SWITCH])]
        + [first_half(*pair) for pair in CONTINUED if pair[0] == ONE],
    )
    run_commands(
        place,
        2,
        [command(place, layout, degrees(layout)) for layout in OF_TWO]
        + [first_half(*pair) for pair in CONTINUED if pair[0] != ONE]
        + [second_half(*pair) for pair in CONTINUED if pair[1] != ONE]
        + [command(place, f"dropout {number}", DROPS) for number in (1, 2)]
        + [command(place, "dropout halves", [*DROPS, HALF])]
        + [command(place, "dropout halves", DROPS, ["--resume"])]
        + [command(place, f"switch {name}", [SWITCH, *degrees(name)]) for name in SWITCHING]
        + [command(place, "switch then more", [*SHORT_SWITCH, *degrees("mp2")])]
        + [command(place, "switch then more", [SWITCH, *degrees("mp2")], ["--resume"])],
    )
    run_commands(place, 4, [command(place, layout, degrees(layout)) for layout in OF_FOUR])
    run_commands(place, 1, [second_half(*pair) for pair in CONTINUED if pair[1] == ONE])
    return place.dir


@pytest.mark.parametrize("layout", [*OF_TWO, *OF_FOUR])
def test_losses_norms_and_weights_are_those_of_one_process(runs: Path, layout: str) -> None:
    assert_same_training(Trained(runs / "alone"), Trained(runs / layout))


@pytest.mark.parametrize(("before", "after"), CONTINUED)
def test_a_run_is_continued_in_another_layout(runs: Path, before: str, after: str) -> None:
    assert_same_training(Trained(runs / "alone"), Trained(runs / f"{before} then {after}"))


def test_dropout_is_the_same_again_and_differs_between_processes(runs: Path) -> None:
    first, second, halves = (
        Trained(runs / f"dropout {name}").series("train", "loss") for name in ("1", "2", "halves")
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, halves)
    seeds = {step_seed(7, step, index) for step in (3, 4) for index in (0, 1)}
    assert len(seeds) == 4


@pytest.mark.parametrize("layout", [*SWITCHING, "then more"])
def test_the_switch_to_dense_is_that_of_one_process(runs: Path, layout: str) -> None:
    alone, together = Trained(runs / "switch"), Trained(runs / f"switch {layout}")
    np.testing.assert_allclose(
        together.series("train", "loss"),
        alone.series("train", "loss"),
        rtol=0,
        atol=10 * LOSS_TOLERANCE,  # the lift's probes are gradients, whose signs may differ
    )
    assert together.series("switch", "logit_difference").size == 1


def test_a_checkpoint_of_several_processes_is_used_as_any_other(
    runs: Path, workplace: Workplace, data_dir: Path
) -> None:
    losses: Mapping[str, float] = {}
    for layout in ("alone", "mp2 pp2 sequence"):
        checkpoint = Trained(runs / layout).checkpoint_dir
        done = workplace.run_fastffn("eval", checkpoint, "--data", data_dir, "--json")
        assert done.returncode == 0, done.stderr
        losses = {**losses, layout: json.loads(done.stdout)["loss"]}
    assert losses["mp2 pp2 sequence"] == pytest.approx(losses["alone"], abs=LOSS_TOLERANCE)
    checkpoint = Trained(runs / "mp2 pp2 sequence").checkpoint_dir
    for words in (
        ("generate", "--model", checkpoint, "the river", "--seed", "1"),
        ("convert", checkpoint, "--out", "dense"),
    ):
        done = workplace.run_fastffn(*words)
        assert done.returncode == 0, done.stderr
