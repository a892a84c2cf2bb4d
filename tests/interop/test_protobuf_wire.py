"""Protobuf's wire format, against the protobuf library."""

import io

import numpy as np
import pytest

from fastffn_cli.interop.protobuf_wire import (
    BYTES,
    VARINT,
    Damaged,
    WireReader,
    to_field,
    to_varint,
)
from tests.interop.ckpt_messages import MESSAGES

NUMBERS = [0, 1, 127, 128, 300, 2**31, 2**32 - 1, 2**63 - 1]


def wire(content):
    return WireReader(io.BytesIO(content), len(content))


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_written_and_read_as_the_library_does(number):
    library = MESSAGES["TensorProto"](dims=[number]).SerializeToString()
    assert b"\x08" + to_varint(number) == library
    reader = wire(library)
    assert (reader.field(), reader.varint()) == ((1, VARINT), number)
    assert reader.place == reader.end


def test_texts_are_written_and_read_as_the_library_does():
    library = MESSAGES["Value"](tag="größe.w").SerializeToString()
    assert to_field(1, "größe.w".encode()) == library
    reader = wire(library)
    assert (reader.field(), reader.text(100)) == ((1, BYTES), "größe.w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 11, "more than 10 bytes"),
        (b"\x80", "ends too early"),
        (b"\x00\x01", "no valid field"),
        (b"\x0b", "no valid field"),
        (b"\x0e", "no valid field"),
        (b"\x0a\x05abc", "5 bytes are announced at byte 1, 3 are left"),
        (b"\x0d\x00", "ends too early"),
        (b"\x0a\x02\xff\xff", "not UTF-8"),
    ],
    ids=repr,
)
def test_bytes_that_are_no_message_are_damaged(content, message):
    reader = wire(content)
    with pytest.raises(Damaged, match=message):
        _, wire_type = reader.field()
        reader.text(100) if wire_type == BYTES else reader.skip(wire_type)


def test_a_message_does_not_reach_beyond_the_one_around_it():
    reader = wire(b"\x02\x0a\x05abcdefgh")
    with pytest.raises(Damaged, match="5 bytes are announced at byte 2, 0 are left"):
        reader.inside(lambda: reader.text(100) if reader.field() else None)


def test_fields_of_every_type_are_stepped_over():
    content = np.random.default_rng(0).bytes(4)
    reader = wire(b"\x08\x80\x01" + b"\x11" + bytes(8) + b"\x1a\x04" + content + b"\x25" + bytes(4))
    numbers = []
    while reader.place < reader.end:
        number, wire_type = reader.field()
        reader.skip(wire_type)
        numbers.append(number)
    assert numbers == [1, 2, 3, 4]
