"""Files of `torch.save` without torch: the values it wrote, and nothing else that they ask for."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.torch_file import is_torch_file, open_torch
from tests.conftest import FIXTURES_DIR
from tests.interop.torch_pickles import Call, Name, storage, tensor, write_legacy, write_zip

STORED_DIR = FIXTURES_DIR / "torch_file"
CONTAINERS = ("zip.bin", "legacy.bin")
SIX = np.arange(6, dtype="<f4").reshape(2, 3)
Writer = Callable[..., Path]


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_tensor_that_torch_wrote_is_read(container: str) -> None:
    opened = open_torch(STORED_DIR / container)

    with np.load(STORED_DIR / "values.npz") as expected:
        assert list(opened) == expected.files
        for name, stored in opened.items():
            array = stored.read()
            np.testing.assert_array_equal(array, expected[name])
            assert array.dtype == expected[name].dtype
            assert array.shape == stored.shape
            assert array.flags.c_contiguous
    assert opened["brain"].dtype == opened["brain_transposed"].dtype == "bfloat16"


@pytest.mark.parametrize("container", CONTAINERS)
def test_tensors_that_share_their_values_are_one(container: str) -> None:
    opened = open_torch(STORED_DIR / container)

    assert opened["base"] is opened["base_again"]
    assert opened["base"] is not opened["base_transposed"]


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_values_are_read_when_they_are_asked_for(tmp_path: Path, write: Writer) -> None:
    file = write(tmp_path / "model.bin", {"w": tensor()}, {"0": SIX.tobytes()})
    opened = open_torch(file)

    write(file, {"w": tensor()}, {"0": (SIX + 1).tobytes()})

    np.testing.assert_array_equal(opened["w"].read(), SIX + 1)


def test_files_of_a_big_endian_machine_are_read(tmp_path: Path) -> None:
    columns = {"w": tensor(), "columns": tensor(shape=(3, 2), strides=(1, 3))}
    swapped = {"0": SIX.astype(">f4").tobytes()}
    files = (
        write_zip(tmp_path / "zip.bin", columns, swapped, byteorder="big"),
        write_legacy(tmp_path / "legacy.bin", columns, swapped, little_endian=False),
    )
    for file in files:
        opened = open_torch(file)
        np.testing.assert_array_equal(opened["w"].read(), SIX)
        np.testing.assert_array_equal(opened["columns"].read(), SIX.T)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    "called",
    [
        Name("os", "system"),
        Name("posix", "system"),
        Name("builtins", "eval"),
        Name("__builtin__", "exec"),
        Name("subprocess", "Popen"),
        Name("torch.serialization", "load"),
        Name("torch._utils", "os.system"),
    ],
)
@pytest.mark.parametrize("hidden_in_tensor", [False, True])
def test_nothing_in_a_file_is_run(
    tmp_path: Path, write: Writer, called: Name, hidden_in_tensor: bool
) -> None:
    marker = tmp_path / "was-here"
    words = f"touch {marker}" if "system" in called.name else f"open({str(marker)!r}, 'w')"
    attack = Call(called, (words,))
    content = {"w": tensor(offset=attack)} if hidden_in_tensor else {"w": tensor(), "x": attack}
    file = write(tmp_path / "model.bin", content, {"0": SIX.tobytes()})

    assert is_torch_file(file)
    with pytest.raises(CheckpointError, match="Nothing was run") as refused:
        open_torch(file)

    assert str(file) in str(refused.value)
    assert not marker.exists()


LIES: dict[str, tuple[Any, str]] = {
    "a storage longer than its bytes": ({"w": tensor(storage(7))}, "longer than the file"),
    "a storage of exabytes": (
        {"w": tensor(storage(1 << 61), 0, (1 << 30, 1 << 31), (1 << 31, 1))},
        "longer than the file",
    ),
    "a tensor larger than its storage": ({"w": tensor(shape=(3, 3))}, "more than the 6 values"),
    "a tensor that repeats one value without end": (
        {"w": tensor(shape=(1 << 40,), strides=(0,))},
        "more than the 6 values",
    ),
    "a tensor that starts late": ({"w": tensor(offset=1)}, "more than the 6 values"),
    "a tensor with long steps": ({"w": tensor(strides=(3, 2))}, "more than the 6 values"),
    "a negative offset": ({"w": tensor(offset=-1)}, "makes no sense"),
    "a negative step": ({"w": tensor(offset=5, strides=(-3, -1))}, "makes no sense"),
    "a shape without steps": ({"w": tensor(strides=(1,))}, "makes no sense"),
    "a shape of text": ({"w": tensor(shape="23", strides="31")}, "makes no sense"),
    "a tensor without storage": ({"w": tensor(values=3)}, "makes no sense"),
    "a storage of an unknown type": (
        {"w": tensor(storage(kind="QInt8Storage"))},
        "QInt8Storage",
    ),
    "a storage with a negative length": ({"w": tensor(storage(-1))}, "makes no sense"),
    "a type that is called": (
        {"w": Call(Name("torch", "FloatStorage"), (9,))},
        "makes no sense",
    ),
    "no dictionary": (tensor(), "not tensors by name"),
    "a dictionary in a dictionary": (
        {"state_dict": {"w": tensor()}, "epoch": 3},
        "'state_dict', 'epoch'",
    ),
    "numbers beside tensors": ({"w": tensor(), "step": 5}, "'step'"),
    "nothing": ({}, "not tensors by name"),
}


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("lie", LIES)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, write: Writer, lie: str) -> None:
    content, words = LIES[lie]
    # The legacy container needs a storage that the pickle speaks of.
    if write is write_legacy and lie == "nothing":
        file = write(tmp_path / "model.bin", content, {})
    else:
        file = write(tmp_path / "model.bin", content, {"0": SIX.tobytes()})

    with pytest.raises(CheckpointError) as refused:
        open_torch(file)

    assert words in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_storage_that_is_not_in_the_archive_is_refused(tmp_path: Path) -> None:
    content = {"w": tensor(), "x": tensor(storage(key="../../secret"))}
    file = write_zip(tmp_path / "model.bin", content, {"0": SIX.tobytes()})

    with pytest.raises(CheckpointError, match="x: its values are not in the file"):
        open_torch(file)


def test_a_legacy_storage_that_claims_exabytes_is_refused(tmp_path: Path) -> None:
    for count in (7, 1 << 62, -1):
        file = write_legacy(
            tmp_path / "model.bin", {"w": tensor()}, {"0": SIX.tobytes()}, counts={"0": count}
        )
        with pytest.raises(CheckpointError, match="ends inside a storage"):
            open_torch(file)


def test_a_legacy_view_lies_within_its_storage(tmp_path: Path) -> None:
    def view(*part: Any) -> Any:
        whole = storage(6).value
        return type(storage())((*whole, part))

    data = {"0": SIX.tobytes()}
    content = {"w": tensor(view("v", 2, 4), 1, (3,), (1,))}
    file = write_legacy(tmp_path / "model.bin", content, data)
    np.testing.assert_array_equal(open_torch(file)["w"].read(), [3, 4, 5])

    file = write_legacy(tmp_path / "bad.bin", {"w": tensor(view("v", 3, 4))}, data)
    with pytest.raises(CheckpointError, match="a view beyond its storage"):
        open_torch(file)


def test_compressed_and_repeated_entries_are_refused(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "model.bin", {"w": tensor()}, {})
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/0", SIX.tobytes())
    with pytest.raises(CheckpointError, match="data/0 is compressed"):
        open_torch(file)

    file = write_zip(tmp_path / "twice.bin", {"w": tensor()}, {"0": SIX.tobytes()})
    with (
        zipfile.ZipFile(file, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("model/data/0", SIX.tobytes())
    with pytest.raises(CheckpointError, match="data/0 is there twice"):
        open_torch(file)


@pytest.mark.parametrize("container", CONTAINERS)
def test_no_damage_ends_in_anything_but_a_refusal(tmp_path: Path, container: str) -> None:
    whole = (STORED_DIR / container).read_bytes()
    file, source, refused = tmp_path / "model.bin", random.Random(3), 0
    damaged = [whole[:length] for length in range(0, len(whole), 61)]
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            changed[source.randrange(len(whole))] = source.randrange(256)
        damaged.append(bytes(changed))
    for content in damaged:
        file.write_bytes(content)
        is_torch_file(file)
        try:
            for stored in open_torch(file).values():
                assert stored.read().shape == stored.shape
        except CheckpointError:
            refused += 1
    assert refused >= len(whole) // 61


def test_other_files_are_not_taken_for_torch(tmp_path: Path) -> None:
    archive = tmp_path / "text.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("notes/data.txt", "no pickle")
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(b"\x80\x04}.")

    assert is_torch_file(STORED_DIR / "zip.bin")
    assert is_torch_file(STORED_DIR / "legacy.bin")
    assert not is_torch_file(archive)
    assert not is_torch_file(plain)
    assert not is_torch_file(STORED_DIR / "values.npz")
    assert not is_torch_file(tmp_path / "absent.bin")
