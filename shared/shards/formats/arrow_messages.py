"""The messages of an Arrow stream or file, told apart and measured without decoding them.

The formats frame messages alike: a mark, the length of the metadata, the metadata (a flatbuffer), the body. A file has
a magic word and padding before them, and a footer after.

By hand, since pyarrow allocates what a buffer's header says without telling it first: docs/decisions/arrow-messages.md.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

from shared.io.files.file_types import FILE_MAGIC

_CONTINUATION = 0xFFFFFFFF
_LONGEST_METADATA = 2**28  # far beyond any real one; a length beyond it is damage, and must not be allocated
_V5 = 4
_COMPRESSED_BEFORE_V5 = b"ARROW:experimental_compression"
_TAIL = 4 + len(FILE_MAGIC)
_KINDS: dict[int, Literal["schema", "dictionary", "batch"]] = {1: "schema", 2: "dictionary", 3: "batch"}


class DamagedMessages(ValueError):
    """Bytes that are no message where one should be; says what is wrong."""


class Block(NamedTuple):
    """Where the footer of a file says that a message lies."""

    begin: int
    metadata: int
    """Bytes before the body."""
    body: int


class Footer(NamedTuple):
    """The messages that a reader of a file reads, in its order."""

    dictionaries: list[Block]
    batches: list[Block]


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
    dictionary: int = 0
    """The number of a dictionary."""
    adds: bool = False
    """Whether it adds to the dictionary of this number before it, which it replaces otherwise."""


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


def footer(source: pa.NativeFile) -> Footer:
    """The footer of an Arrow file. Raises DamagedMessages."""
    size = source.size()
    tail = source.read_at(min(_TAIL, size), max(size - _TAIL, 0))
    if not tail.endswith(FILE_MAGIC) or len(tail) < _TAIL:
        raise DamagedMessages("the file has no footer")
    length = struct.unpack_from("<i", tail)[0]
    if not 0 < length <= min(_LONGEST_METADATA, size - _TAIL):
        raise DamagedMessages(f"a footer of {length} bytes")
    data = source.read_at(length, size - _TAIL - length)
    try:
        root = _Table(data, _unsigned(data, 0))
        return Footer(*([Block(*block) for block in root.structures(field, "<qi4xq")] for field in (2, 3)))
    except (struct.error, IndexError):
        raise DamagedMessages("a footer that cannot be read") from None


def message_at(source: pa.NativeFile, block: Block) -> Message:
    """The message of a block, measured as a reader of the file would decode it. Raises DamagedMessages."""
    size = source.size()
    inside = block.begin >= 0 and 8 <= block.metadata <= _LONGEST_METADATA and block.body >= 0
    if not inside or block.begin + block.metadata + block.body > size:
        raise DamagedMessages(f"the footer names a message at byte {block.begin} that is not in the file")
    data = source.read_at(block.metadata, block.begin)
    mark, length = struct.unpack_from("<II", data)
    framing = 8 if mark == _CONTINUATION else 4
    length = length if framing == 8 else mark
    try:
        if framing + length != block.metadata or _version(data[framing:]) != _V5:
            raise IndexError
        message = _message(source, data[framing:], block.begin, block.begin + block.metadata)
    except (struct.error, KeyError, IndexError):
        raise DamagedMessages(f"no message at byte {block.begin}") from None
    if message.body != block.body:
        raise DamagedMessages(f"the message at byte {block.begin} is not as long as the footer says")
    return message


def _version(metadata: bytes) -> int:
    """Older ones may compress without saying so where it is looked for."""
    return _Table(metadata, _unsigned(metadata, 0)).number(0, "<h")


def _message(source: pa.NativeFile, metadata: bytes, begin: int, body: int) -> Message:
    root = _Table(metadata, _unsigned(metadata, 0))
    kind = _KINDS[root.number(1, "<B")]
    size = root.number(3, "<q")
    record = root.table(2)
    number, adds = 0, False
    if kind == "dictionary":
        number, adds = record.number(0, "<q"), record.number(2, "<B") != 0
        record = record.table(1)
    rows, made = 0, size
    if kind != "schema":
        rows = record.number(0, "<q")
        if _is_compressed(record, metadata) and size >= 0 and body + size <= source.size():
            made = sum(_decompressed(source, body, size, *buffer) for buffer in record.structures(2, "<qq"))
    if rows < 0:
        raise IndexError
    return Message(kind, begin, body + size, rows, size, made, number, adds)


def _is_compressed(record: "_Table", metadata: bytes) -> bool:
    """Arrow 0.17 said it in the metadata of a message, where pyarrow still looks for it."""
    return record.has(3) or (_version(metadata) < _V5 and _COMPRESSED_BEFORE_V5 in metadata)


def _decompressed(source: pa.NativeFile, body: int, size: int, begin: int, length: int) -> int:
    """Bytes of a compressed buffer, which begins with that number; -1 means stored as it is."""
    if begin < 0 or length < 0 or begin + length > size:
        raise IndexError
    if length < 8:
        return length
    given = struct.unpack("<q", source.read_at(8, body + begin))[0]
    return length - 8 if given == -1 else max(given, 0)


def _unsigned(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


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

    def structures(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """A vector of structures with fields of this form."""
        at = self._position(field)
        if at:
            start = at + _unsigned(self._data, at)
            stop = start + 4 + struct.calcsize(form) * _unsigned(self._data, start)
            if stop > len(self._data):
                raise IndexError
            yield from struct.iter_unpack(form, self._data[start + 4 : stop])
