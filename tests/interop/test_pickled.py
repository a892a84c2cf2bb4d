"""The pickle machine that runs nothing: what it admits, what it refuses, how little it reads."""

import copyreg
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop import pickled
from fastffn_cli.interop.pickled import Refused, load_pickle, read_pickle
from fastffn_cli.interop.pickled_arrays import StoredBytes

PROTOCOLS = (2, 3, 4, 5)
ARRAYS = {
    "float32": np.linspace(-2, 2, 3000, dtype=np.float32).reshape(30, 100),
    "float16": np.linspace(-2, 2, 7, dtype=np.float16),
    "float64 Fortran": np.asfortranarray(np.arange(600.0).reshape(20, 30)),
    "big-endian": np.arange(-300, 300, dtype=">i4"),
    "big-endian, few": np.arange(3, dtype=">f8"),
    "boolean": np.arange(2000) % 3 == 0,
    "int8": np.arange(-128, 128, dtype=np.int8),
    "uint16": np.arange(60000, dtype=np.uint16),
    "no dimension": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "not contiguous": np.arange(400, dtype=np.int64).reshape(20, 20)[:, ::3],
}


class Bomb:
    """Whoever makes one, or gives it a state, leaves a file behind."""

    def __new__(cls, marker="", *more):
        if marker:
            Path(marker).touch()
        return super().__new__(cls)

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        Path(state).touch()


def write(tmp_path, data):
    file = tmp_path / "some.pickle"
    file.write_bytes(data)
    return file


def text(value):
    encoded = str(value).encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


BOMB = f"{__name__}\nBomb\n".encode()
CODE = 0x7E57
# Every operation that calls something, as a program that leaves the file `marker`.
ATTACKS = {
    "REDUCE of GLOBAL": lambda marker: b"\x80\x02c" + BOMB + text(marker) + b"\x85R.",
    "REDUCE of STACK_GLOBAL": lambda marker: (
        b"\x80\x04" + text(__name__) + text("Bomb") + b"\x93" + text(marker) + b"\x85R."
    ),
    "NEWOBJ": lambda marker: b"\x80\x02c" + BOMB + text(marker) + b"\x85\x81.",
    "NEWOBJ_EX": lambda marker: b"\x80\x04c" + BOMB + text(marker) + b"\x85}\x92.",
    "INST": lambda marker: b"(" + text(marker) + b"i" + BOMB + b".",
    "OBJ": lambda marker: b"(c" + BOMB + text(marker) + b"o.",
    "BUILD": lambda marker: b"\x80\x02c" + BOMB + b")\x81" + text(marker) + b"b.",
    "EXT1": lambda marker: b"\x80\x02\x82\x7e" + text(marker) + b"\x85R.",
    "EXT2": lambda marker: b"\x80\x02\x83\x7e\x57" + text(marker) + b"\x85R.",
    "EXT4": lambda marker: b"\x80\x02\x84\x7e\x57\x00\x01" + text(marker) + b"\x85R.",
    "builtins": lambda marker: (
        b"\x80\x02cbuiltins\nexec\n" + text(f"open({str(marker)!r}, 'w')") + b"\x85R."
    ),
    "a name with dots": lambda marker: (
        b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93" + text(marker) + b"\x85R."
    ),
}


@pytest.fixture
def extension_codes():
    codes = (0x7E, 0x577E, 0x0100577E)
    for place, code in enumerate(codes):
        setattr(sys.modules[__name__], f"Bomb{place}", Bomb)
        copyreg.add_extension(__name__, f"Bomb{place}", code)
    yield
    for place, code in enumerate(codes):
        copyreg.remove_extension(__name__, f"Bomb{place}", code)


def test_the_attacks_are_real(tmp_path, extension_codes):
    for name, program in ATTACKS.items():
        marker = tmp_path / name.replace(" ", "_")
        pickle.loads(program(marker))
        assert marker.exists(), name


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_pickle_would_call_is_not_called(tmp_path, extension_codes, name):
    marker = tmp_path / "marker"
    with pytest.raises(CheckpointError, match="Nothing was run"):
        read_pickle(write(tmp_path, ATTACKS[name](marker)))
    assert not marker.exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_inside_of_a_model_is_refused_as_well(tmp_path, extension_codes, name):
    marker = tmp_path / "marker"
    model = pickle.dumps({"weight": ARRAYS["float32"], "bias": ARRAYS["float16"]}, 4)
    attack = ATTACKS[name](marker)
    attack = attack[2 if attack[:1] == b"\x80" else 0 : -1]
    # Behind the two items and in front of SETITEMS.
    whole = model[:2] + model[11:-2] + text("more") + attack + model[-2:]
    assert not marker.exists()
    pickle.loads(whole)
    assert marker.exists()
    marker.rmdir() if marker.is_dir() else marker.unlink()
    with pytest.raises(CheckpointError, match="Nothing was run"):
        read_pickle(write(tmp_path, whole))
    assert not marker.exists()


