"""On an npu, 3 steps + resume + 3 steps end with the bits of 6 steps."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Workplace, make_workplace
from tests.engine.runs import assert_same_state, exact_metrics

pytestmark = pytest.mark.slow

RUN = (
    *("pretrain", "-c", "tiny.yaml", "--device", "npu"),
    *("-o", "Engine.eval_freq=3", "-o", "Engine.save_load.save_steps=3"),
)
LAST = "checkpoints/step-00000006"
# A scale that overflows at first, so that the scaler's state has something to keep.
FLOAT16 = (
    "-o",
    f"Engine.mix_precision={{enable: true, dtype: float16, level: O2, scale_loss: {2.0**22}}}",
)


@pytest.mark.parametrize("options", [(), FLOAT16], ids=["float32", "float16-O2"])
def test_resume_is_exact(
    npu_env: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    data_dir: object,
    options: tuple[str, ...],
) -> None:
    straight, halves = (
        make_workplace(tmp_path_factory.mktemp(name), data_dir) for name in ("straight", "halves")
    )
    run(straight, *options, "-o", "Engine.max_steps=6", env=npu_env)
    run(halves, *options, "-o", "Engine.max_steps=3", env=npu_env)
    said = run(halves, *options, "-o", "Engine.max_steps=6", "--resume", env=npu_env)

    assert "global step 4," in said
    assert "global step 3," not in said
    assert_same_state(straight.run_dir / LAST, halves.run_dir / LAST)
    assert exact_metrics(straight.run_dir) == exact_metrics(halves.run_dir)
    scalers = [scaler_of(place) for place in (straight, halves)]
    assert scalers[0] == scalers[1]
    if options:
        assert scalers[0]["scale"] < 2.0**22


def run(place: Workplace, *options: str, env: dict[str, str]) -> str:
    done = place.run_fastffn(*RUN, *options, env=env)
    assert done.returncode == 0, done.stderr
    return done.stderr


def scaler_of(place: Workplace) -> dict[str, float]:
    return json.loads((place.run_dir / LAST / "trainer.json").read_text())["scaler"] or {}
