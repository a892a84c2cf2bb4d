import json

import numpy as np
import pytest

from fastffn_cli.data import documents
from fastffn_cli.data.inputs import find_inputs
from fastffn_cli.data.prepare import Request, prepare
from fastffn_cli.data.token_files import open_tokens
from fastffn_cli.data.tokenizer import build_tokenizer
from fastffn_cli.tasks import eval_data
from fastffn_cli.tasks.eval_data import ByteCounter, FolderData, TextData, WordCounter

BYTES_EOS = 256
DOCUMENTS = ["one é two", "日本 three", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes")


def read_all(data):
    return np.concatenate([np.empty(0, np.int64), *data.chunks()]).tolist()


def text_data(folder, content, tokenizer, name="text.txt", **options):
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return TextData(find_inputs([file]).files[0], tokenizer, **options)


def test_a_text_is_one_document_that_ends(tmp_path, tokenizer):
    data = text_data(tmp_path, "two  words\n", tokenizer)
    assert read_all(data) == [*b"two  words\n", BYTES_EOS]
    assert (data.num_tokens, data.num_bytes, data.original_tokens) == (11, 10, 3)
    assert data.fraction() == 1.0


def test_every_line_of_a_jsonl_is_a_document(tmp_path, tokenizer):
    lines = "\n".join(json.dumps({"body": text}) for text in DOCUMENTS)
    data = text_data(tmp_path, lines, tokenizer, "docs.jsonl", json_key="body")
    expected = [token for text in DOCUMENTS for token in [*text.encode(), BYTES_EOS]]
    assert read_all(data) == expected
    assert data.num_bytes == sum(len(text.encode()) for text in DOCUMENTS) - 3
    assert data.original_tokens is None


def test_a_long_text_comes_in_pieces_and_gives_the_same(tmp_path, monkeypatch, tokenizer):
    text = "some words, é and 日本語\n" * 400
    whole = read_all(text_data(tmp_path, text, tokenizer))
    monkeypatch.setattr(documents, "PIECE_CHARS", 500)
    data = text_data(tmp_path, text, tokenizer)
    assert len(list(data.chunks())) > 10
    again = text_data(tmp_path, text, tokenizer)
    assert read_all(again) == whole
    assert again.num_bytes == len(text.encode()) - 1
    assert again.original_tokens == len(text.strip().split(" "))


def test_wikitext_is_detokenized_when_it_looks_like_it(tmp_path, tokenizer):
    wiki = " = Title = \n one @-@ two , three . \n"
    data = text_data(tmp_path, wiki, tokenizer)
    assert bytes(read_all(data)[:-1]).decode() == " = Title =\none-two, three.\n"
    assert data.detokenized
    assert data.original_tokens == len(wiki.strip().split(" "))


@pytest.mark.parametrize(("asked", "changed"), [(True, True), (False, False), (None, False)])
def test_detokenization_can_be_asked_for_and_refused(tmp_path, tokenizer, asked, changed):
    text = "plain words , said he"
    data = text_data(tmp_path, text, tokenizer, detokenize=asked)
    assert (bytes(read_all(data)[:-1]).decode() != text) is changed


def test_a_long_detokenized_text_is_encoded_in_pieces(tmp_path, monkeypatch, tokenizer):
    wiki = " = Title = \n" + "one @-@ two , three . " * 300
    whole = read_all(text_data(tmp_path, wiki, tokenizer))
    monkeypatch.setattr(eval_data, "PIECE_CHARS", 300)
    data = text_data(tmp_path, wiki, tokenizer)
    assert len(list(data.chunks())) > 10
    assert read_all(text_data(tmp_path, wiki, tokenizer)) == whole


def folder_of(tmp_path, tokenizer_spec="bytes"):
    file = tmp_path / "docs.jsonl"
    texts = [f"{text} {number}" for number in range(10) for text in DOCUMENTS]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    prepare(Request(inputs=(file,), out_dir=tmp_path / "tokens", tokenizer=tokenizer_spec))
    return open_tokens(tmp_path / "tokens"), texts


def test_a_folder_is_the_stream_of_its_documents(tmp_path, tokenizer):
    folder, texts = folder_of(tmp_path)
    data = FolderData(folder, split="8,1,1", part="all", eos_id=BYTES_EOS, tokenizer=tokenizer)
    assert read_all(data) == [token for text in texts for token in [*text.encode(), BYTES_EOS]]
    assert data.num_bytes == sum(len(text.encode()) - 1 for text in texts)
    assert data.fraction() == 1.0


def test_parts_of_a_folder_follow_the_split(tmp_path, tokenizer):
    folder, texts = folder_of(tmp_path)
    parts = {
        part: read_all(
            FolderData(folder, split="8,1,1", part=part, eos_id=BYTES_EOS, tokenizer=tokenizer)
        )
        for part in ("train", "valid", "test", "all")
    }
    assert parts["train"] + parts["valid"] + parts["test"] == parts["all"]
    assert parts["test"].count(BYTES_EOS) == len(texts) // 10


def test_bytes_of_a_folder_equal_those_of_its_texts(tmp_path):
    folder, texts = folder_of(tmp_path, "train:300")
    trained = build_tokenizer(str(tmp_path / "tokens"))
    data = FolderData(folder, split="8,1,1", part="all", eos_id=trained.eos_id, tokenizer=trained)
    read_all(data)
    firsts = sum(
        len(trained.decode(trained.encode(text)[:1]).strip("\ufffd").encode()) or 1
        for text in texts
    )
    assert data.num_bytes == sum(len(text.encode()) for text in texts) - firsts


def test_without_a_tokenizer_there_are_no_bytes(tmp_path):
    folder, _ = folder_of(tmp_path)
    data = FolderData(folder, split="8,1,1", part="all", eos_id=BYTES_EOS, tokenizer=None)
    read_all(data)
    assert data.num_bytes is None


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
def test_bytes_are_counted_across_chunks_inside_characters(chunk, monkeypatch, tokenizer):
    monkeypatch.setattr(eval_data, "DECODE_TOKENS", 10)
    text = "aé日😀 \ufffd😀日é" * 20
    ids = np.array([*text.encode(), BYTES_EOS, *text.encode()], np.int64)
    counter = ByteCounter(tokenizer, BYTES_EOS)
    for start in range(0, ids.size, chunk):
        counter.add(ids[start : start + chunk])
    assert counter.finish() == 2 * (len(text.encode()) - 1)


@pytest.mark.parametrize(
    "text", ["", " ", "a", " a ", "a b", " \n a  b\nc d \n ", "  x   ", "a b c d e f", "\n\n a"]
)
@pytest.mark.parametrize("width", [1, 2, 3, 100])
def test_words_are_counted_as_fleetx_counts_them(text, width):
    counter = WordCounter()
    for start in range(0, len(text), width):
        counter.add(text[start : start + width])
    assert counter.words == len(text.strip().split(" "))
