"""What bytes are follows from how they begin, and text of any kind stays text."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shared.io.files.file_types import HEAD, compressor, container, is_text, not_plain_text, wide_encoding

TEXT = b'{"text": "hello"}\n' * 20
TABLE = pa.table({"text": ["hello"]})


def tarred(**members: bytes) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return file.getvalue()


def zipped() -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", TEXT)
        return file.getvalue()


def as_parquet() -> bytes:
    with io.BytesIO() as file:
        pq.write_table(TABLE, file)
        return file.getvalue()


def as_arrow(writer) -> bytes:
    with io.BytesIO() as file:
        with writer(file, TABLE.schema) as sink:
            sink.write_table(TABLE)
        return file.getvalue()


OTHERS = {
    "gzip": (gzip.compress(TEXT), "decompress"),
    "zstd": (zstandard.compress(TEXT), "decompress"),
    "bzip2": (bz2.compress(TEXT), "decompress"),
    "xz": (lzma.compress(TEXT), "decompress"),
    "tar archive": (tarred(**{"a.txt": TEXT}), "unpack"),
    "zip archive": (zipped(), "unpack"),
    "web archive": (b"WARC/1.0\r\nWARC-Type: conversion\r\n", "pipeline preprocess"),
    "Parquet": (as_parquet(), r"\.parquet"),
    "Arrow": (as_arrow(pa.ipc.new_file), r"\.arrow"),
    "Arrow ": (as_arrow(pa.ipc.new_stream), r"\.arrow"),
    "program": (b"\x7fELF\x02\x01\x01\0", "text"),
    "pickle": (b"\x80\x04\x95\0\0", "text"),
    "PDF": (b"%PDF-1.7\n", "text"),
    "binary": (bytes(range(256)) * 4, "text"),
    "UTF-16": (TEXT.decode().encode("utf-16"), "iconv -f UTF-16"),
    "UTF-16 ": (TEXT.decode().encode("utf-16-le"), "iconv -f UTF-16"),
    "UTF-16  ": (TEXT.decode().encode("utf-16-be"), "iconv -f UTF-16"),
    "UTF-32": (TEXT.decode().encode("utf-32"), "iconv -f UTF-32"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_plain_text_is_named_with_what_would_be_right(what: str) -> None:
    content, remedy = OTHERS[what]
    problem = not_plain_text(content[:HEAD])
    assert problem is not None
    assert what.strip() in problem
    assert re.search(remedy, problem)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])).map(str.encode))
def test_texts_of_any_script_are_plain_text_unless_they_begin_as_another_format(text: bytes) -> None:
    if not text.startswith((b"WARC/1.", b"%PDF-", b"PAR1")):
        assert not_plain_text(text) is None


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8-sig", "utf-8"])
def test_encodings_of_single_bytes_are_plain_text(encoding: str) -> None:
    assert not_plain_text("ID3 or OggS: café, naïve\r\n\f".encode(encoding)) is None


@given(st.binary(max_size=600))
def test_any_bytes_have_an_answer(head: bytes) -> None:
    assert (not_plain_text(head) is None) <= is_text(head)
    assert compressor(head) is None or container(head) is None
    assert wide_encoding(head) is None or is_text(head)
