"""TensorBoard and VisualDL beside metrics.jsonl."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastffn_cli.engine.run import read_metrics, series
from fastffn_cli.engine.sinks import check_sinks, open_sinks
from fastffn_cli.errors import UserError
from tests.conftest import Outcome, Workplace


@pytest.mark.parametrize(
    ("sink", "package"), [("tensorboard", "tensorboardX"), ("visualdl", "visualdl")]
)
def test_a_missing_package_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own sign for "cannot be imported"
    for open_or_check in (lambda: open_sinks([sink], tmp_path), lambda: check_sinks([sink])):
        with pytest.raises(UserError, match=f"{sink} needs the package {package}") as caught:
            open_or_check()
        assert f'pip install "fastffn[{sink}]"' in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_missing_package_is_refused_before_it_begins(
    fastffn: Callable[..., Outcome], workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "visualdl", None)
    for more in ([], ["--dry-run"]):
        refused = fastffn("pretrain", "-c", "tiny.yaml", "-o", "Engine.log_sinks=[visualdl]", *more)
        assert refused.code == 2
        assert 'pip install "fastffn[visualdl]"' in refused.err
    assert not workplace.run_dir.exists()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed"
)
def test_tensorboard_gets_the_numbers_of_metrics_jsonl(
    fastffn: Callable[..., Outcome], workplace: Workplace
) -> None:
    from tensorboardX.proto.event_pb2 import Event

    done = fastffn(
        *("pretrain", "-c", "tiny.yaml", "-o", "Engine.log_sinks=[tensorboard]"),
        *("-o", "Engine.max_steps=4"),
    )
    assert done.code == 0, done.err

    (file,) = (workplace.run_dir / "tensorboard").iterdir()
    content, found = file.read_bytes(), {}
    while content:  # TFRecord: length, its checksum, the record, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    records = read_metrics(workplace.run_dir)
    for tag, kind, key in (
        ("train/loss", "train", "loss"),
        ("train/learning_rate", "train", "learning_rate"),
        ("train/grad_norm", "train", "grad_norm"),
        ("eval/loss", "eval", "loss"),
        ("eval/ppl", "eval", "ppl"),
    ):
        points = series(records, kind, key)
        assert points
        for step, number in points:
            assert found[tag, step] == pytest.approx(number, rel=1e-6), (tag, step)