def test_a_refusal_names_what_the_file_wanted(tmp_path):
    class Mischief:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(
        CheckpointError, match=r"some\.pickle wants to use (posix|nt)\.system"
    ) as it:
        read_pickle(write(tmp_path, pickle.dumps({"a": [Mischief()]})))
    assert "who made it" in it.value.hint


def test_names_in_a_refusal_are_shown_without_control_characters(tmp_path):
    data = b"\x80\x04" + text("a\x1b[31mb") + text("c\nd") + b"\x93."
    with pytest.raises(CheckpointError, match=r"a\?\[31mb\.c\?d"):
        read_pickle(write(tmp_path, data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_arrays_come_out_as_they_were(tmp_path, name, protocol, in_memory):
    array = ARRAYS[name]
    data = pickle.dumps({"array": array, "again": array}, protocol)
    if in_memory:
        result = load_pickle(io.BytesIO(data), "memory")
    else:
        result = read_pickle(write(tmp_path, data))
    tensor = result["array"]
    assert isinstance(tensor, StoredTensor)
    assert tensor.shape == array.shape
    assert tensor.dtype == array.dtype.name
    values = tensor.read()
    assert values.dtype == array.dtype.newbyteorder("=")
    assert values.shape == array.shape
    np.testing.assert_array_equal(values, array)
    np.testing.assert_array_equal(result["again"].read(), array)
    values.fill(0)  # a copy of the reader's own


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_both_of_numpys_names_are_known(tmp_path, module):
    data = pickle.dumps([ARRAYS["float16"], np.float32(2.5), np.bool_(True)], 2)
    other = "numpy._core" if b"numpy._core" in data else "numpy.core"
    result = read_pickle(write(tmp_path, data.replace(other.encode(), module.encode())))
    np.testing.assert_array_equal(result[0].read(), ARRAYS["float16"])
    assert result[1:] == [2.5, True]


def test_strings_of_python_2_are_read(tmp_path):
    array = np.arange(700, dtype=np.float32)
    data = pickle.dumps(array, 3)
    assert b"B\xf0\x0a\x00\x00" in data  # BINBYTES of 2800 bytes, which Python 2 calls BINSTRING
    result = read_pickle(write(tmp_path, data.replace(b"B\xf0\x0a\x00\x00", b"T\xf0\x0a\x00\x00")))
    np.testing.assert_array_equal(result.read(), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_out_as_they_were(tmp_path, protocol):
    value = {
        "numbers": [0, 255, 256, 65536, -1, -(2**31), 2**70, 1.5, float("inf")],
        "others": (None, True, False, "text", "ü" * 300, (), {}, [], (1, 2, 3, 4)),
        3: {None: {True: {"deep": [{}]}}},
    }
    assert read_pickle(write(tmp_path, pickle.dumps(value, protocol))) == value


def test_an_ordered_dictionary_loses_its_attributes(tmp_path):
    value = OrderedDict(a=1, b=2)
    value._metadata = OrderedDict(version=1)
    assert read_pickle(write(tmp_path, pickle.dumps(value))) == {"a": 1, "b": 2}


def test_long_strings_stay_in_the_file(tmp_path):
    result = read_pickle(write(tmp_path, pickle.dumps([b"y" * 5000, b"short"])))
    assert isinstance(result[0], StoredBytes)
    assert (result[0].length, result[1]) == (5000, b"short")


def test_the_stream_is_left_behind_each_of_several_pickles():
    stream = io.BytesIO(b"".join(pickle.dumps([n, "x" * n], n) for n in PROTOCOLS) + b"rest")
    for n in PROTOCOLS:
        assert load_pickle(stream, "stream") == [n, "x" * n]
    assert stream.read() == b"rest"


def test_a_caller_adds_names_and_persistent_ids():
    data = b"\x80\x02cforeign\nThing\nK\x05\x85R" + text("key") + b"Q\x86."
    result = load_pickle(
        io.BytesIO(data),
        "stream",
        allowed={("foreign", "Thing"): lambda number: number + 1},
        persistent_load=lambda key: f"stored {key}",
    )
    assert result == (6, "stored key")


def test_a_stand_in_can_refuse():
    def refuse(*arguments):
        raise Refused("eat the disk")

    with pytest.raises(CheckpointError, match="stream wants to eat the disk"):
        load_pickle(io.BytesIO(b"\x80\x02ca\nb\n)R."), "stream", allowed={("a", "b"): refuse})


REFUSED = {
    "persistent id without a reader": b"\x80\x02K\x01Q.",
    "persistent id as text": b"Pkey\n.",
    "protocol 0": pickle.dumps({"a": 1.5}, 0),
    "a set": pickle.dumps({1, 2}),
    "a frozen set": pickle.dumps(frozenset({1})),
    "a buffer outside": pickle.dumps(pickle.PickleBuffer(b"x"), 5, buffer_callback=lambda b: None),
    "an array of objects": pickle.dumps(np.array([None, {}], object)),
    "an array of text": pickle.dumps(np.array(["a"])),
    "an array of records": pickle.dumps(np.zeros(2, [("a", "f4")])),
    "complex numbers": pickle.dumps(np.zeros(2, complex)),
    "a tuple as a key": pickle.dumps({(1, 2): 3}),
    "an array as a key": b"\x80\x02}" + pickle.dumps(ARRAYS["boolean"])[2:-1] + b"K\x01s.",
    "a call of text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a call of a result": b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    "a call without a tuple": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "a call with arguments too many": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    "an attribute of a dictionary": b"\x80\x02}}b.",
    "attributes that are none": b"\x80\x02ccollections\nOrderedDict\n)RK\x01b.",
    "attributes in slots": b"\x80\x02ccollections\nOrderedDict\n)RN}\x86b.",
    "the module as a number": b"\x80\x04K\x01K\x02\x93.",
    "a name that does not end": b"\x80\x02c" + b"a" * 5000,
    "an unknown protocol": b"\x80\x09N.",
    "nothing on the stack": b"\x80\x02.",
    "an append to nothing": b"\x80\x02K\x01a.",
    "a mark that is not there": b"\x80\x02t.",
    "a mark that stays": b"\x80\x02(N.",
    "two results": b"\x80\x02NN.",
    "a reference to nothing": b"\x80\x02h\x07.",
    "a large reference to nothing": b"\x80\x02j\xff\xff\xff\xff.",
    "an odd number of items": b"\x80\x02}(Nu.",
    "no pickle operation": b"\x80\x02\xff.",
    "text that is not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    "an integer of 4 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "an integer of -1 bytes": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "bytes beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "a negative length as unsigned": b"\x80\x04\x96" + b"\xff" * 8 + b".",
    "a frame beyond the file": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "an empty file": b"",
    "something behind": pickle.dumps(1) + b"x",
    "a self-reference as a key": b"\x80\x02]q\x00}h\x00h\x00s.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_admitted_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError):
        read_pickle(write(tmp_path, REFUSED[name]))


def test_a_refused_operation_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="EMPTY_SET"):
        read_pickle(write(tmp_path, pickle.dumps({1, 2}, 4)))


def array_with(shape=b"K\x02\x85", data=b"C\x08abcdefgh", code=b"X\x02\x00\x00\x00f4"):
    """An array of two float32 in protocol 3, with one of its parts exchanged."""
    dtype = (
        b"cnumpy\ndtype\n"
        + code
        + b"K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return b"\x80\x03" + start + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb."


def test_the_array_that_the_next_test_breaks_is_whole(tmp_path):
    data = array_with()
    expected = np.frombuffer(b"abcdefgh", "<f4")
    np.testing.assert_array_equal(pickle.loads(data), expected)
    np.testing.assert_array_equal(read_pickle(write(tmp_path, data)).read(), expected)


@pytest.mark.parametrize(
    "broken",
    [
        array_with(shape=b"K\x03\x85"),
        array_with(shape=b"K\x02K\x02\x86"),
        array_with(shape=b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"),
        array_with(shape=b"\x8a\x09" + b"\x00" * 8 + b"\x01K\x00\x86"),
        array_with(shape=b"G@\x00\x00\x00\x00\x00\x00\x00\x85"),
        array_with(shape=b"\x88K\x02\x86"),
        array_with(shape=b"(" + b"K\x01" * 40 + b"K\x02t"),
        array_with(shape=b"N"),
        array_with(data=b"N"),
        array_with(data=b"C\x07abcdefg"),
        array_with(data=b"]"),
        array_with(code=b"X\x02\x00\x00\x00O8"),
        array_with(code=b"X\x03\x00\x00\x00f40"),
        array_with(code=b"N"),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(tmp_path, broken):
    with pytest.raises(CheckpointError, match="damaged"):
        read_pickle(write(tmp_path, broken))


def test_latin_1_that_is_too_short_shows_when_it_is_read(tmp_path):
    array = np.full(3000, 0xE4, np.uint8)
    data = pickle.dumps(array, 2)
    assert data.count(b"\xc3\xa4") == 3000
    # Two letters of one byte each instead of one of two: as long in the file, longer in memory.
    tensor = read_pickle(write(tmp_path, data.replace(b"\xc3\xa4", b"aa", 1)))
    with pytest.raises(CheckpointError, match="damaged"):
        tensor.read()


def test_text_beyond_latin_1_is_no_array(tmp_path):
    data = pickle.dumps(np.full(3000, 0xE4, np.uint8), 2).replace(b"\xc3\xa4", "ł".encode(), 1)
    with pytest.raises(CheckpointError, match="damaged"):
        read_pickle(write(tmp_path, data)).read()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_pickle_is_refused_wherever_it_ends(tmp_path, protocol):
    data = pickle.dumps({"a": ARRAYS["float64 Fortran"], "b": [1, "x", np.float32(1)]}, protocol)
    file = tmp_path / "some.pickle"
    for length in range(0, len(data), 5):
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            read_pickle(file)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path):
    file = write(tmp_path, pickle.dumps(ARRAYS["uint16"]))
    tensor = read_pickle(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        tensor.read()


def test_random_damage_is_refused_or_harmless(tmp_path):
    source = random.Random(17)
    value = {"a": ARRAYS["big-endian"], "b": OrderedDict(x=[1, 2**70, "ü", None, b"b"]), "c": 1.5}
    originals = [pickle.dumps(value, protocol) for protocol in PROTOCOLS]
    file, refused = tmp_path / "some.pickle", 0
    for _ in range(3000):
        data = bytearray(source.choice(originals))
        for _ in range(source.choice((1, 1, 2, 8))):
            place = source.randrange(len(data) if source.random() < 0.5 else 60)
            data[place : place + source.choice((0, 1, 1, 4))] = source.randbytes(
                source.choice((0, 1, 1, 3))
            )
        file.write_bytes(data)
        try:
            result = read_pickle(file)
            if isinstance(result, dict) and isinstance(result.get("a"), StoredTensor):
                values = result["a"].read()
                assert (values.shape, values.dtype.name) == (result["a"].shape, result["a"].dtype)
        except CheckpointError:
            refused += 1
    assert 1000 < refused < 3000


def test_nesting_as_deep_as_the_file_is_long_is_no_problem(tmp_path):
    depth = 200_000
    result = read_pickle(write(tmp_path, b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."))
    seen = 0
    while result:
        result, seen = result[0], seen + 1
    assert seen == depth - 1


def test_the_number_of_operations_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "MOST_OPERATIONS", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000"):
        read_pickle(write(tmp_path, b"\x80\x02]" + b"Na" * 600 + b"."))


def test_repeated_text_takes_no_memory_each_time(tmp_path):
    """A megabyte of text, encoded a thousand times over by reference: a gigabyte, if made."""
    encode = b"c_codecs\nencode\nq\x00" + text("ä" * 500_000) + b"q\x01"
    again = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86Ra"
    data = b"\x80\x02]" + encode + text("latin1") + b"\x86Ra" + again * 1000 + b"."
    tracemalloc.start()
    result = load_pickle(io.BytesIO(data), "stream")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(result) == 1001
    assert peak < 4 << 20


def test_opening_a_file_takes_no_memory_of_its_size(tmp_path):
    values = np.zeros(4 << 20, np.float32)
    for protocol in PROTOCOLS:
        file = write(tmp_path, pickle.dumps({"a": values, "b": values + 1}, protocol))
        tracemalloc.start()
        tensors = read_pickle(file)
        opened = tracemalloc.get_traced_memory()[1]
        tensors["b"].read()
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert opened < 1 << 20
        assert read < 1.3 * values.nbytes


@pytest.mark.slow
def test_reading_imports_nothing_by_the_files_word(tmp_path):
    file = write(tmp_path, b"\x80\x02cantigravity\nfly\n)R.")
    program = (
        "import sys; from pathlib import Path\n"
        "from fastffn_cli.errors import CheckpointError\n"
        "from fastffn_cli.interop.pickled import read_pickle\n"
        "try: read_pickle(Path(sys.argv[1]))\n"
        "except CheckpointError as error: print(error)\n"
        "print([name for name in ('antigravity', 'paddle', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, file], capture_output=True, text=True, check=True
    )
    assert "wants to use antigravity.fly" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
