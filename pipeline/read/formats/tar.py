"""Members of a tar, read forward: nothing is extracted, and a cut or broken archive says so.

By hand, for the standard library takes a damaged header for the end of the archive and loses the rest without an error.
`shared.shards.formats.tar` reads our own shards, by offsets from an index: docs/decisions/tar-by-hand.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.read.forward import Forward
from pipeline.read.streams import DamagedStream
from shared.io.files.file_types import tar_checksum, tar_number

BLOCK = 512
_LONGEST_EXTENSION = 2**20
"""Bytes of a member that says something of the next one, such as its long name: these are held in memory."""
_WITHOUT_CONTENT = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
"""Types of members that have no content of their own, and what they are."""
_REGULAR, _FOLDER, _VOLUME = (b"0", b"\0", b"7"), b"5", b"V"
_LONG_NAME, _LONG_LINK, _SPARSE = b"L", b"K", b"S"
_EXTENDED, _EXTENDED_FOR_ALL = (b"x", b"X"), b"g"
_SPARSE_FIELDS = "GNU.sparse."


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive. The content of a file is next in the stream, and passed over if nobody reads it."""

    name: str
    offset: int
    """Where its content begins."""
    size: int
    other: str | None = None
    """What it is, if it is no regular file and so has no content to read."""


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: int
    type: bytes


def members(stream: Forward) -> Iterator[Member]:
    """Members in order, also links, devices and sparse files; folders and volume labels are passed over.

    Raises DamagedStream where the archive is damaged, or ends without its end mark.
    """
    name: str | None = None
    size: int | None = None
    sparse = False
    while (header := _header(stream)) is not None:
        if header.type == _LONG_NAME:
            name = _text(_extension(stream, header))
        elif header.type in _EXTENDED:
            fields = _extended(_extension(stream, header), stream.offset)
            sparse = any(key.startswith(_SPARSE_FIELDS) for key in fields)
            name = fields.get(f"{_SPARSE_FIELDS}name", fields.get("path", name))
            size = _decimal(fields["size"], stream.offset) if "size" in fields else size
        elif header.type in (_LONG_LINK, _EXTENDED_FOR_ALL):
            _extension(stream, header)
        else:
            other = _WITHOUT_CONTENT.get(header.type)
            content = header.size if size is None else size
            if other is not None or header.type in (_FOLDER, _VOLUME):
                content = 0
            elif sparse or header.type == _SPARSE:
                other = "a sparse file"
            elif header.type not in _REGULAR:
                other = f"a member of the type {_text(header.type)!r}"
            member = Member(name or header.name, stream.offset, content, other)
            name, size, sparse = None, None, False
            if header.type not in (_FOLDER, _VOLUME):
                yield member
            end = member.offset + member.size + -member.size % BLOCK
            stream.skip(end - stream.offset)
            if stream.offset < end:
                raise DamagedStream(stream.damage or f"the tar ends inside {member.name!r}")


def _header(stream: Forward) -> _Header | None:
    """The next header; None at the end mark, after which only zeros may follow."""
    at = stream.offset
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise DamagedStream(stream.damage or "the tar ends without its end mark")
    if block.count(0) == BLOCK:
        while rest := stream.read(2**20):
            if rest.count(0) != len(rest):
                raise DamagedStream(f"the tar goes on after its end mark at offset {at}")
        if stream.damage is not None:
            raise DamagedStream(stream.damage)
        return None
    try:
        size, checksum = tar_number(block[124:136]), tar_number(block[148:156])
    except ValueError:
        checksum = -1
    if checksum != tar_checksum(block):
        raise DamagedStream(f"the tar has no member at offset {at}")
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    if kind == _SPARSE:
        more = block[482]  # whether a block goes on with the list of what is stored
        while more:
            following = stream.read(BLOCK)
            if len(following) < BLOCK:
                raise DamagedStream(stream.damage or f"the tar ends inside a header at offset {at}")
            more = following[504]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return _Header(_text(name), size, b"5" if kind == b"\0" and name.endswith(b"/") else kind)


def _extension(stream: Forward, header: _Header) -> bytes:
    """The content of a header that belongs to the member after it."""
    at = stream.offset
    if header.size > _LONGEST_EXTENSION:
        raise DamagedStream(f"the tar has a header of {header.size} bytes at offset {at}")
    data = stream.read(header.size)
    stream.skip(-header.size % BLOCK)
    if len(data) < header.size:
        raise DamagedStream(stream.damage or f"the tar ends inside a header at offset {at}")
    return data.rstrip(b"\0")


def _extended(data: bytes, at: int) -> dict[str, str]:
    """``length key=value`` records of an extended header."""
    fields = {}
    while data:
        length, _, _ = data.partition(b" ")
        size = _decimal(length.decode("ascii", "replace"), at)
        if not len(length) < size <= len(data):
            raise DamagedStream(f"the tar has an extended header that makes no sense before offset {at}")
        key, _, value = data[len(length) + 1 : size].partition(b"=")
        fields[_text(key)] = _text(value.removesuffix(b"\n"))
        data = data[size:]
    return fields


def _decimal(text: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DamagedStream(f"the tar has an extended header that makes no sense before offset {at}")
    return int(text)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "backslashreplace")
