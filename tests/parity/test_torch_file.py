"""Whatever `torch.save` writes of a dictionary of tensors is read as torch reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastffn_cli.interop.torch_file import open_torch

torch = pytest.importorskip("torch", reason="needs torch and transformers: make parity")

pytestmark = pytest.mark.parity

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


def random_view(source: np.random.Generator) -> Any:
    """A tensor of random type, rank and steps through a storage that is larger than it."""
    dtype = getattr(torch, str(source.choice(DTYPES)))
    shape = source.integers(1, 6, size=source.integers(1, 5)).tolist()
    values = torch.from_numpy(source.normal(scale=9, size=shape)).to(dtype)
    values = values.permute(*source.permutation(len(shape)).tolist())
    axis = int(source.integers(len(shape)))
    start = int(source.integers(values.shape[axis]))
    return values.narrow(axis, start, values.shape[axis] - start)


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_random_views_are_read_as_torch_reads_them(
    tmp_path: Path, container: str, protocol: int
) -> None:
    source = np.random.default_rng(protocol)
    saved = {f"tensor.{number}": random_view(source) for number in range(60)}
    saved |= {f"again.{number}": saved[f"tensor.{number}"].flatten() for number in range(20)}
    file = tmp_path / "tensors.bin"
    torch.save(
        saved,
        file,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=container == "zip",
    )
    expected = torch.load(file, weights_only=False)  # its own unpickler knows protocol 2 only

    opened = open_torch(file)

    assert list(opened) == list(expected)
    for name, tensor in expected.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        array = opened[name].read()
        assert opened[name].dtype == dtype
        wanted = (tensor.float() if dtype == "bfloat16" else tensor).numpy()
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


def test_what_torch_refuses_to_load_is_refused(tmp_path: Path) -> None:
    from fastffn_cli.errors import CheckpointError

    model = torch.nn.Linear(2, 3)
    torch.save(model, tmp_path / "model.bin")

    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_torch(tmp_path / "model.bin")
