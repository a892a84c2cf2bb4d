from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from fastffn_cli.data import documents
from fastffn_cli.data.cutting import cut_into
from fastffn_cli.data.documents import Piece, Progress, read_pieces
from fastffn_cli.data.inputs import find_inputs
from fastffn_cli.errors import DataError
from tests.data.texts import ENGLISH

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: bytes) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return file

    return write_file


def read(path: Path, progress: Progress | None = None, **options: str) -> list[Piece]:
    (source,) = find_inputs([path]).files
    key = options.get("json_key", "text")
    cut = len  # anywhere
    return list(read_pieces(source, json_key=key, cut=cut, progress=progress or Progress()))


def test_a_text_file_is_one_document_with_its_blanks(write: Write) -> None:
    assert read(write("a.txt", b"  one\n\n two \n")) == [Piece("  one\n\n two \n", True)]


def test_windows_line_ends_and_byte_order_mark_are_normalised(write: Write) -> None:
    assert read(write("a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n"))[0].text == "one\ntwo\nthree\n"


def test_json_lines_are_stripped_documents_and_blank_ones_are_counted(write: Write) -> None:
    progress = Progress()
    content = b'{"text": " one "}\n\n{"text": "  "}\n{"text": "two\\n", "x": 1}'
    assert read(write("a.jsonl", content), progress) == [Piece("one", True), Piece("two", True)]
    assert progress.empty_documents == 1


def test_another_json_key_is_read(write: Write) -> None:
    assert read(write("a.jsonl", b'{"body": "x"}'), json_key="body") == [Piece("x", True)]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_gzip_reads_the_same(name: str, write: Write) -> None:
    content = b'{"text": "one two"}\n' * 5
    assert read(write(name + ".gz", content)) == read(write(name, content))


@pytest.mark.parametrize("portion", [1, 2, 3, 7, 64])
def test_long_text_in_pieces_is_the_same_text(
    portion: int, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARS", portion)
    text = "é日😀 a\r\nb\n" * 9
    pieces = read(write("a.txt", text.encode()))
    assert "".join(piece.text for piece in pieces) == text.replace("\r\n", "\n")
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_an_empty_text_file_is_skipped_and_counted(write: Write) -> None:
    progress = Progress()
    assert read(write("a.txt", b" \n\n"), progress) == []
    assert progress.empty_documents == 1


@pytest.mark.parametrize("portion", [3, 1 << 18])
def test_undecodable_text_names_line_and_byte(
    portion: int, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARS", portion)
    file = write("a.txt", "äb\nöd\nxy".encode() + b"\xff\xfez")
    with pytest.raises(DataError, match=r"a\.txt:3: byte 10 \(ff") as caught:
        read(file)
    assert "iconv" in str(caught.value.hint)


def test_a_character_cut_off_at_the_end_is_named(write: Write) -> None:
    with pytest.raises(DataError, match=r"a\.txt:2: byte 3 \(e6 97\)"):
        read(write("a.txt", b"ab\n\xe6\x97"))


def test_utf16_gets_its_own_remedy(write: Write) -> None:
    with pytest.raises(DataError) as caught:
        read(write("a.txt", "text".encode("utf-16")))
    assert "iconv -f UTF-16" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "x"', r"a\.jsonl:2: not JSON"),
        (b"[1]", r"a\.jsonl:2: list instead of a JSON object"),
        (b'{"txt": "x"}', r"a\.jsonl:2: no key 'text' \(the keys are: 'txt'\)"),
        (b'{"text": null}', r"a\.jsonl:2: 'text' is NoneType"),
        (b'{"text": "a\\ud83d"}', r"a\.jsonl:2: 'text' has an unpaired surrogate at character 1"),
        (b'{"text": "\xe9"}', r"a\.jsonl:2: byte 23 \(e9"),
        (b"[" * 200_000, r"a\.jsonl:2: not JSON"),
    ],
)
def test_a_bad_line_is_named(line: bytes, problem: str, write: Write) -> None:
    with pytest.raises(DataError, match=problem):
        read(write("a.jsonl", b'{"text":"x"}\n' + line + b'\n{"text": "y"}\n'))


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "flipped"])
def test_a_damaged_gzip_file_is_named(damage: str, write: Write) -> None:
    file = write("a.txt.gz", ENGLISH[:20_000].encode())
    content = file.read_bytes()
    damaged = {
        "truncated": content[:2000],
        "no gzip": b"plain text",
        "flipped": content[:300] + bytes(64) + content[364:],
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"a\.txt\.gz: damaged gzip"):
        read(file)


def test_a_folder_is_read_recursively_in_sorted_order_without_hidden_files(
    write: Write, tmp_path: Path
) -> None:
    for name in ("b.txt", "a/z.jsonl", "a/b/c.TXT", "c.txt.gz", ".hidden.txt", ".git/x.txt"):
        write("in/" + name, b"text")
    write("in/readme.md", b"")
    write("in/a/table.csv", b"")
    found = find_inputs([tmp_path / "in"])
    names = [file.path.relative_to(tmp_path / "in").as_posix() for file in found.files]
    assert names == ["a/b/c.TXT", "a/z.jsonl", "b.txt", "c.txt.gz"]
    (notice,) = found.notices
    assert "2 files" in notice
    assert "a/table.csv, readme.md" in notice


def test_a_file_named_twice_is_read_once(write: Write, tmp_path: Path) -> None:
    file = write("in/a.txt", b"text")
    found = find_inputs([file, tmp_path / "in"])
    assert len(found.files) == 1
    assert "named twice" in found.notices[0]


def test_a_named_file_of_unknown_kind_is_plain_text_with_a_notice(write: Write) -> None:
    found = find_inputs([write("wiki.test.raw", b"x")])
    assert found.files[0].kind == "text"
    assert "plain text" in found.notices[0]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.zst", "a_ids.npy", "a.parquet"])
def test_a_named_file_that_is_no_text_gets_a_remedy(name: str, write: Write) -> None:
    with pytest.raises(DataError) as caught:
        find_inputs([write(name, b"x")])
    assert caught.value.hint


def test_missing_and_empty_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: there is no such file"):
        find_inputs([tmp_path / "none.txt"])
    with pytest.raises(DataError, match=r"no \.txt or \.jsonl files"):
        find_inputs([tmp_path])


def test_slices_for_training_are_the_text_cut_at_blanks() -> None:
    slices = list(cut_into(ENGLISH[:50_000], 1000))
    assert "".join(slices) == ENGLISH[:50_000]
    assert all(len(part) <= 1000 and part[0] in " \n" for part in slices[1:])
    assert list(cut_into("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]
