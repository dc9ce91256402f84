"""Bytes and lines: cut files say so, and ranges of a file share its lines without losing or doubling one."""

import bz2
import gzip
import hashlib
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inputs.survey import count_lines
from pipeline.plan import byte_pieces
from pipeline.read.lines import Line, Lines, lines
from pipeline.read.streams import CHUNK, DamagedStream, chunks

TEXT = b"".join(b"line %d of some text\n" % i for i in range(5000))


KINDS = ["gzip", "zstd", "bzip2", "xz"]


def packed(kind: str, text: bytes) -> bytes:
    if kind == "zstd":
        return zstandard.ZstdCompressor().compress(text)
    return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[kind](text)


def read(path: Path, kind: str, start: int = 0) -> tuple[bytes, str | None]:
    found = b""
    try:
        for chunk in chunks(path, kind, start):
            assert len(chunk) <= CHUNK
            found += chunk
    except DamagedStream as damage:
        return found, str(damage)
    return found, None


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_compressed_file_is_read_whole(tmp_path, kind):
    path = tmp_path / "f"
    path.write_bytes(packed(kind, TEXT))
    assert read(path, kind) == (TEXT, None)
    assert read(path, kind, 70_000) == (TEXT[70_000:], None)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_members_follow_one_another(tmp_path, kind):
    path = tmp_path / "f"
    path.write_bytes(packed(kind, b"first\n") + packed(kind, b"") + packed(kind, TEXT))
    assert read(path, kind) == (b"first\n" + TEXT, None)


@pytest.mark.parametrize("kind", ["gzip", "xz"])
def test_zero_padding_at_the_end_is_no_damage(tmp_path, kind):
    path = tmp_path / "f"
    path.write_bytes(packed(kind, TEXT) + bytes(512))
    assert read(path, kind) == (TEXT, None)


def test_a_chunk_of_a_highly_compressed_file_stays_small(tmp_path):
    path = tmp_path / "f"
    for kind in KINDS:
        path.write_bytes(packed(kind, bytes(20 * CHUNK)))
        assert read(path, kind) == (bytes(20 * CHUNK), None)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_cut_anywhere_is_noticed_and_what_came_before_is_a_prefix(tmp_path_factory, kind, data):
    whole = packed(kind, TEXT)
    cut = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path_factory.mktemp("cut") / "f"
    path.write_bytes(whole[:cut])
    found, damage = read(path, kind)
    assert damage is not None
    assert TEXT.startswith(found)


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_noticed(tmp_path, kind):
    path = tmp_path / "f"
    path.write_bytes(b"this was never compressed")
    assert read(path, kind)[1] is not None


def all_lines(content: bytes) -> list[Line]:
    """The oracle: split the whole content."""
    found, offset = [], 0
    pieces = content.split(b"\n")
    for number, piece in enumerate(pieces, 1):
        if number < len(pieces) or piece:
            found.append(Line(number, offset, piece, len(piece)))
        offset += len(piece) + 1
    return found


def each_line(found: Iterable[Line | Lines]) -> Iterator[Line]:
    """Lines one by one, however many come together."""
    for some in found:
        yield from [some] if isinstance(some, Line) else some


def in_chunks(content: bytes, size: int):
    return (content[i : i + size] for i in range(0, len(content), size))


@given(
    st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\n\n", b"defgh", b"\r\n"]), max_size=30).map(b"".join),
    st.integers(1, 12),
    st.integers(1, 7),
)
@settings(max_examples=400, deadline=None)
def test_byte_ranges_share_the_lines_with_numbers_and_offsets(content, cut, chunk):
    total, newlines = count_lines(in_chunks(content, chunk), cut)
    assert total == len(content)
    pieces = byte_pieces(total, cut, newlines)
    found = []
    for piece in pieces:
        end = None if piece is pieces[-1] else piece.end
        rest = in_chunks(content[max(piece.begin - 1, 0) :], chunk)
        found += each_line(lines(rest, piece.begin, end, piece.first_line))
    assert found == all_lines(content)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_damage_is_told_once_whatever_the_ranges(cut_at, cut, chunk):
    content = b"one\ntwo two\n\nthree three three\nfour\nfive five!\n"[:cut_at]

    def damaged(part: bytes):
        yield from in_chunks(part, chunk)
        raise DamagedStream("cut")

    newlines = [content.count(b"\n", 0, end) for end in range(cut, len(content) + 1, cut)]
    pieces = byte_pieces(len(content), cut, newlines)
    found = []
    for piece in pieces:
        end = None if piece is pieces[-1] else piece.end
        found += each_line(lines(damaged(content[max(piece.begin - 1, 0) :]), piece.begin, end, piece.first_line))
    assert [line.data for line in found if line.damage is None] == content.split(b"\n")[:-1]
    assert [line.data for line in found if line.damage] == [content.split(b"\n")[-1]]


def test_a_line_too_long_to_hold_leaves_an_excerpt_and_a_hash_and_the_next_line_is_whole():
    content = b"ok\n" + b"x" * 300 + b"\nfine\n"
    found = list(each_line(lines(in_chunks(content, 16), 0, None, 1, longest=100)))
    assert [line.data for line in (found[0], found[2])] == [b"ok", b"fine"]
    assert found[1].size == 300
    assert found[1].sha256 == hashlib.sha256(b"x" * 300).hexdigest()
