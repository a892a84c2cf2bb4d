"""Files of `paddle.save`, against Paddle itself; written ones as well."""

import builtins
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from fastffn_cli.engine.tensor_file import StoredTensor, stored
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.paddle_state import open_state_dict, write_state_dict

SHAPES = {"weight": (40, 30), "bias": (30,), "one": (1,)}


def arrays(dtype="float32"):
    source = np.random.default_rng(5)
    return {name: source.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


def assert_equal(state, expected, dtype):
    assert list(state.tensors) == list(expected)
    for name, array in expected.items():
        tensor = state.tensors[name]
        assert (tensor.shape, tensor.dtype) == (array.shape, dtype)
        np.testing.assert_array_equal(tensor.read(), array)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_state_dict_that_paddle_saved(tmp_path, protocol, dtype):
    import paddle

    file, expected = tmp_path / "model.pdparams", arrays(dtype)
    tensors = {name: paddle.to_tensor(array) for name, array in expected.items()}
    paddle.save(tensors, str(file), protocol=protocol)
    state = open_state_dict(file)
    assert_equal(state, expected, dtype)
    assert state.others == []


def test_bfloat16_is_what_paddle_stores_as_uint16(tmp_path):
    import paddle

    file = tmp_path / "model.pdparams"
    tensor = paddle.to_tensor(arrays()["weight"]).astype("bfloat16")
    paddle.save({"weight": tensor}, str(file))
    read = open_state_dict(file).tensors["weight"]
    assert read.dtype == "bfloat16"
    np.testing.assert_array_equal(read.read(), tensor.astype("float32").numpy())


def test_tensors_inside_of_another_object_are_pairs(tmp_path):
    """A dictionary that also holds something else is no state_dict to Paddle: (name, array)."""
    import paddle

    file, expected = tmp_path / "model.pdparams", arrays()
    tensors = {name: paddle.to_tensor(array) for name, array in expected.items()}
    paddle.save({**tensors, "epoch": 3, "names": ["a"]}, str(file))
    state = open_state_dict(file)
    assert_equal(state, expected, "float32")
    assert state.others == ["epoch", "names"]


class EvaluatedArray:
    """What Paddle makes of a `DenseTensor`: an array behind `eval`."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return builtins.eval, ("data", {"data": self.array})


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_array_behind_eval_is_taken_without_evaluating(tmp_path, protocol):
    file, array = tmp_path / "model.pdparams", arrays()["weight"]
    data = pickle.dumps({"weight": EvaluatedArray(array)}, protocol)
    np.testing.assert_array_equal(pickle.loads(data)["weight"], array)
    file.write_bytes(data)
    assert_equal(open_state_dict(file), {"weight": array}, "float32")


EVALS = {
    "code": lambda marker: (f"open({str(marker)!r}, 'w')", {"data": np.zeros(2)}),
    "code alone": lambda marker: (f"open({str(marker)!r}, 'w')",),
    "code behind the right name": lambda marker: (f"data or open({str(marker)!r}, 'w')", {}),
    "other names": lambda marker: ("data", {"data": 0, "__builtins__": {}}),
    "the right words around nothing": lambda marker: ("data", {"data": [1]}),
    "local names too": lambda marker: ("data", {"data": np.zeros(2)}, {"data": 1}),
}


@pytest.mark.parametrize("name", EVALS)
def test_any_other_eval_is_refused(tmp_path, name):
    marker, file = tmp_path / "marker", tmp_path / "model.pdparams"

    class Evaluated:
        def __reduce__(self):
            return builtins.eval, EVALS[name](marker)

    file.write_bytes(pickle.dumps({"weight": Evaluated()}))
    with pytest.raises(CheckpointError, match=r"model\.pdparams (wants to run|is damaged)"):
        open_state_dict(file)
    assert not marker.exists()


def save_in_pieces(file, pieces, shape=(6, 5)):
    """As Paddle does beyond 1 GiB in protocols 2 and 3."""
    table = {"weight": {"OriginShape": shape, "slices": list(pieces)}}
    content = {"bias": np.zeros(2, np.float32), **pieces, "UnpackBigParamInfor@@": table}
    file.write_bytes(pickle.dumps(content, 3))


PIECES = {
    "weight@@.0": np.arange(16, dtype=np.float32),
    "weight@@.1": np.arange(16, 30, dtype=np.float32),
}


def test_big_tensors_are_put_together(tmp_path):
    import paddle

    file = tmp_path / "model.pdparams"
    save_in_pieces(file, PIECES)
    state = open_state_dict(file)
    assert sorted(state.tensors) == ["bias", "weight"]
    expected = np.arange(30, dtype=np.float32).reshape(6, 5)
    np.testing.assert_array_equal(state.tensors["weight"].read(), expected)
    np.testing.assert_array_equal(paddle.load(str(file))["weight"].numpy(), expected)


@pytest.mark.parametrize(
    "pieces, shape",
    [
        (PIECES, (6, 6)),
        (PIECES, (-6, -5)),
        (PIECES, None),
        ({}, ()),
        ({**PIECES, "weight@@.1": np.arange(14.0)}, (6, 5)),
        ({**PIECES, "weight@@.1": np.zeros((7, 2), np.float32)}, (6, 5)),
        ({**PIECES, "weight@@.1": "text"}, (6, 5)),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path, pieces, shape):
    save_in_pieces(tmp_path / "model.pdparams", pieces, shape)
    with pytest.raises(CheckpointError, match="pieces"):
        open_state_dict(tmp_path / "model.pdparams")


def test_a_name_that_would_move_the_cursor_is_refused(tmp_path):
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps({"a\x1b[2J": np.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"'a\\x1b\[2J'"):
        open_state_dict(tmp_path / "model.pdparams")


def test_a_piece_is_used_once(tmp_path):
    table = {"weight": {"OriginShape": (3, 2), "slices": ["a", "a", "a"]}}
    content = {"a": np.zeros(2, np.float32), "UnpackBigParamInfor@@": table}
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="pieces"):
        open_state_dict(tmp_path / "model.pdparams")


@pytest.mark.parametrize("content", [[1, 2], np.zeros(3), "text", None])
def test_what_is_no_dictionary_is_refused(tmp_path, content):
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="not a dictionary"):
        open_state_dict(tmp_path / "model.pdparams")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_written_file_is_what_paddle_and_numpy_load(tmp_path, dtype):
    import paddle

    file = tmp_path / "model.pdparams"
    expected = {**arrays(dtype), "ü" * 200: np.arange(5, dtype=dtype)}
    write_state_dict(file, {name: stored(array) for name, array in expected.items()})
    loaded = paddle.load(str(file))
    assert list(loaded) == list(expected)
    with file.open("rb") as stream:
        plain = pickle.load(stream)
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)
        assert (plain[name].dtype, plain[name].shape) == (array.dtype, array.shape)
    assert_equal(open_state_dict(file), expected, dtype)


def test_writing_keeps_one_tensor_in_memory(tmp_path):
    size = 4 << 20
    tensors = {
        str(each): StoredTensor((size,), "float32", lambda: np.ones(size, np.float32))
        for each in range(4)
    }
    tracemalloc.start()
    write_state_dict(tmp_path / "model.pdparams", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * size * 4
    assert (tmp_path / "model.pdparams").stat().st_size > 4 * size * 4


def test_a_tensor_that_is_not_as_announced_is_a_mistake_of_ours(tmp_path):
    tensor = StoredTensor((3,), "float32", lambda: np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="announced"):
        write_state_dict(tmp_path / "model.pdparams", {"a": tensor})


def test_the_length_of_a_written_array_has_eight_bytes(tmp_path):
    """Protocol 4 without a limit of 4 GiB: BINBYTES8."""
    write_state_dict(tmp_path / "a", {"a": stored(np.ones(3, np.float32))})
    assert b"\x8e" + struct.pack("<Q", 12) in (tmp_path / "a").read_bytes()
