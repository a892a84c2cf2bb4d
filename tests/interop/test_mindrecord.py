"""MindRecord files, read without MindSpore.

`tests/fixtures/mindspore`: `tiny_text` (one column) was written by MindSpore 2.0, `columns` (three
integer columns of 64 bits, a number and a string) by 2.7; the .npy files hold what went in.
"""

import gzip
import json
import lzma
import os
import shutil
import sqlite3
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.errors import DataError
from fastffn_cli.interop.mindrecord import (
    looks_like_mindrecord,
    open_mindrecord,
    unpack_integers,
)
from fastffn_cli.interop.sniff import seems_to_be
from tests.interop.mindrecord_files import change_header, pack, write_index, write_mindrecord

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mindspore"
ROWS = [[5, 200, 40_000, 0], [7], [50_256, -1, 2**40], list(range(300))]


@pytest.fixture
def file(tmp_path):
    return write_mindrecord(tmp_path / "a.mindrecord", ROWS)


def rows_of(file):
    return [row.tolist() for row in open_mindrecord(file).rows()]


def refused(file):
    with pytest.raises(DataError) as caught:
        rows_of(file)
    return f"{caught.value}\n{caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "unpack"),
    [("tiny_text.mindrecord.gz", gzip.open), ("columns.mindrecord.xz", lzma.open)],
)
def test_files_of_mindspore_give_what_went_in(name, unpack, tmp_path):
    file = tmp_path / Path(name).stem
    with unpack(FIXTURES / name) as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    shutil.copy(FIXTURES / f"{file.name}.db", tmp_path)
    assert looks_like_mindrecord(file)
    expected = np.load(FIXTURES / f"{file.stem}.npy")
    assert rows_of(file) == expected.tolist()


def test_rows_over_several_pages_come_in_order(file, tmp_path):
    assert rows_of(file) == ROWS
    many = [[number % 7] * (number % 50 + 1) for number in range(500)]
    opened = open_mindrecord(write_mindrecord(tmp_path / "b", many))
    assert [row.tolist() for row in opened.rows()] == many
    assert (opened.num_rows, opened.column) == (500, "text")


def test_random_integers_are_unpacked():
    source = np.random.default_rng(2)
    for count in (0, 1, 3, 4, 5, 1025):
        values = source.integers(-(2**62), 2**62, count) >> source.integers(0, 62, count)
        assert unpack_integers(pack(values.tolist())).tolist() == values.tolist()


def test_packed_integers_that_are_cut_off_or_too_long_are_refused():
    packed = pack([1, 200, 70_000, 2**40])
    for length in range(len(packed)):
        with pytest.raises(ValueError, match=r"ends inside|takes? another|bytes"):
            unpack_integers(packed[:length] or b"\x01")
    with pytest.raises(ValueError, match="take another number"):
        unpack_integers(packed + b"\0")


def test_a_row_may_have_no_integers(tmp_path):
    assert rows_of(write_mindrecord(tmp_path / "a", [[], [1]])) == [[], [1]]


def test_a_count_that_a_row_merely_claims_costs_no_memory():
    tracemalloc.start()
    with pytest.raises(ValueError, match="ends inside its 4,294,967,295 integers"):
        unpack_integers(b"\xff\xff\xff\xff" + bytes(50))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_input_ids_are_read_and_text_goes_first(tmp_path):
    file = write_mindrecord(tmp_path / "a", ROWS, column="input_ids")
    assert open_mindrecord(file).column == "input_ids"
    both = {"text": {"type": "string"}, "input_ids": {"type": "int64", "shape": [-1]}}
    change_header(file, schema=[{"schema": both, "blob_fields": ["input_ids"]}])
    assert open_mindrecord(file).column == "input_ids"


@pytest.mark.parametrize(
    ("schema", "blobs", "message"),
    [
        ({"text": {"type": "float32", "shape": [-1]}}, ["text"], r"it has text \(float32\)"),
        ({"text": {"type": "bytes"}}, ["text"], r"it has text \(bytes\)"),
        ({"text": {"type": "int32"}}, [], r"it has text \(int32, one a row\)"),
        ({"image": {"type": "bytes"}, "n": {"type": "int32"}}, ["image"], r"image \(bytes\), n"),
    ],
)  # fmt: skip
def test_other_columns_are_refused_and_listed(schema, blobs, message, file):
    change_header(file, schema=[{"schema": schema, "blob_fields": blobs}])
    with pytest.raises(DataError, match=message):
        open_mindrecord(file)


def test_a_missing_index_is_asked_for(file):
    file.with_name("a.mindrecord.db").unlink()
    said = refused(file)
    assert "a.mindrecord.db is not there" in said
    assert "copy a.mindrecord.db beside it" in said


def test_an_index_of_another_file_is_refused(file):
    write_index(file, [(0, 0, 20)])
    assert "has 4 rows, its index a.mindrecord.db has 1" in refused(file)


