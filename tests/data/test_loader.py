from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.data.dataset import Batch, TokenDataset
from fastffn_cli.data.loader import iterate
from fastffn_cli.data.token_files import open_tokens


@pytest.fixture
def dataset(tmp_path: Path) -> TokenDataset:
    np.save(tmp_path / "a_ids.npy", np.arange(100, dtype=np.uint16))
    np.savez(tmp_path / "a_idx.npz", lens=np.array([100]))
    folder = open_tokens(tmp_path)
    return TokenDataset(folder, split="1", part="all", seq_len=10, seed=1, shuffle=True)


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_batches_are_those_of_the_dataset_from_the_cursor_on(dataset: TokenDataset) -> None:
    batches = list(islice(iterate(dataset, cursor=7, batch_size=3), 8))
    for number, batch in enumerate(batches):
        expected = dataset.batch(7 + 3 * number, 3)
        np.testing.assert_array_equal(batch.tokens_BS, expected.tokens_BS)


def test_closing_ends_the_thread(dataset: TokenDataset) -> None:
    batches = iterate(dataset, cursor=0, batch_size=2)
    next(batches)
    assert reader_threads()
    batches.close()  # type: ignore[attr-defined]
    assert reader_threads() == []


def test_an_error_in_the_thread_comes_out_at_its_batch(
    dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = dataset.batch

    def fail_late(cursor: int, size: int) -> Batch:
        if cursor >= 4:
            raise OSError("disk gone")
        return read(cursor, size)

    monkeypatch.setattr(dataset, "batch", fail_late)
    batches = iterate(dataset, cursor=0, batch_size=2)
    assert next(batches).size == 2
    assert next(batches).size == 2
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    assert reader_threads() == []


def test_reading_goes_on_while_a_batch_is_used(
    dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = dataset.batch, []

    def note(cursor: int, size: int) -> Batch:
        asked.append(cursor)
        return read(cursor, size)

    monkeypatch.setattr(dataset, "batch", note)
    batches = iterate(dataset, cursor=0, batch_size=1)
    next(batches)
    limit = time.monotonic() + 5
    while len(asked) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    batches.close()  # type: ignore[attr-defined]
    assert asked == [0, 1, 2]
