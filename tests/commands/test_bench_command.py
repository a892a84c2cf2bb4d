"""`fastffn bench`: interleaved, in ratios, with the FLOPs ceiling of the shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from fastffn_cli.config.load import load_config, parse_config_file
from fastffn_cli.config.schema import Config
from fastffn_cli.engine import bench
from fastffn_cli.engine.device import use_device
from fastffn_cli.errors import EXIT_OUT_OF_MEMORY, OutOfMemory
from tests.conftest import Workplace

pytestmark = pytest.mark.slow
MIB = 2**20


@pytest.fixture
def config(workplace: Workplace) -> Config:
    parsed = parse_config_file(workplace.config_file)
    sized = parsed.Model.model_copy(update={"vocab_size": 257})
    return parsed.model_copy(update={"Model": sized})


def test_reports_the_contract(workplace: Workplace) -> None:
    done = workplace.run_fastffn(
        "bench", "-c", workplace.config_file, "--steps", "1", "--rounds", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for arm in ("stage1", "dense"):
        assert set(report[arm]) == {"tokens_per_s", "step_s", "peak_memory_bytes"}
        # 8 sequences of 32 tokens a step, as the configuration has it.
        assert report[arm]["tokens_per_s"] * report[arm]["step_s"] == pytest.approx(256)
        assert 64 * MIB < report[arm]["peak_memory_bytes"] < 4096 * MIB
    low, high = report["ratio_spread"]
    assert low <= report["ratio"] <= high
    assert done.stderr.count("ratio") == 3


def test_ceiling_is_the_closed_form(config: Config) -> None:
    width, ffn, layers, vocabulary, length, rank = 32, 128, 2, 257, 32, 4
    shared = layers * (8 * width**2 + 4 * length * width) + 2 * width * vocabulary
    dense = shared + layers * 4 * width * ffn
    stage1 = shared + layers * 4 * rank * (width + ffn)
    assert bench.flops_ceiling(config) == pytest.approx(dense / stage1)


def test_rounds_are_interleaved_and_reported_as_medians(
    monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    calls: list[str] = []
    script = {"low_rank": [9.0, 1.0, 2.0, 4.0], "dense": [9.0, 1.5, 6.0, 4.0]}

    class ScriptedArm:
        def __init__(self, config: Any, model: Any, device: Any) -> None:
            self.kind = model.ffn["kind"]

        def seconds(self, batches: Sequence[Any]) -> float:
            calls.append(self.kind)
            return script[self.kind].pop(0)

    monkeypatch.setattr(bench, "Arm", ScriptedArm)
    monkeypatch.setattr(bench, "measure_peak_apart", lambda *arguments: 7)
    result = bench.compare(config, use_device("cpu"), steps=2, rounds=3)
    assert calls == ["low_rank", "dense"] * 4
    assert (result.stage1.step_s, result.dense.step_s) == (2.0, 4.0)
    # The median of the ratios 1.5, 3 and 1, which is not the quotient of the medians.
    assert result.ratio == 1.5
    assert result.ratio_spread == (1.0, 3.0)


def test_dense_configuration_is_told_what_to_type(workplace: Workplace) -> None:
    done = workplace.run_fastffn(
        "bench", "-c", workplace.config_file, "-o", "Model.ffn={kind: dense}"
    )
    assert done.returncode == 2
    assert "-o Model.ffn.kind=low_rank" in done.stderr


def test_needs_a_vocabulary_when_there_is_no_data(workplace: Workplace) -> None:
    done = workplace.run_fastffn(
        "bench", "-c", workplace.config_file, "-o", "Data.dataset.input_dir="
    )
    assert done.returncode == 2
    assert "Model.vocab_size" in done.stderr


def test_peak_grows_with_the_batch(workplace: Workplace) -> None:
    device = use_device("cpu")
    peaks = []
    for size in (4, 32):  # sequences of 32 tokens
        sizes = [f"Data.batch_size.{name}_batch_size={size}" for name in ("global", "micro")]
        resolved = load_config(str(workplace.config_file), ["Model.vocab_size=40000", *sizes])
        peaks.append(bench.measure_peak_apart(resolved.config, "stage1", device))
    # The head's loss holds logits of 512 tokens at a time: of 384 more at least, in float32.
    assert peaks[1] - peaks[0] > 384 * 40_000 * 4 * 0.8


def test_peak_process_ignores_and_leaves_alone_what_is_in_the_folder(
    monkeypatch: pytest.MonkeyPatch, workplace: Workplace, config: Config
) -> None:
    package = workplace.dir / "models"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('the wrong models')")
    monkeypatch.chdir(workplace.dir)
    before = sorted(workplace.dir.rglob("*"))
    assert bench.measure_peak_apart(config, "dense", use_device("cpu")) > 64 * MIB
    assert sorted(workplace.dir.rglob("*")) == before


@pytest.mark.parametrize("returncode", [EXIT_OUT_OF_MEMORY, -9])
def test_process_that_runs_out_of_memory_becomes_advice(
    monkeypatch: pytest.MonkeyPatch, config: Config, returncode: int
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        return bench.subprocess.CompletedProcess([], returncode, stdout="", stderr="")

    monkeypatch.setattr(bench.subprocess, "run", fail)
    with pytest.raises(OutOfMemory, match=r"micro_batch_size"):
        bench.measure_peak_apart(config, "dense", use_device("cpu"))


def test_synthetic_batches_repeat_with_the_seed(config: Config) -> None:
    first, second = (bench.synthetic_batches(config, 2) for _ in range(2))
    assert first[0].tokens_BS.shape == (8, 32)
    assert (first[1].tokens_BS == second[1].tokens_BS).all()
    assert (first[0].tokens_BS != first[1].tokens_BS).any()
    assert (first[0].labels_BS[:, :-1] == first[0].tokens_BS[:, 1:]).all()
    assert first[0].tokens_BS.max() < 257
