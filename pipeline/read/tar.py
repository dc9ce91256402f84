"""Members of a tar, read forward: nothing is extracted, and a cut or broken archive says so."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.read.forward import Forward
from pipeline.read.streams import DamagedStream

BLOCK = tarfile.BLOCKSIZE
_LONGEST_EXTENSION = 2**20
_PAX_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive. Its content is next in the stream, and passed over if nobody reads it."""

    name: str
    offset: int
    """Where its content begins."""
    size: int


def members(stream: Forward) -> Iterator[Member]:
    """Regular files in order; folders, links and devices are passed over.

    Raises DamagedStream where the archive is damaged, or ends without its end mark.
    """
    long_name: str | None = None
    size: int | None = None
    while True:
        at = stream.offset
        header = _header(stream, at)
        if header is None:
            return
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX_HEADERS):
            data = _extension(stream, header, at)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = _text(data.rstrip(b"\0"))
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                records = _pax_records(data, at)
                long_name = records.get("path", long_name)
                given = records.get("size", "")
                size = int(given) if given.isascii() and given.isdigit() else size
            continue
        member = Member(long_name or header.name, stream.offset, header.size if size is None else size)
        long_name, size = None, None
        end = member.offset + member.size + -member.size % BLOCK
        if header.isreg():
            yield member
        stream.skip(end - stream.offset)
        if stream.offset < end:
            raise DamagedStream(stream.damage or f"the tar ends inside {member.name!r}")


def _header(stream: Forward, at: int) -> tarfile.TarInfo | None:
    """The next header; None at the end mark, after which only zeros may follow."""
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise DamagedStream(stream.damage or "the tar ends without its end mark")
    if block.count(0) == BLOCK:
        while rest := stream.read(2**20):
            if rest.count(0) != len(rest):
                raise DamagedStream("the tar goes on after its end mark")
        if stream.damage is not None:
            raise DamagedStream(stream.damage)
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedStream(f"the tar has no member at offset {at}: {error}") from None
    if header.size < 0:
        raise DamagedStream(f"the tar has a member of negative size at offset {at}")
    return header


def _extension(stream: Forward, header: tarfile.TarInfo, at: int) -> bytes:
    """The content of a header that belongs to the member after it."""
    if header.size > _LONGEST_EXTENSION:
        raise DamagedStream(f"the tar has a header of {header.size} bytes at offset {at}")
    data = stream.read(header.size)
    stream.skip(-header.size % BLOCK)
    if len(data) < header.size:
        raise DamagedStream(stream.damage or f"the tar ends inside a header at offset {at}")
    return data


def _pax_records(data: bytes, at: int) -> dict[str, str]:
    """``length key=value`` records of an extended header."""
    records = {}
    while data.rstrip(b"\0"):
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) < int(length[:9]) <= len(data):
            raise DamagedStream(f"the tar has an extended header that makes no sense at offset {at}")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        key, _, value = record.partition(b"=")
        records[_text(key)] = _text(value.removesuffix(b"\n"))
    return records


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
