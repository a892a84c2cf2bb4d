"""Evaluation in the loop: the same samples, each once, no dropout, no trace."""

from __future__ import annotations

from pathlib import Path

import paddle
import pytest

from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.data.token_files import open_tokens
from fastffn_cli.engine.evaluate import evaluate
from fastffn_cli.engine.precision import Precision
from fastffn_cli.tasks.causal_lm import CausalLM
from models.gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def dataset(data_dir: Path) -> TokenDataset:
    return TokenDataset(
        open_tokens(data_dir), split="80,15,5", part="valid", seq_len=32, seed=0, shuffle=False
    )


@pytest.fixture(scope="module")
def task() -> CausalLM:
    paddle.seed(1)
    config = GPTConfig(
        **{"vocab_size": 257, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2},
        **{"ffn_hidden_size": 64, "max_position_embeddings": 32, "hidden_dropout_prob": 0.5},
    )
    model = GPT(config)
    model.train()
    return CausalLM(model)


def test_twice_the_same_number_although_the_model_has_dropout(
    task: CausalLM, dataset: TokenDataset
) -> None:
    first = evaluate(task, dataset, Precision(), batches=3, batch_size=4)
    assert evaluate(task, dataset, Precision(), batches=3, batch_size=4) == first
    assert task.model.training


def test_the_batch_size_does_not_matter(task: CausalLM, dataset: TokenDataset) -> None:
    loss, tokens = evaluate(task, dataset, Precision(), batches=12, batch_size=1)
    other, other_tokens = evaluate(task, dataset, Precision(), batches=2, batch_size=6)
    assert other_tokens == tokens
    assert other == pytest.approx(loss, abs=1e-6)


def test_a_small_part_is_read_once_and_not_again(task: CausalLM, dataset: TokenDataset) -> None:
    _, tokens = evaluate(task, dataset, Precision(), batches=10_000, batch_size=8)
    whole = dataset.batch(0, dataset.num_samples)
    assert tokens == int(whole.mask_BS.sum())


def test_the_model_trains_on_even_after_an_error(
    task: CausalLM, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "weight", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(task, dataset, Precision(), batches=1, batch_size=1)
    assert task.model.training
