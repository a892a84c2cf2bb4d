from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.data.token_files import open_tokens
from fastffn_cli.errors import DataError

FLEETX_DIR = Path(__file__).parents[1] / "fixtures" / "fleetx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three documents of 3, 1 and 4 tokens, written by numpy alone."""
    np.save(tmp_path / "x_ids.npy", np.array([5, 6, 9, 9, 1, 2, 3, 9], np.uint16))
    np.savez(
        tmp_path / "x_idx.npz", lens=np.array([3, 1, 4], np.int32), docs=np.arange(4, dtype="i8")
    )
    return tmp_path


def test_a_folder_a_prefix_and_a_file_open_the_same(folder: Path) -> None:
    for path in (folder, folder / "x", folder / "x_ids.npy", folder / "x_idx.npz"):
        opened = open_tokens(path, vocab_size=10)
        assert (opened.num_tokens, opened.num_documents) == (8, 3)
        assert opened.files[0].ends.tolist() == [3, 4, 8]
        assert (opened.meta, opened.tokenizer_dir, opened.vocab_size) == ({}, None, None)


def test_fleetx_own_files_open() -> None:
    opened = open_tokens(FLEETX_DIR / "corpus", vocab_size=50257)
    assert (opened.num_tokens, opened.num_documents) == (25298, 599)
    assert opened.files[0].largest_id() == 50256
    assert isinstance(opened.files[0].ids, np.memmap)


def test_prefixes_of_a_folder_come_in_sorted_order(folder: Path) -> None:
    np.save(folder / "a_ids.npy", np.array([7], np.int32))
    np.savez(folder / "a_idx.npz", lens=np.array([1], np.int32))
    assert [file.name for file in open_tokens(folder).files] == ["a", "x"]


def test_the_legacy_single_archive_opens(tmp_path: Path) -> None:
    np.savez(tmp_path / "old_ids.npz", ids=np.arange(6, dtype=np.int32), lens=np.array([2, 4]))
    opened = open_tokens(tmp_path)
    assert (opened.num_tokens, opened.num_documents) == (6, 2)


def truncate(folder: Path) -> None:
    file = folder / "x_ids.npy"
    file.write_bytes(file.read_bytes()[:-5])


def drop_ids(folder: Path) -> None:
    (folder / "x_ids.npy").unlink()


def drop_index(folder: Path) -> None:
    (folder / "x_idx.npz").unlink()


def empty_ids(folder: Path) -> None:
    (folder / "x_ids.npy").write_bytes(b"")


def float_ids(folder: Path) -> None:
    np.save(folder / "x_ids.npy", np.zeros(8, np.float32))


def two_rows(folder: Path) -> None:
    np.save(folder / "x_ids.npy", np.zeros((2, 4), np.uint16))


def pickled_ids(folder: Path) -> None:
    np.save(folder / "x_ids.npy", np.array([{}] * 8, object), allow_pickle=True)


def longer_lens(folder: Path) -> None:
    np.savez(folder / "x_idx.npz", lens=np.array([3, 1, 5], np.int32))


def shorter_lens(folder: Path) -> None:
    np.savez(folder / "x_idx.npz", lens=np.array([3, 1], np.int32))


def negative_lens(folder: Path) -> None:
    np.savez(folder / "x_idx.npz", lens=np.array([3, -1, 6], np.int32))


def no_lens(folder: Path) -> None:
    np.savez(folder / "x_idx.npz", length=np.array([8]))


def float_lens(folder: Path) -> None:
    np.savez(folder / "x_idx.npz", lens=np.array([8.0]))


def broken_index(folder: Path) -> None:
    file = folder / "x_idx.npz"
    file.write_bytes(file.read_bytes()[:100])


def flipped_index(folder: Path) -> None:
    file = folder / "x_idx.npz"
    content = bytearray(file.read_bytes())
    content[content.index(b"NUMPY") + 123] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (truncate, r"x_ids\.npy: has 139 bytes, but its header promises 8 tokens.*token 5"),
        (drop_ids, r"x_ids\.npy does not exist"),
        (drop_index, r"x_idx\.npz does not exist"),
        (empty_ids, r"x_ids\.npy: not a whole \.npy file"),
        (float_ids, r"x_ids\.npy: ids has type float32, expected integers"),
        (two_rows, r"x_ids\.npy: ids has shape \[2, 4\]"),
        (pickled_ids, r"x_ids\.npy: holds Python objects"),
        (longer_lens, r"8 tokens, but the documents in x_idx\.npz sum to 9; .* document 2"),
        (shorter_lens, r"8 tokens, but the documents in x_idx\.npz sum to 4"),
        (negative_lens, r"x_idx\.npz: document 1 has length -1"),
        (no_lens, r"x_idx\.npz: no array 'lens' in it \(there is length\)"),
        (float_lens, r"x_idx\.npz: lens has type float64"),
        (broken_index, r"x_idx\.npz: not a whole \.npz archive"),
        (flipped_index, r"x_idx\.npz, array 'lens': not a whole \.npz archive"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_files_are_named_with_the_place(
    damage: Callable[[Path], None], problem: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=problem):
        open_tokens(folder)


@pytest.mark.parametrize(
    ("dtype", "value", "problem"),
    [
        (np.uint16, 10, r"token 5 \(document 2\) has id 10, outside a vocabulary of 10"),
        (np.int32, -1, r"token 5 \(document 2\) has id -1, outside"),
    ],
)
def test_an_id_outside_the_vocabulary_is_named_with_its_document(
    dtype: type, value: int, problem: str, folder: Path
) -> None:
    np.save(folder / "x_ids.npy", np.array([5, 6, 9, 9, 1, value, 3, 9], dtype))
    assert open_tokens(folder).num_tokens == 8
    with pytest.raises(DataError, match=problem):
        open_tokens(folder, vocab_size=10)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"vocab_size": "many"}', "vocab_size is 'many'"),
    ],
)
def test_broken_meta_data_are_named(content: str, problem: str, folder: Path) -> None:
    (folder / "meta.json").write_text(content)
    with pytest.raises(DataError, match=rf"meta\.json: {problem}"):
        open_tokens(folder)


def test_paths_without_token_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="no token files"):
        open_tokens(tmp_path)
    with pytest.raises(DataError, match=r"a\.txt: is a file, not a prepared folder"):
        open_tokens(tmp_path / "a.txt")
    with pytest.raises(DataError, match="does not exist"):
        open_tokens(tmp_path / "none")
