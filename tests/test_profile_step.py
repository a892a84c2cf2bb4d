"""The profile of a step: its parts are all there and add up to the step."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PROCESS_TIMEOUT_S, ROOT_DIR, program_env

TINY = (
    *("Model.hidden_size=32", "Model.num_layers=2", "Model.num_attention_heads=2"),
    *("Model.max_position_embeddings=16", "Data.dataset.max_seq_len=16", "Model.vocab_size=64"),
)


@pytest.mark.slow
def test_the_parts_of_a_profile_add_up_to_its_step(tmp_path):
    overrides = [word for each in TINY for word in ("-o", each)]
    script = str(ROOT_DIR / "benchmarks" / "profile_step.py")
    done = subprocess.run(
        [sys.executable, script, "--rounds", "2", "--stages", "dense", *overrides],
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        env=program_env(),
        cwd=tmp_path,
        check=True,
    )
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| embeddings"))
    table = [line.split("|") for line in lines[start : lines.index("", start)]]
    # The last two are the step and what is contained in it; columns are ms and % of each path.
    *parts, step, _ = [
        [float(word) for word in words if is_number(word.strip())] for words in table
    ]

    assert len(parts) == 10
    for column in range(0, len(step), 2):
        total = sum(part[column] for part in parts)
        assert total == pytest.approx(step[column], abs=0.01 * len(parts))
    assert "commit" in lines[-1]


def is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdigit()
