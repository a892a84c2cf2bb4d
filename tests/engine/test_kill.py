"""`kill -9` at any moment, also inside a save: the newest whole checkpoint loads and goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from fastffn_cli.engine import storage
from fastffn_cli.engine.checkpoint import read_checkpoint
from fastffn_cli.engine.find import newest_of_run
from fastffn_cli.engine.run import read_metrics
from tests.conftest import Workplace
from tests.engine.runs import started

pytestmark = pytest.mark.slow

# Nearly all of the time is spent in saves: 3 million weights and their moments after every step.
SAVING = (
    *("-o", "Engine.max_steps=1000", "-o", "Engine.save_load.save_steps=1"),
    *("-o", "Engine.eval_freq=0", "-o", "Model.vocab_size=30000", "-o", "Model.hidden_size=96"),
    *("-o", "Data.batch_size.global_batch_size=1", "-o", "Data.batch_size.micro_batch_size=1"),
    *("-o", "Data.dataset.max_seq_len=8", "-o", "Engine.save_load.keep_last=2"),
)
KILLS = 5


def wait_for_training(process: object) -> None:
    """Wait until a step was logged."""
    for line in process.stderr:  # type: ignore[attr-defined]
        if "global step" in line:
            return
    pytest.fail("the process ended before its first step")


def wait_for(seen: Callable[[], bool], what: str) -> None:
    """Poll until something is seen."""
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline, f"never saw {what}"


def test_killed_runs_keep_a_whole_checkpoint_and_go_on(workplace: Workplace) -> None:
    source = random.Random(4)
    checkpoints = workplace.run_dir / "checkpoints"
    reached, caught_in_a_save = 0, 0
    for attempt in range(KILLS):
        with started("pretrain", "-c", "tiny.yaml", *SAVING, "--resume", cwd=workplace.dir) as run:
            wait_for_training(run)
            wait_for(lambda: any(checkpoints.glob("step-*")), "a checkpoint")
            if attempt % 2:
                time.sleep(source.uniform(0.0, 0.5))
            else:  # in the middle of a save
                wait_for(lambda: any(checkpoints.glob(".step-*.tmp")), "a save")
                time.sleep(source.uniform(0.0, 0.02))
            run.kill()
            run.wait()
        caught_in_a_save += any(checkpoints.glob(".*.tmp"))

        newest, _ = newest_of_run(workplace.run_dir)
        assert newest is not None
        read_checkpoint(newest)  # all checksums
        step = int(newest.name.removeprefix("step-"))
        assert step >= reached
        reached = step
        assert (checkpoints / "latest").exists()
        # The steps of the log lead at least as far as the checkpoint.
        assert max(r["step"] for r in read_metrics(workplace.run_dir) if "step" in r) >= step

    assert reached > 0
    assert caught_in_a_save > 0, "no kill hit a save: make the model of this test larger"

    last = workplace.run_fastffn(
        *("pretrain", "-c", "tiny.yaml", *SAVING, "--resume"),
        *("-o", f"Engine.max_steps={reached + 2}"),
    )
    assert last.returncode == 0, last.stderr
    assert f"global step {reached + 1}," in last.stderr
    assert f"global step {reached}," not in last.stderr
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["latest", f"step-{reached + 1:08d}", f"step-{reached + 2:08d}"]
    assert storage.damage(checkpoints / names[-1], checksums=True) is None
    assert not list(workplace.run_dir.glob(".*.tmp"))
