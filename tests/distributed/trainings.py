"""Small trainings in real processes, one or several, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastffn_cli.engine.checkpoint import MODEL_FILE, OPTIMIZER_FILE, read_tensors
from fastffn_cli.engine.find import newest_of_run
from fastffn_cli.engine.run import read_metrics, series
from tests.conftest import Workplace
from tests.distributed.processes import run_processes

# Single precision sums in another order.
LOSS_TOLERANCE = 1e-6
# AdamW's first updates are near the sign of a gradient: where that is all but zero, they differ.
WEIGHT_TOLERANCE = 2e-4

ONE = "one process"
DEGREES = {
    "dp": "Distributed.dp_degree",
    "mp": "Distributed.mp_degree",
    "pp": "Distributed.pp_degree",
    "sharding": "Distributed.sharding.sharding_degree",
}
FLAGS = {
    "stage2": "Distributed.sharding.sharding_stage=2",
    "sequence": "Distributed.sequence_parallel=True",
}
PLAIN = [
    "Data.batch_size.micro_batch_size=1",
    "Model.hidden_dropout_prob=0",
    "Model.attention_probs_dropout_prob=0",
    "Model.num_layers=4",
    "Engine.max_steps=6",
    "Engine.save_load.save_steps=6",
    "Engine.eval_freq=3",
    "Engine.eval_iters=1000",  # all of the part, which no layout divides
    "Data.dataset.split=97,1,2",
]


@dataclass(frozen=True)
class Trained:
    """What a run left behind."""

    dir: Path

    @property
    def checkpoint_dir(self) -> Path:
        """Its newest checkpoint."""
        newest, _ = newest_of_run(self.dir)
        assert newest is not None
        return newest

    def series(self, event: str, key: str) -> np.ndarray:
        """Values of one kind of record, by step."""
        return np.array([value for _, value in series(read_metrics(self.dir), event, key)])

    def tensors(self, file: str) -> dict[str, np.ndarray]:
        """Arrays of the newest checkpoint."""
        return read_tensors(self.checkpoint_dir / file)


def degrees(layout: str) -> list[str]:
    """Overrides of e.g. `dp2 sharding2 stage2`; none of a single process."""
    words = [] if layout == ONE else layout.split()
    return [FLAGS[word] if word in FLAGS else f"{DEGREES[word[:-1]]}={word[-1]}" for word in words]


def command(
    place: Workplace, name: str, overrides: Sequence[str], more: Sequence[str] = ()
) -> list[str]:
    """The command line that trains the tiny configuration in the folder `name`."""
    settings = [*PLAIN, f"Engine.save_load.output_dir={place.dir / name}", *overrides]
    options = [word for setting in settings for word in ("-o", setting)]
    return ["pretrain", "-c", str(place.config_file), *options, *more]


def run_commands(
    place: Workplace,
    count: int,
    command_lines: Sequence[Sequence[str]],
    env: Mapping[str, str] | None = None,
) -> None:
    """Run them one after the other in `count` processes."""
    file = place.dir / f"commands-{count}.json"
    file.write_text(json.dumps([list(words) for words in command_lines]), encoding="utf-8")
    run_processes("tests.distributed.commands", [file], count, timeout=400, env=env)


def assert_same_training(alone: Trained, together: Trained) -> None:
    """Losses, norms, evaluations, tokens, weights and optimizer states are equal to rounding."""
    for event, key in (("train", "loss"), ("train", "grad_norm"), ("eval", "loss")):
        expected, found = alone.series(event, key), together.series(event, key)
        assert len(expected) == len(found) > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=LOSS_TOLERANCE, err_msg=key)
    np.testing.assert_array_equal(
        together.series("train", "tokens"), alone.series("train", "tokens")
    )
    for file in (MODEL_FILE, OPTIMIZER_FILE):
        expected_arrays, found_arrays = alone.tensors(file), together.tensors(file)
        assert expected_arrays.keys() == found_arrays.keys()
        for tensor, array in expected_arrays.items():
            np.testing.assert_allclose(
                found_arrays[tensor], array, rtol=0, atol=WEIGHT_TOLERANCE, err_msg=tensor
            )