def test_an_index_is_read_and_nothing_is_written_beside_it(file, tmp_path):
    for path in (file, file.with_name("a.mindrecord.db")):
        path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert rows_of(file) == ROWS
    finally:
        tmp_path.chmod(0o700)
    assert len(list(tmp_path.iterdir())) == 2


def test_odd_folder_names_are_no_problem(tmp_path):
    folder = tmp_path / "50% off? #1 é"
    folder.mkdir()
    assert rows_of(write_mindrecord(folder / "a b.mindrecord", ROWS)) == ROWS


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 0, 99_999), "damaged index"),
        ((0, 20, 10), "damaged index"),
        ((-1, 0, 20), "damaged index"),
        (("x", 0, 20), "damaged index"),
        ((77, 0, 20), "is not in the file"),
        ((0, 1, 20), "does not begin with its length"),
        ((0, 0, 5), "does not begin with its length"),
    ],
)
def test_places_that_cannot_be_are_refused_with_the_row(place, message, file):
    write_index(file, [(0, 0, 17), place, (0, 0, 17), (0, 0, 17)])
    with sqlite3.connect(file.with_name("a.mindrecord.db")) as database:
        right = (0, 0, 8 + len(pack(ROWS[0])))
        database.execute("UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = ? WHERE ROW_ID = 0", right[2:])
    said = refused(file)
    assert "row 1 " in said
    assert message in said


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE INDEXES",
        "ALTER TABLE INDEXES RENAME TO OTHER",
        "ALTER TABLE INDEXES RENAME COLUMN PAGE_ID_BLOB TO P",
    ],
)
def test_a_database_that_is_no_index_is_refused(statement, file):
    with sqlite3.connect(file.with_name("a.mindrecord.db")) as database:
        database.execute(statement)
        if "OTHER" in statement:  # an endless view in the place of the table
            database.execute(
                "CREATE VIEW INDEXES AS WITH RECURSIVE n(ROW_ID) AS (SELECT 1 UNION ALL SELECT "
                "ROW_ID + 1 FROM n) SELECT ROW_ID, 0 PAGE_ID_BLOB FROM n"
            )
    assert "a.mindrecord.db: " in refused(file)


def test_a_damaged_index_is_refused(file):
    index = file.with_name("a.mindrecord.db")
    content = bytearray(index.read_bytes())
    content[4096:] = b"\xff" * len(content[4096:])
    index.write_bytes(content)
    assert "damaged index" in refused(file)
    index.write_bytes(b"nothing of the kind")
    assert "damaged index" in refused(file)


def test_a_file_cut_off_anywhere_is_refused(file):
    whole = file.read_bytes()
    used = len(whole.rstrip(b"\0"))
    for length in (used - 1, 4097, 4096):
        file.write_bytes(whole[:length])
        assert "its pages take" in refused(file)
    for length in (300, 9, 8, 0):
        file.write_bytes(whole[:length])
        assert not looks_like_mindrecord(file)
        assert "not a MindRecord" in refused(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "2.0"},
        {"page_size": "x"},
        {"header_size": -5},
        {"page": 5},
        {"page": [{}]},
        {"page": [{"page_type": "BLOB_DATA", "page_id": 1.5, "page_size": 1, "end_row_id": 1}]},
        {"schema": []},
        {"schema": [{"schema": [], "blob_fields": ["text"]}]},
        {"schema": [{"schema": {"text": None}, "blob_fields": ["text"]}]},
    ],
    ids=str,
)
def test_headers_that_make_no_sense_are_refused(changes, file):
    change_header(file, **changes)
    assert "version" in refused(file) or "header is damaged" in refused(file)


def test_damaged_files_are_refused_and_nothing_else_happens(file):
    source = np.random.default_rng(7)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    used = np.flatnonzero(whole)
    for _ in range(300):
        damaged = whole.copy()
        damaged[source.choice(used, 3)] = source.integers(0, 256, 3)
        file.write_bytes(damaged.tobytes())
        try:
            rows_of(file)
        except DataError:
            continue


def test_a_mindrecord_in_the_place_of_a_checkpoint_is_known(file):
    assert "fastffn prepare" in seems_to_be(file)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not looks_like_mindrecord(tmp_path / "pipe")


def test_safetensors_are_no_mindrecord(tmp_path):
    from safetensors.numpy import save_file

    save_file({"text": np.zeros(3)}, tmp_path / "a.safetensors")
    assert not looks_like_mindrecord(tmp_path / "a.safetensors")
    assert not looks_like_mindrecord(tmp_path / "absent")
    assert not looks_like_mindrecord(tmp_path)


def test_inspect_tells_rows_tokens_and_the_largest_id(file, fastffn):
    done = fastffn("inspect", file, "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown == {
        "kind": "MindRecord", "path": str(file), "column": "text", "rows": 4, "tokens": 308,
        "shortest": 1, "longest": 300, "largest_id": 2**40, "bytes": file.stat().st_size,
        "first": ROWS[0],
    }  # fmt: skip
    text = fastffn("inspect", file).out
    assert "4 of 1 to 300 ids" in text
    assert "308, largest id" in text
