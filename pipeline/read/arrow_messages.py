"""The messages of an Arrow stream or file, told apart and measured without decoding them.

The formats frame messages alike: a mark, the length of the metadata, the metadata (a flatbuffer), the body. A file has
a magic word and padding before them, and a footer after.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

FILE_MAGIC = b"ARROW1"
_CONTINUATION = 0xFFFFFFFF
_LONGEST_METADATA = 2**28
_KINDS: dict[int, Literal["schema", "dictionary", "batch"]] = {1: "schema", 2: "dictionary", 3: "batch"}


class DamagedMessages(ValueError):
    """Bytes that are no message where one should be; says what is wrong."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a source."""

    kind: Literal["schema", "dictionary", "batch"]
    begin: int
    end: int
    rows: int
    body: int
    """Bytes of the body."""
    made: int
    """Bytes of the body once its buffers are decompressed."""


def messages(source: pa.NativeFile) -> Iterator[Message]:
    """The messages of a source, in order. Raises DamagedMessages where they break off without an end mark."""
    size = source.size()
    at = 8 if source.read_at(len(FILE_MAGIC), 0) == FILE_MAGIC else 0
    while True:
        prefix = source.read_at(min(8, size - at), at)
        if len(prefix) < 4:
            raise DamagedMessages(f"the data ends at byte {at} without its end mark")
        length, framing = struct.unpack_from("<I", prefix)[0], 4
        if length == _CONTINUATION and len(prefix) == 8:
            length, framing = struct.unpack_from("<I", prefix, 4)[0], 8
        if length == 0:
            return
        begin, body = at, at + framing + length
        if length > _LONGEST_METADATA or body > size:
            raise DamagedMessages(f"no message at byte {at}")
        try:
            message = _message(source, source.read_at(length, at + framing), begin, body)
        except (struct.error, KeyError, IndexError):
            raise DamagedMessages(f"no message at byte {at}") from None
        if message.end > size or message.body < 0:
            raise DamagedMessages(f"the data ends inside the message at byte {at}")
        yield message
        at = message.end


def _message(source: pa.NativeFile, metadata: bytes, begin: int, body: int) -> Message:
    root = _Table(metadata, _unsigned(metadata, 0))
    kind = _KINDS[root.number(1, "<B")]
    size = root.number(3, "<q")
    record = root.table(2)
    if kind == "dictionary":
        record = record.table(1)
    rows, made = 0, size
    if kind != "schema":
        rows = record.number(0, "<q")
        if record.has(3) and size >= 0 and body + size <= source.size():
            made = sum(_decompressed(source, body, size, *buffer) for buffer in record.pairs(2))
    if rows < 0:
        raise IndexError
    return Message(kind, begin, body + size, rows, size, made)


def _decompressed(source: pa.NativeFile, body: int, size: int, begin: int, length: int) -> int:
    """Bytes of a compressed buffer, which begins with that number; -1 means stored as it is."""
    if begin < 0 or length < 0 or begin + length > size:
        raise IndexError
    if length < 8:
        return length
    given = struct.unpack("<q", source.read_at(8, body + begin))[0]
    return length - 8 if given == -1 else max(given, 0)


def _unsigned(data: bytes, at: int) -> int:
    return struct.unpack_from("<I", data, at)[0]


class _Table:
    """A table of a flatbuffer. Anything out of bounds raises struct.error or IndexError."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        self._size = struct.unpack_from("<H", data, self._fields)[0] if self._fields >= 0 else 0

    def _position(self, field: int) -> int:
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = struct.unpack_from("<H", self._data, self._fields + entry)[0]
        return self._at + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._position(field) != 0

    def number(self, field: int, form: str) -> int:
        """A scalar field; 0 where it is left out."""
        at = self._position(field)
        return struct.unpack_from(form, self._data, at)[0] if at else 0

    def table(self, field: int) -> "_Table":
        at = self._position(field)
        if not at:
            raise IndexError
        return _Table(self._data, at + _unsigned(self._data, at))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structures of two int64."""
        at = self._position(field)
        if at:
            start = at + _unsigned(self._data, at)
            count = _unsigned(self._data, start)
            if start + 4 + 16 * count > len(self._data):
                raise IndexError
            for i in range(count):
                yield struct.unpack_from("<qq", self._data, start + 4 + 16 * i)
