"""Which format a file is in, by its content: magic bytes of its decompressed beginning, then what that parses as."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from pipeline.files import Compression, Kind
from pipeline.read.columns import body_columns
from pipeline.read.format_names import TEXTS, Format, Named
from pipeline.read.streams import DamagedStream, content_of
from pipeline.settings import ReadSettings
from shared.io.files.file_types import (
    BYTE_ORDER_MARK,
    HEAD,
    compressor,
    container,
    foreign,
    is_text,
    to_utf8,
    wide_encoding,
)

_RAW = 2**13
"""Bytes of a file that are read to tell how it is compressed: magic numbers are in the first few."""
_FEWEST = 8
"""Bytes that content must have to say that it is not compressed although its name does."""
_SPACE = b" \t\r\n"
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
    if (found := compressor(raw)) is not None:
        return found
    if name.compression == "none" or not raw:
        return name.compression
    plain = len(raw) > _FEWEST and (is_text(raw) or container(raw) is not None)
    return "none" if plain else name.compression


def kind_in(head: bytes, whole: bool, name: Named, reading: ReadSettings) -> Kind:
    """The kind of content that begins with ``head``, or is that. Raises NoText."""
    if not head:
        return name.kind or "text"
    if (found := container(head)) is not None:
        if found == "wet" and name.kind != "wet" and _WEB_PAGE.search(head) and not _WEB_TEXT.search(head):
            raise NoText("web archives of pages, not of texts (.wet)")
        return found
    if (other := foreign(head)) is not None and not (other.startswith("Feather") and name.kind == "arrow"):
        raise NoText(f"no text by their content: {other}")
    if (packed := compressor(head)) is not None:
        raise NoText(f"no text by their content: {packed} inside another compression")
    if name.kind in ("jsonl", "json") and (encoding := wide_encoding(head)) is not None:
        raise NoText(f"JSON in {encoding}: {to_utf8(encoding)}")
    if (layout := _json_kind(head, whole, name, reading)) is not None:
        return layout
    if name.kind == "json":
        return "jsonl"  # every line of it will be said to be none
    if name.kind is not None or name.suffix in TEXTS or is_text(head):
        return name.kind or "text"
    raise NoText("no text by their content")


def _json_kind(head: bytes, whole: bool, name: Named, reading: ReadSettings) -> Kind | None:
    """jsonl for objects of one line each, json for an array of them or objects of several lines."""
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip(_SPACE)
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
