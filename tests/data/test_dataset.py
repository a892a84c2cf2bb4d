from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.data.split import parse_split, split_bounds
from fastffn_cli.data.token_files import TokenFolder, open_tokens
from fastffn_cli.errors import DataError

SPLIT = "949,50,1"


def write_prefix(folder_dir: Path, name: str, lens: list[int], first_id: int = 0) -> None:
    """Write documents whose ids count up, so that every token is recognisable."""
    total = sum(lens)
    np.save(folder_dir / f"{name}_ids.npy", np.arange(first_id, first_id + total, dtype=np.int32))
    np.savez(folder_dir / f"{name}_idx.npz", lens=np.array(lens, np.int32))


def make_dataset(folder: TokenFolder, **options: object) -> TokenDataset:
    settings = {"split": SPLIT, "part": "all", "seq_len": 8, "seed": 3, "shuffle": True, **options}
    return TokenDataset(folder, **settings)  # type: ignore[arg-type]


@pytest.fixture
def two_prefixes(tmp_path: Path) -> TokenFolder:
    """50 + 31 tokens counting from 0 to 80."""
    write_prefix(tmp_path, "a", [10] * 5)
    write_prefix(tmp_path, "b", [31], first_id=50)
    return open_tokens(tmp_path)


@pytest.mark.parametrize(
    ("count", "bounds"),
    [
        (268492, [0, 254799, 268224, 268492]),
        (599, [0, 568, 598, 599]),
        (400, [0, 380, 400, 400]),
        (100, [0, 95, 100, 100]),
        (1, [0, 1, 1, 1]),
        (0, [0, 0, 0, 0]),
    ],
)
def test_bounds_are_those_of_fleetx(count: int, bounds: list[int]) -> None:
    assert split_bounds(parse_split(SPLIT), count) == bounds


def test_excess_of_rounding_is_taken_back_as_in_fleetx() -> None:
    assert split_bounds((1, 1, 1), 5) == [0, 1, 3, 5]


@pytest.mark.parametrize(
    "split", ["949,50,1", "949/50/1", [949, 50, 1], [94.9, 5.0, 0.1], "0.949, 0.05, 0.001"]
)
def test_split_is_read_in_every_form_of_fleetx(split: str | list[float]) -> None:
    assert split_bounds(parse_split(split), 599) == [0, 568, 598, 599]


@pytest.mark.parametrize("split", ["", "a,b,c", "1,2,3,4", "-1,1,1", "0,0,0", "nan,1,1", [], None])
def test_a_split_that_is_no_weights_is_refused(split: object) -> None:
    with pytest.raises(DataError, match="split"):
        parse_split(split)  # type: ignore[arg-type]


