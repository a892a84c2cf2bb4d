"""MindSpore's .ckpt files, against files of MindSpore 2.0 and 2.7 and the protobuf library.

`tests/fixtures/mindspore`: `types.ckpt`, `crc.ckpt` and the encrypted ones were saved by MindSpore
2.7, `types.npz` holds their values; `tiny_*.ckpt` by MindSpore 2.0.
"""

import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.engine.tensor_file import StoredTensor, stored
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.mindspore_ckpt import looks_like_ckpt, read_ckpt, write_ckpt
from tests.interop.ckpt_messages import MESSAGES, parse, serialize

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mindspore"
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64",
          "uint8", "uint16", "uint32", "uint64", "bool")  # fmt: skip
VECTOR = np.arange(6, dtype=np.float32)


@pytest.fixture
def ckpt(tmp_path):
    """Write bytes as a .ckpt."""

    def write(content):
        file = tmp_path / "a.ckpt"
        file.write_bytes(content)
        return file

    return write


def random_tensors(seed=3):
    source = np.random.default_rng(seed)
    shapes = [(), (1,), (7,), (3, 5), (2, 1, 4), (300,)]
    return {
        f"block.{number}.{dtype}": (source.normal(size=shape) * 40).astype(dtype)
        for number, shape in enumerate(shapes)
        for dtype in DTYPES
    }


def refused(file):
    with pytest.raises(CheckpointError) as caught:
        read_ckpt(file)
    return f"{caught.value}\n{caught.value.hint}"


def test_every_type_as_mindspore_saves_it():
    tensors = read_ckpt(FIXTURES / "types.ckpt").tensors
    with np.load(FIXTURES / "types.npz") as expected:
        for name in expected.files:
            tensor = tensors[f"t.{name}"]
            assert tensor.dtype == name
            assert tensor.read().dtype.name == ("float32" if name == "bfloat16" else name)
            np.testing.assert_array_equal(tensor.read(), expected[name])


def test_scalars_and_texts_as_mindspore_saves_them():
    contents = read_ckpt(FIXTURES / "types.ckpt")
    assert contents.texts == ("note",)
    assert contents.tensors["scalar"].shape == ()
    assert contents.tensors["scalar"].read() == 3.5
    assert contents.tensors["global_step"].read().tolist() == [7]
    assert contents.tensors["epoch_num"].read() == 3


def test_scalars_of_older_versions(ckpt):
    file = ckpt(serialize(("loss_scale", [0], "Float32", np.float32(2.5).tobytes())))
    tensor = read_ckpt(file).tensors["loss_scale"]
    assert (tensor.shape, tensor.read()) == ((), np.float32(2.5))


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("tiny_*.ckpt")), ids=lambda file: file.name)
def test_files_read_as_the_library_reads_them(file):
    tensors = read_ckpt(file).tensors
    values = parse(file)
    assert [value.tag for value in values] == list(tensors)
    for value in values:
        tensor = tensors[value.tag]
        assert tensor.shape == tuple(value.tensor.dims)
        assert tensor.read().tobytes() == value.tensor.tensor_content


@pytest.mark.parametrize("slice_bytes", [512 << 20, 100, 1])
def test_what_is_written_is_what_the_library_reads(slice_bytes, tmp_path):
    arrays = random_tensors()
    file = tmp_path / "a.ckpt"
    write_ckpt(
        file, {name: stored(array) for name, array in arrays.items()}, slice_bytes=slice_bytes
    )
    contents = dict.fromkeys(arrays, b"")
    for value in parse(file):
        array = arrays[value.tag]
        assert tuple(value.tensor.dims) == array.shape
        assert value.tensor.tensor_type.lower() == array.dtype.name
        assert len(value.tensor.tensor_content) <= max(slice_bytes, array.itemsize)
        contents[value.tag] += value.tensor.tensor_content
    assert contents == {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("slice_bytes", [512 << 20, 100])
def test_what_is_written_is_read_bit_equal(slice_bytes, tmp_path):
    arrays = random_tensors() | {"empty": np.zeros((3, 0), np.float32)}
    file = tmp_path / "a.ckpt"
    write_ckpt(
        file, {name: stored(array) for name, array in arrays.items()}, slice_bytes=slice_bytes
    )
    tensors = read_ckpt(file).tensors
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype.name)
        assert tensors[name].read().tobytes() == array.tobytes()


