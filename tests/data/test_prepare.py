from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.data.cutting import Cutter
from fastffn_cli.data.describe import describe_tokens, fingerprint, identify_tokens
from fastffn_cli.data.documents import Piece
from fastffn_cli.data.encoding import TEXT_CHARS, TextBatch, encode_batches
from fastffn_cli.data.prepare import Request, prepare
from fastffn_cli.data.token_files import open_tokens
from fastffn_cli.data.token_writer import npy_header
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.errors import DataError
from tests.conftest import ROOT_DIR, program, program_env
from tests.data.texts import AWKWARD, ENGLISH

RUN = (
    "import re, sys\n"
    "from pathlib import Path\n"
    "from fastffn_cli.data.prepare import Request, prepare\n"
    "prepare(Request((Path(sys.argv[1]),), Path(sys.argv[2]), sys.argv[3], workers=2))\n"
    # Not getrusage: its maximum counts the parent's memory before the exec, too.
    "status = Path('/proc/self/status').read_text()\n"
    "print(1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]))\n"
)


@pytest.fixture
def text_dir(tmp_path: Path) -> Path:
    """Five documents in three files, and one that is empty."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(ENGLISH[:30_000], "utf-8")
    lines = [json.dumps({"text": text}) for text in ("one", AWKWARD, "  ", ENGLISH[:999])]
    (folder / "b.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"packed"))
    return folder


def documents_of(folder: Path) -> list[str]:
    """Read a prepared folder back into texts, checking that each ends with end-of-text."""
    opened = open_tokens(folder)
    tokenizer = Tokenizer.load(folder)
    texts = []
    for file in opened.files:
        for document in range(file.num_documents):
            ids = file.ids[file.start_of(document) : file.start_of(document + 1)].tolist()
            assert ids[-1] == tokenizer.eos_id
            assert tokenizer.eos_id not in ids[:-1]
            texts.append(tokenizer.decode(ids[:-1]))
    return texts


def big_text(file: Path, megabytes: int) -> Path:
    with file.open("w", encoding="utf-8") as stream:
        while stream.tell() < megabytes * 1_000_000:
            stream.write(ENGLISH)
    return file


@pytest.mark.parametrize("spec", ["bytes", "train:500"])
def test_documents_come_back_exactly_in_order(spec: str, text_dir: Path, tmp_path: Path) -> None:
    meta = prepare(Request((text_dir,), tmp_path / "out", spec, workers=2))
    expected = [ENGLISH[:30_000], "one", AWKWARD.strip(), ENGLISH[:999].strip(), "packed"]
    assert documents_of(tmp_path / "out") == expected
    assert (meta["documents"], meta["empty_documents"]) == (5, 1)
    assert meta["utf8_bytes"] == sum(len(text.encode()) for text in expected)


def test_files_are_fleetx_format(text_dir: Path, tmp_path: Path) -> None:
    meta = prepare(Request((text_dir,), tmp_path / "corpus", "bytes"))
    ids = np.load(tmp_path / "corpus" / "corpus_ids.npy", allow_pickle=False)
    index = np.load(tmp_path / "corpus" / "corpus_idx.npz", allow_pickle=False)
    assert (ids.dtype, index["lens"].dtype, index["docs"].dtype) == ("<u2", "<i4", "<i8")
    assert index["lens"].sum() == ids.size == meta["tokens"]
    assert index["docs"].tolist() == [0, 1, 2, 3, 4, 5]
    files = sorted(file.name for file in (tmp_path / "corpus").iterdir())
    assert files == [
        "corpus_ids.npy",
        "corpus_idx.npz",
        "meta.json",
        "tokenizer.json",
        "tokenizer_meta.json",
    ]
    assert json.loads((tmp_path / "corpus" / "meta.json").read_text("utf-8")) == meta


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b", "utf-8")
    prepare(Request((tmp_path / "a.txt",), tmp_path / "small", "bytes"))
    saved = json.loads((tmp_path / "small" / "tokenizer.json").read_text("utf-8"))
    saved["model"]["vocab"].update({f"w{number}": 257 + number for number in range(65_300)})
    (tmp_path / "large.json").write_text(json.dumps(saved), "utf-8")
    prepare(Request((tmp_path / "a.txt",), tmp_path / "large", str(tmp_path / "large.json")))
    opened = open_tokens(tmp_path / "large")
    assert opened.files[0].ids.dtype == np.int32
    assert opened.vocab_size == 65_557


@pytest.mark.parametrize("count", [0, 1, 10**15])
def test_our_npy_header_is_read_by_numpy(count: int, tmp_path: Path) -> None:
    file = tmp_path / "header"
    file.write_bytes(npy_header(np.dtype("<u2"), count))
    with file.open("rb") as stream:
        assert np.lib.format.read_magic(stream) == (1, 0)
        header = np.lib.format.read_array_header_1_0(stream)
        assert stream.tell() == 128
    assert header == ((count,), False, np.dtype("<u2"))


def test_any_number_of_workers_writes_the_same_bytes(text_dir: Path, tmp_path: Path) -> None:
    (text_dir / "long.txt").write_text(ENGLISH * 2, "utf-8")
    for workers in (1, 2, 5):
        folder = tmp_path / str(workers)
        prepare(Request((text_dir,), folder, "train:400", name="x", workers=workers))
    for file in (tmp_path / "1").iterdir():
        for workers in ("2", "5"):
            assert (tmp_path / workers / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_document_in_many_pieces_is_one_document_with_the_same_tokens(tmp_path: Path) -> None:
    text = ENGLISH * 2  # several batches long
    (tmp_path / "a.txt").write_text(text, "utf-8")
    meta = prepare(Request((tmp_path / "a.txt",), tmp_path / "out", "train:400", workers=2))
    assert meta["documents"] == 1
    ids = open_tokens(tmp_path / "out").files[0].ids
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]


def test_an_existing_folder_is_never_overwritten(text_dir: Path, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    (out_dir / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="is there already"):
        prepare(Request((text_dir,), out_dir, "bytes"))
    assert [file.name for file in out_dir.iterdir()] == ["mine.txt"]


def test_an_empty_folder_may_become_the_output(text_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare(Request((text_dir,), tmp_path / "out", "bytes"))
    assert open_tokens(tmp_path / "out").num_documents == 5


def test_an_error_on_the_way_leaves_nothing(text_dir: Path, tmp_path: Path) -> None:
    (text_dir / "z.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"z\.jsonl:2: byte 25"):
        prepare(Request((text_dir,), tmp_path / "out", "bytes"))
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_input_without_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n ")
    for spec in ("bytes", "train:300"):
        with pytest.raises(DataError, match="every document is empty"):
            prepare(Request((tmp_path / "a.txt",), tmp_path / "out", spec))


def test_a_disk_that_is_too_small_is_told_before_the_work(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"9\.8 KiB free, but the token files need at least"):
        prepare(Request((text_dir,), tmp_path / "out", "bytes"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_disk_full_while_writing_is_a_message_and_leaves_nothing(tmp_path: Path) -> None:
    import resource

    big_text(tmp_path / "a.txt", 2)
    done = subprocess.run(
        program("prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--tokenizer", "bytes"),
        env=program_env(),
        cwd=ROOT_DIR,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_prepare_leaves_no_output(number: int, code: int, tmp_path: Path) -> None:
    big_text(tmp_path / "a.txt", 8)
    process = subprocess.Popen(
        program(
            "prepare", tmp_path / "a.txt", "--out", tmp_path / "out", "--tokenizer", "train:300"
        ),
        env=program_env(),
        cwd=ROOT_DIR,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 60
    while not (
        sizes := [f.stat().st_size for f in tmp_path.glob(".out.partial-*/out_ids.npy")]
    ) or (sizes[0] < 1_000_000):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == code, talk
    left = sorted(path.name for path in tmp_path.iterdir())
    if number == signal.SIGKILL:
        assert left == [f".out.partial-{process.pid}", "a.txt"]
    else:
        assert left == ["a.txt"]
        assert "nothing was written" in talk


def test_left_overs_of_a_killed_prepare_are_named(
    text_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".out.partial-123").mkdir()
    prepare(Request((text_dir,), tmp_path / "out", "bytes"))
    assert ".out.partial-123" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("spec", "small", "large"), [("bytes", 10, 60), ("train:2000", 2, 14)], ids=["bytes", "train"]
)
def test_memory_does_not_grow_with_the_input(
    spec: str, small: int, large: int, tmp_path: Path
) -> None:
    peaks = []
    for megabytes in (small, large):
        file = big_text(tmp_path / f"{megabytes}.txt", megabytes)
        done = subprocess.run(
            [sys.executable, "-c", RUN, file, tmp_path / f"out{megabytes}", spec],
            env=program_env(),
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        )
        peaks.append(int(done.stdout))
    # Buffers fill up at first; the whole text and its tokens (28 bytes each in a list) would not
    # fit into this.
    assert peaks[1] - peaks[0] < 80_000_000
    assert peaks[1] < 300_000_000


def test_description_tells_what_is_there(text_dir: Path, tmp_path: Path) -> None:
    meta = prepare(Request((text_dir,), tmp_path / "out", "bytes"))
    described = describe_tokens(tmp_path / "out", split="3,1,1")
    assert json.loads(json.dumps(described)) == described
    assert (described["tokens"], described["documents"]) == (meta["tokens"], 5)
    assert (described["tokenizer"], described["largest_id"]) == ("bytes", 256)
    split = described["split"]
    assert [split[part]["documents"] for part in ("train", "valid", "test")] == [3, 1, 1]
    assert sum(split[part]["tokens"] for part in ("train", "valid", "test")) == meta["tokens"]
    assert [row["text"] for row in described["rows"]][1] == "one<|endoftext|>"


def test_description_of_files_without_tokenizer_shows_ids() -> None:
    described = describe_tokens(Path(__file__).parents[1] / "fixtures" / "fleetx" / "tiny_data")
    assert described["split"]["divided_by"] == "tokens"  # 400 documents leave no test document
    assert described["rows"][0]["text"] is None
    assert described["rows"][0]["ids"][-1] == 127


def test_a_text_is_named_by_its_files_in_their_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("one two\n", encoding="utf-8")
    second.write_text("three\n", encoding="utf-8")
    folders = {}
    for name, files in {"x": (first, second), "y": (first, second), "z": (second, first)}.items():
        prepare(Request(files, tmp_path / name, "bytes"))
        folders[name] = open_tokens(tmp_path / name)
    digits = {name: fingerprint(folder) for name, folder in folders.items()}
    assert digits["x"] == digits["y"] != digits["z"]
    tokens = folders["x"].num_tokens
    assert identify_tokens(folders["x"]) == (
        f"{tokens} tokens in 2 documents; made from a.txt, b.txt; tokenizer bytes; "
        f"fingerprint {digits['x']}"
    )
    assert "made from b.txt, a.txt" in identify_tokens(folders["z"])


def test_other_ids_of_the_same_lengths_are_another_text(text_dir: Path, tmp_path: Path) -> None:
    prepare(Request((text_dir,), tmp_path / "out", "bytes"))
    folder = open_tokens(tmp_path / "out")
    (file,) = folder.files
    ids = np.array(file.ids)
    assert fingerprint(replace(folder, files=(replace(file, ids=ids.astype("int32")),))) == (
        fingerprint(folder)
    )
    ids[0] += 1
    changed = replace(folder, files=(replace(file, ids=ids),))
    assert fingerprint(changed) != fingerprint(folder)


def test_files_of_other_programs_are_named_themselves() -> None:
    folder = open_tokens(Path(__file__).parents[1] / "fixtures" / "fleetx" / "tiny_data")
    assert f"made from {folder.files[0].name}; fingerprint" in identify_tokens(folder)


@pytest.mark.parametrize("sources", ["a.txt", ["a.txt"], [{"file": "a.txt"}], {"name": "a.txt"}])
def test_a_description_of_another_program_is_no_list_of_files(
    sources: object, text_dir: Path, tmp_path: Path
) -> None:
    prepare(Request((text_dir,), tmp_path / "out", "bytes"))
    folder = open_tokens(tmp_path / "out")
    foreign = replace(folder, meta={"sources": sources})
    assert f"made from {folder.files[0].name}; fingerprint" in identify_tokens(foreign)


def test_a_long_document_is_encoded_in_slices() -> None:
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "fixtures" / "hf_gpt2" / "model")
    text = ENGLISH[:100_000]
    batches = [TextBatch([Piece("one", last=True), Piece(text, last=True)])]
    (batch,) = encode_batches(batches, tokenizer, Cutter(tokenizer), workers=1, dtype="i4")
    assert batch.lens.size > 100_000 // TEXT_CHARS
    assert np.flatnonzero(batch.last).tolist() == [0, batch.lens.size - 1]
    whole = [[*tokenizer.encode(each), tokenizer.eos_id] for each in ("one", text)]
    assert batch.ids.tolist() == whole[0] + whole[1]
    assert batch.lens.sum() == batch.ids.size