def test_order_of_the_first_epoch_is_that_of_randomstate_with_the_seed(
    two_prefixes: TokenFolder,
) -> None:
    order = np.arange(10)
    np.random.RandomState(3).shuffle(order)
    dataset = make_dataset(two_prefixes)
    assert [int(dataset.batch(k, 1).tokens_BS[0, 0]) // 8 for k in range(10)] == order.tolist()


@pytest.mark.parametrize("seq_len", [1, 7, 8, 16, 79, 80, 81, 500])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_token_is_predicted_exactly_once_an_epoch(
    seq_len: int, epoch: int, two_prefixes: TokenFolder
) -> None:
    dataset = make_dataset(two_prefixes, seq_len=seq_len)
    assert dataset.num_samples == -(-80 // seq_len)
    batch = dataset.batch(epoch * dataset.num_samples, dataset.num_samples)
    valid = batch.mask_BS == 1
    assert Counter(batch.labels_BS[valid].tolist()) == Counter(range(1, 81))
    np.testing.assert_array_equal(batch.tokens_BS[valid] + 1, batch.labels_BS[valid])
    assert batch.num_valid == 80


def test_a_batch_depends_on_seed_and_cursor_only(two_prefixes: TokenFolder) -> None:
    forward = make_dataset(two_prefixes)
    singles = [forward.batch(cursor, 1).tokens_BS[0] for cursor in range(35)]
    backward = make_dataset(two_prefixes)
    for cursor in (31, 4, 17, 0, 9):  # any order, across epochs of 10 samples
        rows = backward.batch(cursor, 4).tokens_BS
        np.testing.assert_array_equal(rows, singles[cursor : cursor + 4])


def test_epochs_and_seeds_have_different_orders(two_prefixes: TokenFolder) -> None:
    dataset, other = make_dataset(two_prefixes), make_dataset(two_prefixes, seed=4)
    first, second = dataset.batch(0, 10).tokens_BS, dataset.batch(10, 10).tokens_BS
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other.batch(0, 10).tokens_BS)


def test_without_shuffling_the_text_comes_in_order(two_prefixes: TokenFolder) -> None:
    batch = make_dataset(two_prefixes, shuffle=False).batch(0, 20)
    np.testing.assert_array_equal(batch.tokens_BS[:10].reshape(-1), np.arange(80))
    np.testing.assert_array_equal(batch.tokens_BS[10:], batch.tokens_BS[:10])


def test_parts_of_many_documents_are_divided_at_documents(tmp_path: Path) -> None:
    write_prefix(tmp_path, "a", list(range(1, 21)))
    folder = open_tokens(tmp_path)
    sizes = {
        part: make_dataset(folder, part=part, split="80,15,5").num_tokens
        for part in ("train", "valid", "test")
    }
    assert sizes == {"train": sum(range(1, 17)), "valid": 17 + 18 + 19, "test": 20}


def test_parts_of_one_document_are_divided_at_tokens(tmp_path: Path) -> None:
    write_prefix(tmp_path, "a", [1000])
    folder = open_tokens(tmp_path)
    parts = [
        make_dataset(folder, part=part, split="90,8,2", shuffle=False, seq_len=100)
        for part in ("train", "valid", "test")
    ]
    assert [part.num_tokens for part in parts] == [900, 80, 20]
    assert {part.divided_by for part in parts} == {"tokens"}
    assert [int(part.batch(0, 1).tokens_BS[0, 0]) for part in parts] == [0, 900, 980]


def test_each_prefix_is_divided_by_its_own_documents(tmp_path: Path) -> None:
    write_prefix(tmp_path, "a", [2] * 10)
    write_prefix(tmp_path, "b", [3] * 10, first_id=100)
    dataset = make_dataset(
        open_tokens(tmp_path), part="valid", split="8,1,1", seq_len=4, shuffle=False, eos_id=-1
    )
    assert dataset.num_tokens == 5
    assert dataset.batch(0, 1).tokens_BS.tolist() == [[16, 17, 124, 125]]


@pytest.mark.parametrize(
    ("part", "split"), [("test", "1,1,0"), ("valid", "1"), ("test", "999,1,0")]
)
def test_an_empty_part_is_a_sentence_and_not_a_hang(
    part: str, split: str, two_prefixes: TokenFolder
) -> None:
    with pytest.raises(DataError, match=rf"the {part} part of split '{split}' has 0 tokens"):
        make_dataset(two_prefixes, part=part, split=split)


def test_a_single_token_is_too_few(tmp_path: Path) -> None:
    write_prefix(tmp_path, "a", [1])
    with pytest.raises(DataError, match="has 1 token, and a sample needs at least 2"):
        make_dataset(open_tokens(tmp_path))


def test_a_corpus_smaller_than_a_batch_repeats_itself(tmp_path: Path) -> None:
    write_prefix(tmp_path, "a", [5])
    batch = make_dataset(open_tokens(tmp_path), seq_len=8).batch(0, 3)
    assert batch.tokens_BS[:, :5].tolist() == [[0, 1, 2, 3, 4]] * 3
    assert batch.mask_BS.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 3


def test_slices_of_a_batch_are_its_rows(two_prefixes: TokenFolder) -> None:
    batch = make_dataset(two_prefixes).batch(0, 6)
    part = batch.slice(2, 5)
    assert part.size == 3
    np.testing.assert_array_equal(part.labels_BS, batch.labels_BS[2:5])
    assert part.num_valid + batch.slice(0, 2).num_valid + batch.slice(5, 6).num_valid == (
        batch.num_valid
    )
