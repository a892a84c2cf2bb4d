"""Runs on an npu whose plugin has fused attention (operators/flash_attention.cc), or a broken one.

The operator writes down its calls, so that a run cannot pass with the plain core.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import PROCESS_TIMEOUT_S, ROOT_DIR, Workplace, make_workplace, program_env
from tests.distributed.trainings import Trained, command, degrees, run_commands
from tests.npu.test_amp import TOLERANCES, mixed
from tests.npu.test_several import CARDS, LAUNCHED

pytestmark = pytest.mark.slow

STEPS, LAYERS, MICRO_BATCHES = 6, 2, 2
SIX = (
    *("--device", "npu", "-o", f"Engine.max_steps={STEPS}", "-o", "Engine.eval_freq=0"),
    *("-o", "Engine.save_load.save_steps=0"),
)
CERTAIN = ("-o", "Model.attention_probs_dropout_prob=0")
FUSED = ("-o", "Model.use_flash_attn=True")
NOTICE = "note Model.use_flash_attn: attention is the plain one: "


@dataclass(frozen=True)
class Trial:
    """What a run on the npu said and trained, and which passes of the operator it called."""

    stderr: str
    losses: np.ndarray
    calls: Counter[str]


def train(place: Workplace, env: dict[str, str], *options: str, **more: str) -> Trial:
    calls_file = place.dir / "calls.txt"
    env = {**env, "FLASH_ATTENTION_CALLS": str(calls_file), **more}
    done = place.run_fastffn("pretrain", "-c", "tiny.yaml", *SIX, *options, env=env)
    assert done.returncode == 0, done.stderr
    calls = calls_file.read_text().split() if calls_file.exists() else []
    return Trial(done.stderr, Trained(place.run_dir).series("train", "loss"), Counter(calls))


@pytest.fixture(scope="module")
def plain(
    npu_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> dict[str, np.ndarray]:
    """Losses without the key, by the kind of half precision."""

    def losses(dtype: str, level: str) -> np.ndarray:
        place = make_workplace(tmp_path_factory.mktemp("plain"), data_dir)
        return train(place, npu_env, *CERTAIN, *mixed(dtype, level)).losses

    return {f"{dtype} {level}": losses(dtype, level) for dtype, level in KINDS}


KINDS = [("float16", "O1"), ("float16", "O2"), ("bfloat16", "O2")]


@pytest.mark.parametrize(("dtype", "level"), KINDS)
def test_a_run_with_the_operator_trains_as_without_it(
    fused_npu_env: dict[str, str],
    workplace: Workplace,
    plain: dict[str, np.ndarray],
    dtype: str,
    level: str,
) -> None:
    fused = train(workplace, fused_npu_env, *CERTAIN, *mixed(dtype, level), *FUSED)
    assert ", fused attention" in fused.stderr
    assert NOTICE not in fused.stderr
    expected = plain[f"{dtype} {level}"]
    np.testing.assert_allclose(fused.losses, expected, rtol=0, atol=TOLERANCES[dtype])
    assert (fused.losses != expected).any()
    # The trial before the run is one call more.
    passes = STEPS * LAYERS * MICRO_BATCHES + 1
    assert fused.calls == {"forward": passes, "backward": passes}


def test_recomputation_of_the_core_repeats_the_dropout_of_the_operator(
    fused_npu_env: dict[str, str], tmp_path: Path, data_dir: Path
) -> None:
    recompute = ("-o", "Model.use_recompute=True", "-o", "Model.recompute_granularity=core_attn")
    trials = []
    for name, options in (("kept", ()), ("recomputed", recompute)):
        (tmp_path / name).mkdir()
        place = make_workplace(tmp_path / name, data_dir)
        trials.append(train(place, fused_npu_env, *mixed("float16", "O2"), *FUSED, *options))
    kept, recomputed = trials
    assert NOTICE not in kept.stderr
    np.testing.assert_array_equal(recomputed.losses, kept.losses)
    passes = STEPS * LAYERS * MICRO_BATCHES
    assert recomputed.calls["forward"] - kept.calls["forward"] == passes
    assert recomputed.calls["backward"] == kept.calls["backward"]


def test_both_stages_and_their_evaluations_use_the_operator(
    fused_npu_env: dict[str, str], workplace: Workplace
) -> None:
    stages = ("-o", "Schedule={switch: fraction, at: 0.6, dense_start: 0.3, handover: reset}")
    evaluations = ("-o", "Engine.eval_freq=6", "-o", "Engine.eval_iters=1")
    half = mixed("float16", "O2")
    run = train(workplace, fused_npu_env, *CERTAIN, *half, *FUSED, *stages, *evaluations)
    assert run.calls["backward"] == STEPS * LAYERS * MICRO_BATCHES + 1
    # Beside the training: one evaluation, and at each change logits and losses of two models.
    changes, models, evaluated = 2, 2, 1
    others = run.calls["forward"] - run.calls["backward"]
    assert others == LAYERS * (2 * models * changes + evaluated)
    done = workplace.run_fastffn("eval", "--device", "npu", env=fused_npu_env)
    assert done.returncode == 0, done.stderr
    done = workplace.run_fastffn("eval", "--device", "cpu")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def tried(
    fused_npu_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> dict[str, dict[str, str | None]]:
    place = make_workplace(tmp_path_factory.mktemp("tried"), data_dir)
    done = subprocess.run(
        [sys.executable, "-m", "tests.npu.try_operators", place.config_file],
        env=program_env(fused_npu_env),
        cwd=ROOT_DIR,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "the operator fails: no kernel for this card"),
        ("wrong", "the operator's output is off by"),
        ("wrong gradient", "the operator's gradient of q is off by"),
        ("own random numbers", "the operator's dropout does not follow the seed"),
        ("whole output", "the operator's dropout drops nothing new"),
        ("whole gradient", "the operator's gradient does not drop what its output does"),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_broken_operator_is_refused(
    tried: dict[str, dict[str, str | None]], fault: str, reason: str, dtype: str
) -> None:
    assert tried[dtype][""] is None
    assert reason in (tried[dtype][fault] or "")


def test_a_run_goes_on_with_the_plain_core_where_the_operator_raises(
    fused_npu_env: dict[str, str], workplace: Workplace, plain: dict[str, np.ndarray]
) -> None:
    half = mixed("float16", "O2")
    run = train(workplace, fused_npu_env, *CERTAIN, *half, *FUSED, FLASH_ATTENTION_FAULT="raises")
    assert run.stderr.count(NOTICE + "the operator fails: no kernel for this card") == 1
    np.testing.assert_array_equal(run.losses, plain["float16 O2"])
    assert run.calls == {"forward": 1}


def test_a_run_goes_on_with_the_plain_core_where_the_plugin_has_no_operator(
    npu_env: dict[str, str], workplace: Workplace, plain: dict[str, np.ndarray]
) -> None:
    run = train(workplace, npu_env, *CERTAIN, *mixed("float16", "O2"), *FUSED)
    absent = "the plugin of npu:0 has no operator flash_attention_npu"
    assert run.stderr.count(NOTICE + absent) == 1
    np.testing.assert_array_equal(run.losses, plain["float16 O2"])


def test_float32_is_trained_plainly_with_a_notice(
    fused_npu_env: dict[str, str], workplace: Workplace
) -> None:
    run = train(workplace, fused_npu_env, *FUSED)
    assert NOTICE + "the fused one is for float16 and bfloat16" in run.stderr
    assert not run.calls


@pytest.mark.parametrize("layout", ["mp2 sequence", "pp2"])
def test_two_cards_use_the_operator_on_their_parts(
    fused_npu_env: dict[str, str], workplace: Workplace, layout: str
) -> None:
    half = "Engine.mix_precision={enable: True, dtype: float16, level: O2}"
    on_cards = ["Global.device=npu", half, "Data.batch_size.micro_batch_size=2"]
    short = ["Model.num_layers=2", "Engine.max_steps=3", "Engine.eval_freq=0"]
    calls_file = workplace.dir / "calls.txt"
    lines = [
        command(workplace, "plain", [*degrees(layout), *on_cards, *short]),
        command(
            workplace, "fused", [*degrees(layout), *on_cards, *short, "Model.use_flash_attn=True"]
        ),
    ]
    env = {**fused_npu_env, **LAUNCHED, "FLASH_ATTENTION_CALLS": str(calls_file)}
    run_commands(workplace, CARDS, lines, env)
    found, expected = (
        Trained(workplace.dir / name).series("train", "loss") for name in ("fused", "plain")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES["float16"])
    assert (found != expected).any()
    calls = Counter(calls_file.read_text().split())
    # 3 steps of 4 micro batches through 2 layers: by mp each card has some heads of all of it, by
    # pp one of the layers, by dp half of the micro batches. Each tries the operator first.
    passes = 3 * 4 * 2 * (CARDS if layout.startswith("mp") else 1) + CARDS
    assert calls == {"forward": passes, "backward": passes}
