"""Half precision on an npu: the one place of these tests where Paddle's AMP really executes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastffn_cli.engine.run import read_metrics
from tests.conftest import Workplace, make_workplace

pytestmark = pytest.mark.slow

SIX = (
    *("--device", "npu", "-o", "Engine.max_steps=6", "-o", "Engine.eval_freq=0"),
    *("-o", "Engine.save_load.save_steps=0"),
)
# Of a loss of about 5.5. The imitation rounds once an operator, a card may round more often.
TOLERANCES = {"float16": 5e-4, "bfloat16": 5e-3}


def mixed(dtype: str, level: str) -> tuple[str, ...]:
    return ("-o", f"Engine.mix_precision={{enable: true, dtype: {dtype}, level: {level}}}")


def train_records(place: Workplace) -> list[dict[str, Any]]:
    return [record for record in read_metrics(place.run_dir) if record["event"] == "train"]


@pytest.fixture(scope="module")
def float32_losses(
    npu_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory, data_dir: Any
) -> list[float]:
    place = make_workplace(tmp_path_factory.mktemp("float32"), data_dir)
    done = place.run_fastffn("pretrain", "-c", "tiny.yaml", *SIX, env=npu_env)
    assert done.returncode == 0, done.stderr
    return [record["loss"] for record in train_records(place)]


@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_follows_float32(
    npu_env: dict[str, str],
    workplace: Workplace,
    float32_losses: list[float],
    dtype: str,
    level: str,
) -> None:
    done = workplace.run_fastffn(
        "pretrain", "-c", "tiny.yaml", *SIX, *mixed(dtype, level), env=npu_env
    )
    assert done.returncode == 0, done.stderr
    assert f"npu:0 · {dtype} {level}" in done.stderr
    records = train_records(workplace)
    assert not any(record.get("skipped") for record in records)
    losses = [record["loss"] for record in records]
    assert losses == pytest.approx(float32_losses, abs=TOLERANCES[dtype], rel=0)
    assert losses != float32_losses  # it was not ignored
    scaler = checkpoint_scaler(workplace)
    assert (scaler is not None) == (dtype == "float16")


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_an_overflow_skips_updates_halves_the_scale_and_training_goes_on(
    npu_env: dict[str, str], workplace: Workplace, level: str
) -> None:
    first_scale = 2.0**24
    done = workplace.run_fastffn(
        *("pretrain", "-c", "tiny.yaml", *SIX, *mixed("float16", level)),
        *("-o", f"Engine.mix_precision.scale_loss={first_scale}", "-o", "Engine.max_steps=14"),
        env=npu_env,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # Paddle's scaler would speak on it
    records = train_records(workplace)
    skips = [bool(record.get("skipped")) for record in records]
    assert skips[0]
    assert not skips[-1]
    assert records[-1]["loss"] < records[0]["loss"] - 0.05
    scaler = checkpoint_scaler(workplace)
    assert scaler is not None
    assert scaler["scale"] == first_scale / 2 ** sum(skips)
    assert scaler["incr_count"] == skips[::-1].index(True)


def test_a_device_without_bfloat16_trains_in_float32_and_says_so(
    npu_env: dict[str, str], workplace: Workplace
) -> None:
    done = workplace.run_fastffn(
        *("pretrain", "-c", "tiny.yaml", *SIX, *mixed("bfloat16", "O1"), "--dry-run"),
        env={**npu_env, "HOST_NPU_TYPES": "float16"},
    )
    assert done.returncode == 0, done.stderr
    assert "bfloat16 O1, which Paddle silently ignores on npu:0: training in float32" in done.stderr


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_plugin_that_does_not_tell_its_types_gets_what_is_asked_for(
    npu_env: dict[str, str], workplace: Workplace, dtype: str
) -> None:
    done = workplace.run_fastffn(
        *("pretrain", "-c", "tiny.yaml", *SIX, *mixed(dtype, "O2"), "--dry-run"),
        env={**npu_env, "HOST_NPU_TYPES": "untold"},
    )
    assert done.returncode == 0, done.stderr
    assert f"npu:0 · {dtype} O2" in done.stdout


def checkpoint_scaler(place: Workplace) -> dict[str, float] | None:
    newest = max((place.run_dir / "checkpoints").glob("step-*"))
    return json.loads((newest / "trainer.json").read_text())["scaler"]
