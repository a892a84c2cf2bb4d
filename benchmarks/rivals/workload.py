"""What is trained, the same in every process: sizes, optimizer, tokens. numpy only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CYCLE = 8  # different batches; they come again after that many steps


@dataclass(frozen=True)
class Workload:
    """A GPT-2-like model (tied head, tanh GELU, no dropout) and how it is trained, in float32.

    `rank` 0: dense feed-forwards; else both of their matrices are factors of that rank. `weights`
    is the .npz file of the initial values: ours writes it, the others start from it.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    seq_len: int
    batch_size: int
    vocab_size: int
    weights: str
    rank: int = 0
    threads: int = 1
    seed: int = 1024
    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    grad_clip: float = 1.0

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.seq_len

    def describe(self) -> str:
        """Say its sizes."""
        return (
            f"{self.num_layers} layers x {self.hidden_size}, {self.batch_size} x {self.seq_len} "
            f"tokens, vocabulary {self.vocab_size}"
        )

    def as_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """Return the workload of a process's argument."""
        return cls(**json.loads(text))

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield tokens and their labels [B, S], for ever."""
        draw = np.random.default_rng(self.seed)
        shape = (CYCLE, self.batch_size, self.seq_len + 1)
        ids = draw.integers(0, self.vocab_size, shape, dtype=np.int64)
        while True:
            for rows in ids:
                yield rows[:, :-1].copy(), rows[:, 1:].copy()


SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "num_layers": 1, "hidden_size": 32, "num_heads": 2,
        "seq_len": 16, "batch_size": 2, "vocab_size": 64,
    },
    "small": {
        "num_layers": 4, "hidden_size": 256, "num_heads": 4,
        "seq_len": 256, "batch_size": 8, "vocab_size": 4096,
    },
    "large": {
        "num_layers": 6, "hidden_size": 768, "num_heads": 12,
        "seq_len": 512, "batch_size": 2, "vocab_size": 8192,
    },
}  # fmt: skip
STAGES = {"dense": 0, "stage 1": 8}  # and the rank of the factors


def make_workload(size: str, stage: str, weights: Path, threads: int, seed: int) -> Workload:
    """Return one of the sizes that tables are printed for."""
    return Workload(
        **SIZES[size], weights=str(weights), rank=STAGES[stage], threads=threads, seed=seed
    )


def write_weights(workload: Workload, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Store initial values: matrices [in, out], the columns of qkv as all q, all k, all v."""
    np.savez(workload.weights, **tensors)


def read_weights(workload: Workload) -> dict[str, NDArray[np.float32]]:
    """Return what `write_weights` stored."""
    with np.load(Path(workload.weights)) as stored:
        return {name: stored[name] for name in stored.files}
