"""Which format a file is in, by its content: magic bytes of its decompressed beginning, then what that parses as."""

import json
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from pipeline.plan import Kind
from pipeline.read.columns import body_columns
from pipeline.read.formats import TEXTS, Format, Named
from pipeline.read.streams import Compression, DamagedStream, content_of
from pipeline.read.tar import is_header
from pipeline.settings import ReadSettings
from shared.shards.arrow_messages import FILE_MAGIC

HEAD = 2**16
"""Bytes of content that are looked at."""
_RAW = 2**13
"""Bytes of a file that are read to tell how it is compressed."""
_COMPRESSIONS: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
)
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL)
_ZSTD_SKIPPED = range(0x184D2A50, 0x184D2A60)
_FOREIGN = {
    b"PK\x03\x04": "zip archive",
    b"PK\x05\x06": "zip archive",
    b"\x89PNG": "PNG image",
    b"\xff\xd8\xff": "JPEG image",
    b"GIF8": "GIF image",
    b"%PDF-": "PDF",
    b"\x7fELF": "program",
    b"MZ\x90\0": "program",
    b"\xca\xfe\xba\xbe": "program",
    b"7z\xbc\xaf\x27\x1c": "7z archive",
    b"Rar!\x1a\x07": "rar archive",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xff\x06\0\0sNaPpY": "snappy",
    b"SQLite format 3\0": "SQLite database",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY": "NumPy array",
    b"ORC": "ORC table",
    b"Obj\x01": "Avro table",
    b"PARE": "encrypted Parquet",
    b"FEA1": "Feather of version 1",
    b"\x80\x02": "pickle",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"wOFF": "font",
    b"wOF2": "font",
    b"OggS": "sound",
    b"ID3": "sound",
    b"fLaC": "sound",
    b"b0VIM ": "note of an editor",
}
_BINARY_AFTER = 8
"""A short magic word of letters counts only where NUL or other bytes that no text has follow in so many KiB."""
_SPACE = b" \t\r\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_NO_TEXT_BYTES = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1a\x1b")) + b"\x7f"
_WEB_TEXT, _WEB_PAGE = (
    re.compile(rb"WARC-Type: *conversion", re.I),
    re.compile(rb"WARC-Type: *(response|request)", re.I),
)


class NoText(Exception):
    """Why a file is not read, as a reason that several files may share."""


def format_in(file: IO[bytes], name: Named, reading: ReadSettings) -> Format:
    """The format of a file that is open at its beginning. Raises NoText for one that holds nothing to be read."""
    raw = file.read(_RAW)
    compression = compression_in(raw, name)
    if reading.input_format is not None:
        return Format(reading.input_format, compression)
    whole = len(raw) < _RAW
    head = raw
    if compression != "none":
        file.seek(0)
        whole, head = False, _beginning(content_of(file, compression, max_window=reading.max_window))
    elif not whole:
        head += file.read(HEAD - _RAW)
        whole = len(head) < HEAD
    kind = kind_in(head, whole, name, reading)
    if compression != "none" and kind in ("parquet", "arrow"):
        raise NoText(f"{kind} that is compressed as a whole: decompress it")
    return Format(kind, compression)


def _beginning(content: Iterator[bytes]) -> bytes:
    head = b""
    with suppress(DamagedStream):  # reading meets it again and says so
        for chunk in content:
            head += chunk
            if len(head) >= HEAD:
                break
    return head[:HEAD]


def compression_in(raw: bytes, name: Named) -> Compression:
    """How a file that begins so is compressed; what its name says where that is too damaged to tell."""
    for magic, compression in _COMPRESSIONS:
        if raw.startswith(magic):
            return compression
    if _BZIP2.match(raw):
        return "bzip2"
    if len(raw) >= 4 and struct.unpack_from("<I", raw)[0] in _ZSTD_SKIPPED:
        return "zstd"
    if name.compression == "none" or not raw:
        return name.compression
    plain = len(raw) > _BINARY_AFTER and (is_text(raw) or recognised(raw) is not None)
    return "none" if plain else name.compression


