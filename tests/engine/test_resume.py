"""20 steps = 10 + resume + 10, bit for bit, by the real program: dropout on, accumulation on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from fastffn_cli.engine import storage
from tests.conftest import Workplace, make_workplace
from tests.engine.runs import (
    assert_same_state,
    exact_metrics,
    flip_byte,
    interrupt_at,
    printed_command,
    started,
)

pytestmark = pytest.mark.slow

LAST = "checkpoints/step-00000020"
TWENTY = (
    *("-o", "Engine.max_steps=20", "-o", "Engine.eval_freq=5"),
    *("-o", "Engine.save_load.save_steps=10"),
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Workplace:
    """20 steps without a break."""
    place = make_workplace(tmp_path_factory.mktemp("straight"), data_dir)
    done = place.run_fastffn("pretrain", "-c", "tiny.yaml", *TWENTY)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Workplace:
    """10 steps, then 10 more by --resume in another process."""
    place = make_workplace(tmp_path_factory.mktemp("halves"), data_dir)
    first = place.run_fastffn("pretrain", "-c", "tiny.yaml", *TWENTY, "-o", "Engine.max_steps=10")
    assert first.returncode == 0, first.stderr
    second = place.run_fastffn("pretrain", "-c", "tiny.yaml", *TWENTY, "--resume")
    assert second.returncode == 0, second.stderr
    assert "Engine.max_steps changed since the checkpoint: 10 -> 20" in second.stderr
    return place


def test_halves_end_with_the_bits_of_the_straight_run(
    straight: Workplace, halves: Workplace
) -> None:
    assert_same_state(straight.run_dir / LAST, halves.run_dir / LAST)


def test_halves_report_the_metrics_of_the_straight_run(
    straight: Workplace, halves: Workplace
) -> None:
    expected = exact_metrics(straight.run_dir)

    assert exact_metrics(halves.run_dir) == expected
    assert [step for event, step in expected if event == "train"] == list(range(1, 21))
    assert [step for event, step in expected if event == "eval"] == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_signal_saves_and_prints_the_command_that_continues_exactly(
    straight: Workplace, workplace: Workplace, number: signal.Signals, exit_code: int
) -> None:
    arguments = ("pretrain", "-c", "tiny.yaml", *TWENTY, "-o", "Engine.save_load.keep_last=0")
    with started(*arguments, cwd=workplace.dir) as process:
        code, talk = interrupt_at(process, "global step 3,", number)
    assert code == exit_code, talk
    assert "finishing this step, then saving" in talk
    folders = sorted((workplace.run_dir / "checkpoints").glob("step-*"))
    assert storage.damage(folders[-1], checksums=True) is None
    assert 3 <= int(folders[-1].name.removeprefix("step-")) < 20

    done = workplace.run_fastffn(*printed_command(talk))

    assert done.returncode == 0, done.stderr
    assert_same_state(straight.run_dir / LAST, workplace.run_dir / LAST)
    assert exact_metrics(workplace.run_dir) == exact_metrics(straight.run_dir)


def test_a_damaged_newest_checkpoint_is_passed_over_and_made_again(
    straight: Workplace, workplace: Workplace
) -> None:
    shutil.copytree(straight.run_dir, workplace.run_dir)
    model_file = workplace.run_dir / LAST / "model.safetensors"
    flip_byte(model_file, model_file.stat().st_size // 2)

    done = workplace.run_fastffn(
        *("pretrain", "-c", "tiny.yaml", *TWENTY, "--resume"),
        *("-o", "Engine.save_load.save_steps=5", "-o", "Engine.save_load.keep_last=1"),
    )

    assert done.returncode == 0, done.stderr
    assert "step-00000020 is passed over: model.safetensors does not match its sha256" in (
        done.stderr
    )
    assert "global step 11," in done.stderr
    assert "global step 10," not in done.stderr
    assert_same_state(straight.run_dir / LAST, workplace.run_dir / LAST)
    kept = [path.name for path in (workplace.run_dir / "checkpoints").glob("step-*")]
    assert kept == ["step-00000020"]


def test_resume_names_a_run_folder(straight: Workplace, workplace: Workplace) -> None:
    shutil.copytree(straight.run_dir, workplace.dir / "elsewhere")
    before = (workplace.dir / "elsewhere" / "metrics.jsonl").read_bytes()

    done = workplace.run_fastffn("pretrain", "-c", "tiny.yaml", *TWENTY, "--resume", "elsewhere")

    assert done.returncode == 0, done.stderr
    assert "elsewhere is complete: step 20 of 20" in done.stderr
    assert (workplace.dir / "elsewhere" / "metrics.jsonl").read_bytes() == before
    assert not workplace.run_dir.exists()