def test_slices_of_bfloat16_are_put_together(ckpt):
    bits = np.arange(0x3F80, 0x3F80 + 10, dtype="<u2")
    halves = [("w", [2, 5], "BFloat16", bits[start:stop].tobytes()) for start, stop in
              ((0, 3), (3, 10))]  # fmt: skip
    tensor = read_ckpt(ckpt(serialize(*halves))).tensors["w"]
    expected = (bits.astype(np.uint32) << 16).view(np.float32).reshape(2, 5)
    np.testing.assert_array_equal(tensor.read(), expected)


def test_any_order_of_fields_packed_dimensions_and_unknown_fields_are_read(ckpt):
    content = VECTOR.tobytes()
    tensor = (
        b"\x1a" + bytes([len(content)]) + content  # content first
        + b"\x12\x07Float32" + b"\x0a\x02\x02\x03"  # type, dims [2, 3] packed
        + b"\x20\x07" + b"\x29" + bytes(8) + b"\x35" + bytes(4) + b"\x3a\x01x"  # unknown
    )  # fmt: skip
    value = b"\x12" + bytes([len(tensor)]) + tensor + b"\x0a\x01w" + b"\x20\x01"
    file = ckpt(b"\x0a" + bytes([len(value)]) + value)
    parsed = parse(file)[0]
    assert (parsed.tag, list(parsed.tensor.dims)) == ("w", [2, 3])
    np.testing.assert_array_equal(read_ckpt(file).tensors["w"].read(), VECTOR.reshape(2, 3))


def test_a_file_cut_off_anywhere_is_refused_or_has_fewer_tensors(ckpt):
    names = [f"tensor{number}" for number in range(3)]
    entries = [serialize((name, [6], "Float32", VECTOR.tobytes())) for name in names]
    whole = b"".join(entries)
    ends = np.cumsum([len(entry) for entry in entries]).tolist()
    for length in range(1, len(whole)):
        file = ckpt(whole[:length])
        if length in ends:
            assert len(read_ckpt(file).tensors) == ends.index(length) + 1
            continue
        assert "truncated or damaged" in refused(file)
    assert "tensor2 ends too early" in refused(ckpt(whole[:-1]))
    assert "empty file" in refused(ckpt(b""))


