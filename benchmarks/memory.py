"""What a training step takes of memory, measured, against the estimate of `--dry-run`.

    python benchmarks/memory.py

Prints two Markdown tables. One card: the peak of live tensors (Paddle's own count, which is what a
device has to hold) and the growth of a fresh process, each over its estimate. Two cards: the live
tensors of the fullest of two real processes, and the optimizer's moments of the one that has most.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import commit  # noqa: E402
from tests.conftest import program_env  # noqa: E402
from tests.distributed.processes import run_processes  # noqa: E402

MEMBER = "benchmarks.memory_process"
SEQ_LEN = 128
BASE = {
    "vocab_size": 512, "hidden_size": 128, "num_layers": 4, "num_attention_heads": 4,
    "ffn_hidden_size": 512,
}  # fmt: skip
LOW_RANK = {"ffn": {"kind": "low_rank", "rank": 8}}
FAST = {"hidden_act": "fast_gelu"}
TIME_S = 300


@dataclass(frozen=True)
class Case:
    """A model, the pieces of its step, and how it is laid out (fields of `Layout`)."""

    name: str
    layout: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    seq_len: int = SEQ_LEN

    def as_json(self) -> str:
        """Return the argument of `memory_process`."""
        model = {**BASE, **self.model}
        return json.dumps({"layout": dict(self.layout), "model": model, "seq_len": self.seq_len})


def one_card() -> Iterator[Case]:
    """Dense and low-rank, with and without recompute, in small and large micro batches."""
    for name, model in (("dense", {}), ("low_rank 8", LOW_RANK), ("fast_gelu", FAST)):
        for recompute in (False, True):
            for size in (2, 8):
                words = f"{name}{', recompute' if recompute else ''}, {size} sequences"
                yield Case(words, {"micro_batch_size": size, "recompute": recompute}, model)


ONE_CARD = tuple(one_card())
TWO_CARDS = (
    Case("sharding 2", {"sharding_degree": 2, "micro_batch_size": 4}),
    Case("sharding 2, low_rank 8", {"sharding_degree": 2, "micro_batch_size": 4}, LOW_RANK),
    Case("mp 2", {"mp": 2, "micro_batch_size": 4}),
    Case("mp 2, recompute", {"mp": 2, "micro_batch_size": 4, "recompute": True}),
    Case("mp 2, low_rank 8", {"mp": 2, "micro_batch_size": 4}, LOW_RANK),
    Case("pp 2", {"pp": 2, "micro_batch_size": 4, "micro_batches": 4}),
    Case("pp 2, recompute",
         {"pp": 2, "micro_batch_size": 4, "micro_batches": 4, "recompute": True}),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Bytes of the process that took most: measured, and by estimate."""

    peak: int
    estimate: int
    moments: int
    moments_estimate: int

    @property
    def ratio(self) -> float:
        """The estimate over the measured peak."""
        return self.estimate / self.peak


def measure_tensors(cases: Sequence[Case], processes: int = 1) -> list[Measured]:
    """Count live tensors in `processes` real processes, which run all cases one after the other."""
    words = ["tensors", *(case.as_json() for case in cases)]
    done = run_processes(MEMBER, words, processes, timeout=TIME_S)
    answers = [[json.loads(line) for line in each.stdout.splitlines()] for each in done]
    return [estimate(case, [each[index] for each in answers]) for index, case in enumerate(cases)]


def measure_process(case: Case) -> Measured:
    """Measure how much a fresh process grows."""
    done = subprocess.run(
        [sys.executable, "-m", MEMBER, "process", case.as_json()],
        cwd=ROOT, env=program_env(), capture_output=True, text=True, timeout=TIME_S, check=True,
    )  # fmt: skip
    return estimate(case, [json.loads(done.stdout)], on_host=True)


def estimate(
    case: Case, answers: Sequence[Mapping[str, int]], *, on_host: bool = False
) -> Measured:
    """Put the estimate of the fullest card beside what the processes answered."""
    from benchmarks.memory_process import read_case
    from fastffn_cli.distributed.planner import fullest_stage
    from fastffn_cli.engine.memory import count_fixed, estimate_memory

    layout, model = read_case(json.loads(case.as_json()))
    share = layout.share(model, fullest_stage(model, case.seq_len, layout))
    expected = estimate_memory(
        model, case.seq_len, on_host=on_host, fused=bool(answers[0]["fused"]), share=share
    )
    shares = [layout.share(model, stage) for stage in range(layout.pp)]
    return Measured(
        peak=max(answer["peak"] for answer in answers),
        estimate=expected.total(layout.micro_batch_size),
        moments=max(answer["moments"] for answer in answers),
        moments_estimate=max(count_fixed(model, share=each).optimizer for each in shares),
    )


def lines() -> Iterator[str]:
    """Yield both tables."""
    yield "| one card | live tensors | estimate | ratio | process grows | estimate | ratio |"
    yield "|---" * 7 + "|"
    for case, tensors in zip(ONE_CARD, measure_tensors(ONE_CARD), strict=True):
        grown = measure_process(case)
        cells = (*_cells(tensors.peak, tensors.estimate), *_cells(grown.peak, grown.estimate))
        yield f"| {case.name} | {' | '.join(cells)} |"
    yield ""
    yield "| two cards | live tensors | estimate | ratio | moments | estimate | ratio |"
    yield "|---" * 7 + "|"
    for case, both in zip(TWO_CARDS, measure_tensors(TWO_CARDS, 2), strict=True):
        cells = (*_cells(both.peak, both.estimate), *_cells(both.moments, both.moments_estimate))
        yield f"| {case.name} | {' | '.join(cells)} |"
    yield ""
    yield f"Commit {commit()}."


def _cells(measured: int, expected: int) -> tuple[str, str, str]:
    mib = 1 << 20
    return f"{measured / mib:.1f} MiB", f"{expected / mib:.1f} MiB", f"{expected / measured:.2f}"


def main() -> None:
    for line in lines():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
