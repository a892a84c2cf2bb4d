"""What a checkpoint may be continued with, and started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastffn_cli.config.load import load_config
from fastffn_cli.config.schema import Config
from fastffn_cli.engine.checkpoint import Checkpoint
from fastffn_cli.engine.compatibility import POSITIONS, check_resume, check_start, fit_positions
from fastffn_cli.errors import CheckpointError
from models.gpt import GPTConfig
from tests.conftest import TINY_YAML

TOKENS = 1000


@pytest.fixture
def configured(tmp_path: Path) -> Any:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY_YAML.format(data_dir="data"), encoding="utf-8")

    def load(*overrides: str) -> Config:
        return load_config(str(file), ["Model.vocab_size=257", *overrides]).config

    return load


def checkpoint_of(config: Config) -> Checkpoint:
    return Checkpoint(Path("step-8"), config, {"step": 8, "data": {"num_tokens": TOKENS}})


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("Global.seed=8", "Global.seed was 7, is 8"),
        ("Model.hidden_size=64", "Model.hidden_size was 32, is 64"),
        ("Model.num_attention_heads=8", "Model.num_attention_heads was 4, is 8"),
        ("Model.ffn={kind: dense}", "Model.ffn.kind was low_rank, is dense"),
        ("Model.ffn.rank=8", "Model.ffn.rank was 4, is 8"),
        ("Model.ffn.lr_rule=spectral", "Model.ffn.lr_rule was none, is spectral"),
        ("Model.masked_token_id=3", "Model.masked_token_id was None, is 3"),
        ("Optimizer.bias_correction=False", "Optimizer.bias_correction was True, is False"),
        ("Data.dataset.split=1,1", "Data.dataset.split was 80,15,5, is 1,1"),
        ("Data.dataset.max_seq_len=16", "Data.dataset.max_seq_len was 32, is 16"),
    ],
)
def test_what_would_change_the_run_is_refused_by_name(
    configured: Any, override: str, problem: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_resume(checkpoint_of(configured()), configured(override), TOKENS, [])
    assert problem in caught.value.message
    assert "ckpt_dir=step-8" in (caught.value.hint or "")


def test_all_problems_come_together(configured: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_resume(
            checkpoint_of(configured()), configured("Global.seed=8", "Model.ffn.rank=2"), TOKENS, []
        )
    assert len(caught.value.message.splitlines()) == 3


def test_other_data_is_refused_by_its_number_of_tokens(configured: Any) -> None:
    with pytest.raises(CheckpointError, match="had 1,000 tokens, now it has 999"):
        check_resume(checkpoint_of(configured()), configured(), 999, [])


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("Optimizer.lr.max_lr=2e-3", "Optimizer.lr.max_lr changed since the checkpoint: 0.001 ->"),
        ("Optimizer.weight_decay=0.5", "Optimizer.weight_decay changed since the checkpoint: 0.01"),
        ("Data.batch_size.micro_batch_size=2", "micro_batch_size changed since the checkpoint: 4"),
        ("Engine.max_steps=9", "Engine.max_steps changed since the checkpoint: 8 -> 9"),
    ],
)
def test_what_may_change_is_noted(configured: Any, override: str, note: str) -> None:
    notices: list[str] = []
    check_resume(checkpoint_of(configured()), configured(override), TOKENS, notices)
    assert any(note in notice for notice in notices), notices


@pytest.mark.parametrize(
    "override",
    ["Engine.logging_freq=7", "Engine.save_load.keep_last=9", "Global.cpu_threads=1"],
)
def test_what_computes_nothing_is_not_mentioned(configured: Any, override: str) -> None:
    notices: list[str] = []
    check_resume(checkpoint_of(configured()), configured(override), TOKENS, notices)
    assert notices == []


def test_a_start_needs_the_same_sizes_and_heads(configured: Any) -> None:
    """Heads show in no tensor's shape: only the configuration can tell."""
    start = checkpoint_of(configured())
    notices: list[str] = []
    check_start(start, configured("Optimizer.lr.max_lr=1", "Global.seed=9"), notices)
    assert notices == []
    with pytest.raises(CheckpointError, match=r"Model\.num_attention_heads is 4 there, 2 here"):
        check_start(start, configured("Model.num_attention_heads=2"), [])
    with pytest.raises(CheckpointError, match=r"Model\.ffn\.rank is 4 there, 2 here"):
        check_start(start, configured("Model.ffn.rank=2"), [])


@pytest.mark.parametrize(
    ("had", "wanted", "command"),
    [
        ("low_rank", "dense", "convert step-8"),
        ("dense", "low_rank", "convert step-8 --to low_rank"),
    ],
)
def test_a_start_of_another_kind_says_how_to_convert(
    configured: Any, had: str, wanted: str, command: str
) -> None:
    kinds = {"low_rank": (), "dense": ("Model.ffn={kind: dense}",)}
    with pytest.raises(CheckpointError, match=f"kind '{had}', Model.ffn asks for '{wanted}'") as it:
        check_start(checkpoint_of(configured(*kinds[had])), configured(*kinds[wanted]), [])
    assert command in (it.value.hint or "")


@pytest.mark.parametrize(
    ("had", "wanted", "words"),
    [("", "5", "is blank in step-8 and 5 here"), ("5", "", "is 5 in step-8 and blank here")],
)
def test_a_start_that_hides_another_token_is_noted(
    configured: Any, had: str, wanted: str, words: str
) -> None:
    """It shows in no shape either, but weights may well be taught to do without a token."""
    before, now = (configured(f"Model.masked_token_id={token}") for token in (had, wanted))
    notices: list[str] = []
    check_start(checkpoint_of(before), now, notices)
    (notice,) = notices
    assert f"Model.masked_token_id {words}" in notice


def gpt_of(positions: int) -> GPTConfig:
    return GPTConfig(
        **{"vocab_size": 9, "hidden_size": 4, "num_layers": 1, "num_attention_heads": 1},
        **{"ffn_hidden_size": 8, "max_position_embeddings": positions},
    )


def test_a_longer_position_table_is_cut() -> None:
    table = np.arange(64 * 4, dtype=np.float32).reshape(64, 4)
    other = np.ones(3, np.float32)
    fitted = fit_positions({POSITIONS: table, "x": other}, gpt_of(63), Path("origin"))
    np.testing.assert_array_equal(fitted[POSITIONS], table[:63])
    assert fitted["x"] is other


def test_a_shorter_position_table_is_refused_with_the_override_to_type() -> None:
    table = np.zeros((63, 4), np.float32)
    with pytest.raises(CheckpointError, match="has 63 positions") as caught:
        fit_positions({POSITIONS: table}, gpt_of(64), Path("origin"))
    assert "-o Model.max_position_embeddings=63" in (caught.value.hint or "")


def test_a_table_of_the_same_length_is_left_alone() -> None:
    table = np.zeros((64, 4), np.float32)
    assert fit_positions({POSITIONS: table}, gpt_of(64), Path("origin"))[POSITIONS] is table
