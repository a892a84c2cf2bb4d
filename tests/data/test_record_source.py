"""MindRecord files as input of `prepare`: the stream of ids, its documents, what is refused."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.data.inputs import find_inputs
from fastffn_cli.data.prepare import Request, prepare
from fastffn_cli.data.record_source import BATCH_TOKENS
from fastffn_cli.data.token_files import open_tokens
from fastffn_cli.data.tokenizer import build_bytes_tokenizer
from fastffn_cli.errors import DataError
from tests.interop.mindrecord_files import write_mindrecord

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mindspore"
ROWS = [[3, 4, 96], [5, 96, 6], [7, 8, 9], [96, 1, 2]]


@pytest.fixture
def out_dir(tmp_path):
    return tmp_path / "out"


def prepare_rows(tmp_path, rows, **options):
    file = write_mindrecord(tmp_path / "a.mindrecord", rows, page_size=1 << 16)
    return prepare(Request((file,), tmp_path / "out", **options))


def stream_of(folder):
    (file,) = open_tokens(folder).files
    return file.ids.tolist()


def documents_of(folder):
    (file,) = open_tokens(folder).files
    return [
        file.ids[file.start_of(number) : file.start_of(number + 1)].tolist()
        for number in range(file.num_documents)
    ]


def test_ids_of_mindspores_file_are_all_there_in_order(tmp_path, out_dir):
    file = tmp_path / "tiny_text.mindrecord"
    with gzip.open(FIXTURES / f"{file.name}.gz") as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    shutil.copy(FIXTURES / f"{file.name}.db", tmp_path)
    meta = prepare(Request((file,), out_dir, eos_id=96))
    expected = np.load(FIXTURES / "tiny_text.npy")
    assert stream_of(out_dir) == expected.reshape(-1).tolist()
    assert (meta["rows"], meta["row_tokens"], meta["eos_id"]) == (20, [33, 33], 96)
    ends = [document[-1] == 96 for document in documents_of(out_dir)]
    assert sum(ends) == (expected == 96).sum()
    assert all(ends[:-1])  # the stream stops inside the last one


def test_documents_end_at_end_of_text_and_go_on_from_row_to_row(tmp_path, out_dir):
    meta = prepare_rows(tmp_path, ROWS, eos_id=96)
    assert documents_of(out_dir) == [[3, 4, 96], [5, 96], [6, 7, 8, 9, 96], [1, 2]]
    assert (meta["documents"], meta["tokens"], meta["empty_documents"]) == (4, 12, 0)


def test_without_end_of_text_each_row_is_a_document(tmp_path, out_dir, capsys):
    meta = prepare_rows(tmp_path, ROWS)
    assert documents_of(out_dir) == ROWS
    assert (meta["eos_id"], meta["tokenizer"], meta["vocab_size"]) == (None, None, None)
    assert "end-of-text id is not known" in capsys.readouterr().err


def test_end_of_text_that_does_not_occur_divides_nothing_and_is_said(tmp_path, out_dir, capsys):
    meta = prepare_rows(tmp_path, ROWS, eos_id=50)
    assert documents_of(out_dir) == ROWS
    assert meta["eos_id"] == 50
    assert "(id 50) does not occur" in capsys.readouterr().err


def test_gpt2s_end_of_text_is_known_where_it_is_the_largest_id(tmp_path, out_dir, capsys):
    prepare_rows(tmp_path, [[1, 50256, 2], [3, 4, 50256]])
    assert documents_of(out_dir) == [[1, 50256], [2, 3, 4, 50256]]
    assert "GPT-2's end-of-text" in capsys.readouterr().err


def test_gpt2s_end_of_text_is_not_guessed_in_a_larger_vocabulary(tmp_path, out_dir):
    meta = prepare_rows(tmp_path, [[1, 50256, 2], [3, 50257, 4]])
    assert meta["documents"] == 2
    assert meta["eos_id"] is None


@pytest.mark.parametrize(
    ("largest", "dtype"), [(65533, "uint16"), (65534, "int32"), (2**31 - 1, "int32")]
)
def test_ids_are_stored_in_the_type_that_holds_them(largest, dtype, tmp_path, out_dir):
    assert prepare_rows(tmp_path, [[1, largest]])["dtype"] == dtype
    assert stream_of(out_dir) == [1, largest]


@pytest.mark.parametrize("wrong", [-1, 2**31])
def test_numbers_that_are_no_ids_are_refused_with_their_row(wrong, tmp_path, out_dir):
    with pytest.raises(DataError, match=rf"a\.mindrecord: row 1 has {wrong}"):
        prepare_rows(tmp_path, [[1, 2], [3, wrong]])
    assert not out_dir.exists()


def test_several_files_are_one_stream_and_a_document_ends_with_its_file(tmp_path, out_dir):
    names = ["x.mindrecord0", "x.mindrecord1", "x.mindrecord2"]
    for number, name in enumerate(names):
        write_mindrecord(tmp_path / name, [[number, 1], [96, number + 5]], shards=names)
    meta = prepare(Request((tmp_path,), out_dir, eos_id=96))
    assert documents_of(out_dir) == [[0, 1, 96], [5], [1, 1, 96], [6], [2, 1, 96], [7]]
    assert [source["name"] for source in meta["sources"]] == [
        str(tmp_path / name) for name in names
    ]


def test_missing_files_of_a_set_are_said(tmp_path, out_dir, capsys):
    names = ["x.mindrecord0", "x.mindrecord1"]
    file = write_mindrecord(tmp_path / names[0], ROWS, shards=names)
    prepare(Request((file,), out_dir))
    assert "one of a set of 2 files; not read: x.mindrecord1" in capsys.readouterr().err


def test_a_stream_of_many_batches_is_whole(tmp_path, out_dir):
    source = np.random.default_rng(4)
    rows = [source.integers(0, 97, source.integers(0, 2000)).tolist() for _ in range(800)]
    tokens = sum(map(len, rows))
    assert tokens > 2 * BATCH_TOKENS
    meta = prepare_rows(tmp_path, rows, eos_id=96)
    ids = [token for row in rows for token in row]
    assert stream_of(out_dir) == ids
    assert meta["empty_documents"] == sum(not row for row in rows)
    documents = documents_of(out_dir)
    assert all(document[-1] == 96 and 96 not in document[:-1] for document in documents[:-1])
    assert len(documents) == ids.count(96) + (ids[-1] != 96)


def test_a_tokenizer_is_saved_and_tells_end_of_text(tmp_path, out_dir):
    meta = prepare_rows(tmp_path, [[104, 105, 256], [106, 256, 107]], tokenizer="bytes")
    opened = open_tokens(out_dir)
    assert (opened.vocab_size, opened.eos_id, opened.tokenizer_dir) == (257, 256, out_dir)
    assert (meta["tokenizer"], meta["documents"]) == ("bytes", 3)
    assert json.loads((out_dir / "meta.json").read_text("utf-8")) == meta


def test_a_tokenizer_with_fewer_ids_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"row 1 has id 257, the tokenizer bytes has 257 ids"):
        prepare_rows(tmp_path, [[1, 2], [3, 257]], tokenizer="bytes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "train:300"}, "nothing to train on"),
        ({"tokenizer": "bytes", "eos_id": 5}, "end-of-text of the tokenizer is 256"),
        ({"eos_token": "</s>"}, "no --tokenizer is named"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        prepare_rows(tmp_path, ROWS, **options)


def test_the_end_of_text_id_is_not_for_text(tmp_path, out_dir):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="--eos-id is for MindRecord"):
        prepare(Request((tmp_path / "a.txt",), out_dir, "bytes", eos_id=3))


def test_text_and_records_are_not_mixed(tmp_path, out_dir):
    write_mindrecord(tmp_path / "a.mindrecord", ROWS)
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(DataError, match=r"(?s)not mixed with text: .*a\.mindrecord, .*b\.txt"):
        prepare(Request((tmp_path,), out_dir))


def test_all_unreadable_files_are_told_at_once(tmp_path, out_dir):
    for name in ("a", "b"):
        write_mindrecord(tmp_path / name, ROWS, version="1.0")
    with pytest.raises(DataError, match=r"(?s)a: MindRecord of version.*b: MindRecord of version"):
        prepare(Request((tmp_path,), out_dir))


def test_records_are_known_by_their_content_and_their_indices_are_passed_over(tmp_path):
    for name in ("train", "x.mindrecord"):
        write_mindrecord(tmp_path / name, ROWS)
    (tmp_path / "other.db").write_bytes(b"something")
    found = find_inputs([tmp_path])
    assert [(file.path.name, file.kind) for file in found.files] == [
        ("train", "mindrecord"),
        ("x.mindrecord", "mindrecord"),
    ]
    (notice,) = found.notices
    assert notice.endswith("left out: other.db")


def test_an_index_named_as_input_leads_to_its_file(tmp_path):
    file = write_mindrecord(tmp_path / "x.mindrecord", ROWS)
    with pytest.raises(DataError, match="an SQLite database") as caught:
        find_inputs([tmp_path / "x.mindrecord.db"])
    assert caught.value.hint == f"name the MindRecord itself: {file}"


def test_what_only_bears_the_name_is_refused(tmp_path):
    (tmp_path / "x.mindrecord").write_bytes(b"nothing")
    (tmp_path / "x.mindrecord.gz").write_bytes(gzip.compress(b"nothing"))
    for name in ("x.mindrecord", "x.mindrecord.gz"):
        with pytest.raises(DataError, match="mindrecord files are not read") as caught:
            find_inputs([tmp_path / name])
        assert "gunzip" in str(caught.value.hint)


def test_records_are_no_text(tmp_path):
    from fastffn_cli.tasks.eval_data import TextData

    file = write_mindrecord(tmp_path / "x.mindrecord", ROWS)
    data = TextData(find_inputs([file]).files[0], build_bytes_tokenizer(), json_key="text")
    with pytest.raises(DataError, match="holds token ids and no text"):
        list(data.chunks())
