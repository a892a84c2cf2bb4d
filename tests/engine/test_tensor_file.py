"""Streaming safetensors: the library's own bytes, in both directions."""

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fastffn_cli.engine.tensor_file import (
    RawReader,
    StoredTensor,
    open_safetensors,
    stored,
    widen_bfloat16,
    write_safetensors,
)
from fastffn_cli.errors import CheckpointError

RNG = np.random.default_rng(7)
ARRAYS = {
    "b.weight": RNG.standard_normal((5, 3)).astype(np.float32),
    "a.weight": RNG.standard_normal((2, 3, 4)).astype(np.float32),
    "half": RNG.standard_normal(7).astype(np.float16),
    "double": RNG.standard_normal((2, 2)),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.5, np.float32),
    "ids": np.arange(6, dtype=np.int64),
}


def test_the_file_is_byte_for_byte_the_librarys(tmp_path):
    floats = {name: ARRAYS[name] for name in ("b.weight", "a.weight", "half", "double", "empty")}
    save_file(floats, tmp_path / "library")
    write_safetensors(tmp_path / "ours", {name: stored(array) for name, array in floats.items()})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()


def test_the_library_reads_what_was_written_with_its_metadata(tmp_path):
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {name: stored(array) for name, array in ARRAYS.items()}, {"a": "b"})
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata() == {"a": "b"}
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(opened.get_tensor(name), array)


def test_what_the_library_wrote_is_read_bit_for_bit(tmp_path):
    save_file(ARRAYS, tmp_path / "x")
    tensors = open_safetensors(tmp_path / "x")
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        tensor = tensors[name]
        assert (tensor.shape, tensor.dtype, tensor.nbytes) == (
            array.shape, array.dtype.name, array.nbytes,
        )  # fmt: skip
        np.testing.assert_array_equal(tensor.read(), array)


def test_bfloat16_is_read_as_the_same_float32_values(tmp_path):
    values = np.float32([1.0, -2.5, 3.0e38, 1e-38, 0.0])
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    (tmp_path / "raw").write_bytes(b"pad!" + bits.tobytes())
    read = RawReader(tmp_path / "raw", 4, (5,), "bfloat16")()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, widen_bfloat16(bits))
    np.testing.assert_array_equal(read[:2], values[:2])


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_cut_file_is_refused_by_name(tmp_path, kept):
    save_file(ARRAYS, tmp_path / "cut")
    content = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match="cut cannot be read"):
        open_safetensors(tmp_path / "cut")


def test_a_tensor_that_is_not_what_was_announced_is_a_mistake_of_the_program(tmp_path):
    wrong = StoredTensor((2,), "float32", lambda: np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "x", {"w": wrong})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_another_type_is_widened_chunk_by_chunk(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("fastffn_cli.engine.tensor_file.CHUNK_VALUES", 7)
    values = RNG.standard_normal((5, 5)).astype(np.float16)
    raw = values if dtype == "float16" else values.astype(np.float64)
    if dtype == "bfloat16":
        raw = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
        values = widen_bfloat16(raw)
    (tmp_path / "raw").write_bytes(b"pad" + raw.tobytes())
    tensor = StoredTensor((5, 5), dtype, RawReader(tmp_path / "raw", 3, (5, 5), dtype))
    read = tensor.as_float32().read()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_a_view_is_the_array_mapped_from_its_file_and_not_to_be_written(tmp_path):
    save_file(ARRAYS, tmp_path / "x")
    tensors = open_safetensors(tmp_path / "x")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(tensors[name].view(), array)
    assert isinstance(tensors["b.weight"].view(), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tensors["b.weight"].view()[0, 0] = 1.0


def test_a_view_of_another_type_is_read(tmp_path):
    bits = RNG.integers(0, 1 << 15, 12).astype("<u2")
    (tmp_path / "bits").write_bytes(bits.tobytes())
    tensor = StoredTensor((3, 4), "bfloat16", RawReader(tmp_path / "bits", 0, (3, 4), "bfloat16"))
    assert tensor.view().tobytes() == tensor.read().tobytes()


def test_a_view_beyond_the_end_of_its_file_names_it(tmp_path):
    (tmp_path / "short").write_bytes(b"\0" * 15)
    tensor = StoredTensor((4,), "float32", RawReader(tmp_path / "short", 0, (4,), "float32"))
    with pytest.raises(CheckpointError, match="short ends before its last tensor"):
        tensor.view()
