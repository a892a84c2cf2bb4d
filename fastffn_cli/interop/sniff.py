"""What a file or folder seems to be, for the message that refuses it."""

from __future__ import annotations

import json
from pathlib import Path

HEAD_BYTES = 512
NUMPY = "a NumPy file"
# First bytes of files that people mistake for checkpoints, and what to call them.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer: the file itself was not fetched (git lfs pull)",
    ),
    (b"<!DOCTYPE", "a web page: the download went wrong"),
    (b"<!doctype", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
    (b"<?xml", "an XML document, probably an error message of a download"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive: unpack it first (gunzip or tar -xzf)"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it first"),
    (b"(\xb5/\xfd", "a zstd archive: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (TensorFlow or Keras)"),
    (b"\x93NUMPY", f"{NUMPY} (.npy)"),
    (b"SQLite format 3\x00", "an SQLite database (the index of a MindRecord file?)"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"\x89PNG", "a picture"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
)
MARKS_IN_FOLDERS = (
    ("metrics.jsonl", "a run folder without a finished checkpoint"),
    ("*_ids.npy", "a folder of token files"),
    ("pytorch_model*.bin", "a folder of PyTorch weights"),
    ("*.safetensors", "a folder of safetensors weights"),
    ("*.pdparams", "a folder of Paddle weights"),
    ("*.ckpt", "a folder with .ckpt files: name one of them"),
    ("*.bin", "a folder of .bin files"),
    ("tf_model.h5", "a folder of TensorFlow weights"),
)


def seems_to_be(path: Path) -> str:
    """Say in a few words what is at `path`; never raises for what is there."""
    try:
        if path.is_dir():
            return _folder(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"not readable ({error.strerror})"
    if not head:
        return "an empty file"
    if set(head) == {0}:
        return "a file of zeros: the copy is incomplete"
    for signature, words in SIGNATURES:
        if head.startswith(signature):
            return words
    return _by_structure(head, size)


def _folder(folder: Path) -> str:
    config = folder / "config.json"
    if config.is_file():
        try:
            kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError, OSError):
            return "a folder with a damaged config.json"
        return f"a folder with a config.json of model_type {kind!r}"
    for pattern, words in MARKS_IN_FOLDERS:
        files = sorted(folder.glob(pattern))
        if len(files) == 1 and files[0].is_file():
            return f"{words}, of which {files[0].name} is {seems_to_be(files[0])}"
        if files:
            return words
    return "an empty folder" if not any(folder.iterdir()) else "a folder of something else"


def _by_structure(head: bytes, size: int) -> str:
    if head[8:22] == b'{"header_size"':
        return "a MindRecord, training data: fastffn prepare FILE --out DIR"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "a safetensors file"
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return "a Python pickle of something else, or a damaged one"
    if head[0] == 0x0A:
        return "perhaps a protobuf file (MindSpore .ckpt?), damaged or of another kind"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return "a binary file of an unknown kind"
        text = head[: error.start].decode("utf-8")
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"a text that begins with {first[:40]!r}"
