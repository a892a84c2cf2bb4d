"""A plan of seconds on the tiny configuration, for the tests of a comparison."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Workplace

# Two arms of 8 sequences x 32 tokens a step: 6 steps of a run.
TINY_PLAN = """\
base: tiny.yaml
out: ./cmp
baseline: dense
seeds: [1, 2]
tokens: 1536
learning_rates: [1e-3]
evaluations: 3
eval_iters: 2
calibration: {rounds: 1, steps: 1}
config:
  Data.dataset.split: 80,15,5
  Optimizer: {lr: {warmup_steps: 1}}
  Model: {ffn: {kind: dense}}
arms:
  dense: {}
  low_rank:
    Model.ffn: {kind: low_rank, rank: 2}
    Schedule: {switch: fraction, at: 0.5}
"""


def write_plan(workplace: Workplace, text: str = TINY_PLAN, name: str = "plan.yaml") -> Path:
    """Write a plan beside the tiny configuration."""
    file = workplace.dir / name
    file.write_text(text, encoding="utf-8")
    return file
