"""Greedy generation with a cache: ours, or Hugging Face's transformers, from the same weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.rivals.contestant import serve

COMPARED = 8  # tokens of each text, in what a step returns


@dataclass(frozen=True)
class GenerationTask:
    """A model of two folders, `folder`/hf and `folder`/fastffn, and what it continues."""

    folder: str
    vocab_size: int
    batch_size: int
    prompt_length: int
    new_tokens: int
    threads: int
    seed: int

    def as_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GenerationTask:
        """Return the task of a process's argument."""
        return cls(**json.loads(text))

    def prompts(self) -> list[list[int]]:
        """Return random token ids for each text."""
        rng = np.random.default_rng(self.seed)
        return rng.integers(0, self.vocab_size, (self.batch_size, self.prompt_length)).tolist()


def main() -> None:
    task, form = GenerationTask.from_json(sys.argv[1]), sys.argv[2]
    generate, versions = (start_torch if form == "torch" else start_ours)(task)

    def step() -> float:
        tokens = np.array(generate())
        assert tokens.shape == (task.batch_size, task.new_tokens)
        return float((tokens[:, :COMPARED] @ np.arange(1, COMPARED + 1)).sum())

    serve(step, versions)


def start_ours(task: GenerationTask) -> tuple[Callable[[], list[list[int]]], dict[str, str]]:
    from benchmarks.provenance import start_kernels
    from fastffn_cli.engine.device import use_device

    path = start_kernels(use_device("cpu", threads=task.threads))
    import paddle

    from fastffn_cli.engine.checkpoint import load_model
    from fastffn_cli.generation.generate import generate
    from fastffn_cli.generation.sampling import SamplingOptions

    model = load_model(Path(task.folder) / "fastffn").model
    greedy = SamplingOptions(decode_strategy="greedy_search", max_dec_len=task.new_tokens)
    prompts = task.prompts()
    versions = {"paddle": paddle.__version__, "kernels": path}
    return lambda: [each.tokens for each in generate(model, prompts, greedy)], versions


def start_torch(task: GenerationTask) -> tuple[Callable[[], list[list[int]]], dict[str, str]]:
    import torch
    import transformers

    torch.set_num_threads(task.threads)
    model = transformers.GPT2LMHeadModel.from_pretrained(Path(task.folder) / "hf").eval()
    ids = torch.tensor(task.prompts())
    mask = torch.ones_like(ids)

    def generate() -> list[list[int]]:
        done = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=task.new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        return done[:, task.prompt_length :].tolist()

    return generate, {"torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    main()