def kind_in(head: bytes, whole: bool, name: Named, reading: ReadSettings) -> Kind:
    """The kind of content that begins with ``head``, or is that. Raises NoText."""
    if not head:
        return name.kind or "text"
    if (found := recognised(head)) is not None:
        if found == "wet" and name.kind != "wet" and _WEB_PAGE.search(head) and not _WEB_TEXT.search(head):
            raise NoText("web archives of pages, not of texts (.wet)")
        return found
    if (foreign := _foreign(head)) is not None and not (foreign.startswith("Feather") and name.kind == "arrow"):
        raise NoText(f"no text by their content: {foreign}")
    if (found := _json_kind(head, whole, name, reading)) is not None:
        return found
    if name.kind == "json":
        return "jsonl"  # every line of it will be said to be none
    if name.kind is not None or name.suffix in TEXTS or is_text(head):
        return name.kind or "text"
    raise NoText("no text by their content")


def recognised(head: bytes) -> Kind | None:
    """The kind that magic bytes tell."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(FILE_MAGIC + b"\0\0") or _is_stream(head):
        return "arrow"
    if head.startswith(b"WARC/1."):
        return "wet"
    return "webdataset" if is_header(head[:512]) else None


def _is_stream(head: bytes) -> bool:
    """Whether an Arrow stream begins so: a mark, the length of a message, then a flatbuffer's table inside it."""
    if len(head) < 16 or head[:4] != b"\xff\xff\xff\xff":
        return False
    length, root = struct.unpack_from("<iI", head, 4)
    return 0 < length < 2**28 and length % 8 == 0 and 0 < root < length


def _foreign(head: bytes) -> str | None:
    """What content is that begins with the magic bytes of a format that is not read."""
    for magic, what in _FOREIGN.items():
        letters = magic.isalnum() or magic == b"%PDF-"
        if head.startswith(magic) and (not letters or magic == b"%PDF-" or not is_text(head[: _BINARY_AFTER * 2**10])):
            return what
    for magic, compression in _COMPRESSIONS:
        if head.startswith(magic):
            return f"{compression} inside another compression"
    if head[:4] == b"RIFF" and head[8:12] in (b"WAVE", b"AVI ", b"WEBP"):
        return "sound or pictures"
    return None


def is_text(head: bytes) -> bool:
    """Whether bytes look like text in some encoding: no NUL, but in UTF-16, and hardly any control characters."""
    if head.startswith(_UTF16_MARKS):
        return True
    if b"\0" in head:
        return max(head[::2].count(0), head[1::2].count(0)) > 0.3 * len(head) and b"\0\0" not in head
    return 100 * (len(head) - len(head.translate(None, _NO_TEXT_BYTES))) <= len(head)


def _json_kind(head: bytes, whole: bool, name: Named, reading: ReadSettings) -> Kind | None:
    """jsonl for objects of one line each, json for an array of them or objects of several lines."""
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip(_SPACE)
    if text[:1] not in (b"[", b"{"):
        return None
    if not name.kind and (name.suffix or text[:1] == b"[") and not _has_column(text, reading):
        return None  # a text that begins with a bracket
    line, newline, rest = text.partition(b"\n")
    rest = rest.lstrip(_SPACE)
    if text[:1] == b"[":
        after = text[1:].lstrip(_SPACE)
        lines = bool(newline) and bool(rest) and _parses(line) and rest[:1] in (b"[", b"{", b'"')
        return "json" if (after[:1] in (b"{", b"]") or name.kind == "json") and not lines else None
    if not newline and not whole:
        return "jsonl"  # a long line
    if _parses(line):
        return "jsonl"
    opened = line.rstrip(_SPACE)[-1:] in (b"{", b"[", b",")
    if opened and rest[:1] in (b'"', b"}", b"]", b"{", b"["):
        return "json"
    return name.kind and "jsonl"


def _has_column(text: bytes, reading: ReadSettings) -> bool:
    return any(re.search(b'"' + re.escape(column.encode()) + rb'"\s*:', text) for column in body_columns(reading))


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
