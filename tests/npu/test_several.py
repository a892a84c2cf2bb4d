"""Training on several imitated cards is training in one process on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_workplace
from tests.distributed.trainings import (
    Trained,
    assert_same_training,
    command,
    degrees,
    run_commands,
)

pytestmark = pytest.mark.slow

CARDS = 2
# What `fastffn launch --devices 0,1` gives to a process.
LAUNCHED = {
    "PADDLE_DISTRI_BACKEND": "xccl",
    "PADDLE_XCCL_BACKEND": "npu",
    "FLAGS_selected_npus": "{rank}",
    "HOST_NPU_DEVICES": str(CARDS),
}
SHORT = ["Model.num_layers=2", "Engine.max_steps=3", "Data.batch_size.micro_batch_size=2"]
LAYOUTS = ["dp2", "sharding2 stage2", "mp2", "mp2 sequence", "pp2"]
HALF = [
    "Engine.mix_precision={enable: True, dtype: float16, level: O2, scale_loss: 65536}",
    *degrees("sharding2"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, npu_env: dict[str, str]) -> Path:
    """One run on the CPU, the others on two cards."""
    place = make_workplace(tmp_path_factory.mktemp("cards"), data_dir)
    run_commands(place, 1, [command(place, "cpu", SHORT)])
    on_cards = [*SHORT, "Global.device=npu"]
    lines = [command(place, layout, [*degrees(layout), *on_cards]) for layout in LAYOUTS]
    lines.append(command(place, "half", [*HALF, *on_cards]))
    run_commands(place, CARDS, lines, {**npu_env, **LAUNCHED})
    return place.dir


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_cards_train_what_one_cpu_trains(runs: Path, layout: str) -> None:
    assert_same_training(Trained(runs / "cpu"), Trained(runs / layout))


def test_half_precision_with_sharded_masters_stays_close(runs: Path) -> None:
    expected = Trained(runs / "cpu").series("train", "loss")
    found = Trained(runs / "half").series("train", "loss")
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    assert (found != expected).any()
