"""Protobuf's wire format, walked in a file: no message has to fit into the memory.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LONGEST_VARINT = 10


class Damaged(ValueError):
    """What is wrong with the bytes; the names of file and entry are the caller's to add."""


class WireReader:
    """A walk from `place` to `end` of a file; every length is checked against where it must end.

    All methods raise `Damaged` for bytes that are no message.
    """

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self.stream = stream
        self.place = 0
        self.end = end

    def varint(self) -> int:
        """Read a number."""
        number = 0
        for index in range(LONGEST_VARINT):
            byte = self._take(1)[0]
            number |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return number
        raise Damaged(f"has a number of more than {LONGEST_VARINT} bytes at byte {self.place:,}")

    def field(self) -> tuple[int, int]:
        """Read number and wire type of the next field."""
        start, key = self.place, self.varint()
        if not key >> 3 or key & 7 not in (VARINT, FIXED64, BYTES, FIXED32):
            raise Damaged(f"has no valid field at byte {start:,}")
        return key >> 3, key & 7

    def length(self) -> int:
        """Read the length of the bytes that follow, which are all there."""
        start, length = self.place, self.varint()
        if length > self.end - self.place:
            raise _too_early(length, start, self.end - self.place)
        return length

    def text(self, longest: int) -> str:
        """Read a string of at most `longest` bytes."""
        start, length = self.place, self.length()
        if length > longest:
            raise Damaged(f"has a name of {length:,} bytes at byte {start:,}")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged(f"has a name that is not UTF-8 at byte {start:,}") from error

    def skip(self, wire_type: int) -> None:
        """Go on behind the value of a field."""
        if wire_type == VARINT:
            self.varint()
        else:
            self.step({FIXED64: 8, FIXED32: 4}.get(wire_type) or self.length())

    def step(self, length: int) -> None:
        """Go on without reading."""
        if length > self.end - self.place:
            raise Damaged(f"ends too early, at byte {self.end:,}")
        self.place += length
        self.stream.seek(self.place)

    def inside(self, read: Callable[[], None]) -> None:
        """Read the message that follows: `read` is called for each field of it.

        What is there of a message that is cut off is read first, because it may tell its name.
        """
        start, length, outer = self.place, self.varint(), self.end
        left = outer - self.place
        self.end = self.place + min(length, left)
        while self.place < self.end:
            read()
        if length > left:
            raise _too_early(length, start, left)
        self.end = outer

    def _take(self, length: int) -> bytes:
        taken = self.stream.read(length) if length <= self.end - self.place else b""
        if len(taken) < length:
            raise Damaged(f"ends too early, at byte {self.place:,}")
        self.place += length
        return taken


def _too_early(length: int, place: int, left: int) -> Damaged:
    return Damaged(
        f"ends too early: {length:,} bytes are announced at byte {place:,}, {left:,} are left"
    )


def to_varint(number: int) -> bytes:
    """Write a number that is not negative."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def to_field(number: int, content: bytes) -> bytes:
    """Write a field of bytes; `number` is below 16."""
    return bytes([number << 3 | BYTES]) + to_varint(len(content)) + content