def test_damaged_files_are_refused_and_nothing_else_happens(ckpt):
    source = np.random.default_rng(5)
    whole = np.frombuffer((FIXTURES / "types.ckpt").read_bytes(), np.uint8)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1500):
        damaged = whole.copy()
        damaged[source.integers(0, whole.size, 3)] = source.integers(0, 256, 3)
        file = ckpt(damaged.tobytes())
        looks_like_ckpt(file)
        try:
            for tensor in read_ckpt(file).tensors.values():
                tensor.read()
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_sizes_that_a_file_merely_claims_cost_no_memory(ckpt):
    files = [
        serialize(("w", [1 << 40, 1 << 20], "Float32", b"1234")),
        b"\x0a\xff\xff\xff\xff\x7f" + b"\x0a\xff\xff\xff\x7f" + b"x" * 20,
        serialize(("w", [1] * 17, "Float32", b"1234")),
        serialize(("w" * 1025, [1], "Float32", b"1234")),
        serialize(("w", [-1], "Float32", b"1234")),
    ]
    tracemalloc.start()
    for content in files:
        refused(ckpt(content))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_opening_reads_no_values(tmp_path):
    file = tmp_path / "large.ckpt"
    # Four gigabytes of content, which are a hole in the file, and a small tensor behind them.
    size = 4 << 30
    varint = bytes([0x80, 0x80, 0x80, 0x80, 0x10])
    tensor = b"\x08\x80\x80\x80\x80\x04" + b"\x12\x07Float32" + b"\x1a" + varint
    lengths = [len(tensor) + size, 3 + 1 + 5 + len(tensor) + size]
    tensor_length, value_length = (
        bytes((number >> 7 * index) & 0x7F | (0x80 if index < 4 else 0) for index in range(5))
        for number in lengths
    )
    with file.open("wb") as stream:
        stream.write(b"\x0a" + value_length + b"\x0a\x01w\x12" + tensor_length + tensor)
        stream.truncate(stream.tell() + size)
        stream.seek(0, 2)
        stream.write(serialize(("x", [6], "Float32", VECTOR.tobytes())))
    tracemalloc.start()
    started = time.monotonic()
    tensors = read_ckpt(file).tensors
    assert tensors["w"].nbytes == size
    np.testing.assert_array_equal(tensors["x"].read(), VECTOR)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    assert time.monotonic() - started < 1
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("w", [2], "Float32", b"1234")], r"w has 4 bytes, Float32 \[2\] takes 8"),
        ([("w", [1], "Float32", b"1234"), ("w", [1], "Float16", b"12")],
         r"w is there twice: as Float32 \[1\] and as Float16 \[1\]"),
        ([("w", [2], "Float32", b"1234"), ("w", [1], "Float32", b"1234")], "w is there twice"),
        ([("w", [1], "Float32", b"1234")] * 2, "w has 8 bytes in 2 pieces"),
        ([("w", [1], "Float32", b"12")] * 2, "w is cut in the middle of a value"),
        ([("w", [2], "Int4", b"1")], "w is of type 'Int4', which is not read"),
        ([("a\x1bb", [1], "Float32", b"1234")], "unprintable name"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_by_name(entries, message, ckpt):
    with pytest.raises(CheckpointError, match=message):
        read_ckpt(ckpt(serialize(*entries)))


def test_all_contradictions_are_told_at_once(ckpt):
    said = refused(ckpt(serialize(*((name, [2], "Float32", b"12") for name in "abc"))))
    assert all(f"\n{name} has 2 bytes" in said for name in "abc")


def test_maps_entries_without_tensor_and_other_messages_are_refused(ckpt):
    message = MESSAGES["Checkpoint"]()
    message.value.add(tag="table").maptensor.tensor.add(tensor_type="Float32", tensor_content=b"1")
    assert "table is a map tensor" in refused(ckpt(message.SerializeToString()))
    message = MESSAGES["Checkpoint"]()
    message.value.add(tag="nothing")
    assert "nothing has no complete tensor" in refused(ckpt(message.SerializeToString()))
    good = serialize(("w", [6], "Float32", VECTOR.tobytes()))
    assert "what follows w has no valid field" in refused(ckpt(good + b"\x0b"))
    assert "something else than a tensor" in refused(ckpt(good + b"\x10\x01"))


def test_a_crc_trailer_and_encryption_are_named():
    assert "saved with crc_check=True" in refused(FIXTURES / "crc.ckpt")
    for name in ("aes_gcm", "aes_cbc"):
        assert "is encrypted" in refused(FIXTURES / f"{name}.ckpt")


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("*.ckpt")), ids=lambda file: file.name)
def test_files_of_mindspore_look_like_it(file):
    assert looks_like_ckpt(file)


@pytest.mark.parametrize(
    "content", [b"", b"\x0a", b"\nsome text", b"\x0a\x05\x0a\x03abc", b"\x80\x02}.", b"PK\x03\x04"]
)
def test_other_files_do_not_look_like_it(content, ckpt, tmp_path):
    assert not looks_like_ckpt(ckpt(content))
    assert not looks_like_ckpt(tmp_path)
    assert not looks_like_ckpt(tmp_path / "absent")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    assert not looks_like_ckpt(tmp_path / "pipe.ckpt")


def test_a_tensor_that_is_not_as_announced_is_not_written(tmp_path):
    wrong = StoredTensor((5,), "float32", lambda: VECTOR)
    with pytest.raises(ValueError, match="was announced as"):
        write_ckpt(tmp_path / "a.ckpt", {"w": wrong})
