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

from pipeline.read.lines import Line, LineRange, Lines, lines
from pipeline.read.streams import CHUNK, DamagedStream, content_of

TEXT = b"".join(b"line %d of some text\n" % i for i in range(5000))


KINDS = ["gzip", "zstd", "bzip2", "xz"]


def packed(kind: str, text: bytes) -> bytes:
    if kind == "zstd":
        return zstandard.ZstdCompressor().compress(text)
    return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[kind](text)


def read(path: Path, kind: str) -> tuple[bytes, str | None]:
    found = b""
    try:
        with open(path, "rb") as file:
            for chunk in content_of(file, kind):
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
        path.write_bytes(packed(kind, bytes(7 * CHUNK)))
        assert read(path, kind) == (bytes(7 * CHUNK), None)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
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


def each_line(found: Iterable[Line | Lines]) -> Iterator[Line]:
    """Lines one by one, however many come together."""
    for some in found:
        yield from [some] if isinstance(some, Line) else some


def in_chunks(content: bytes, size: int):
    return (content[i : i + size] for i in range(0, len(content), size))


def ranges(size: int, cut: int) -> list[tuple[int, int | None]]:
    begins = range(0, max(size, 1), cut)
    return [(begin, begin + cut if begin + cut < size else None) for begin in begins]


def parts(content: bytes, cut: int, chunk: int, damage: str | None = None):
    """The content as ranges take it."""

    def rest(begin: int):
        yield from in_chunks(content[begin:], chunk)
        if damage is not None:
            raise DamagedStream(damage)

    return [LineRange(rest(begin), begin, end) for begin, end in ranges(len(content), cut)]


@given(
    st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\n\n", b"defgh", b"\r\n", b"x" * 40]), max_size=30).map(b"".join),
    st.integers(1, 12),
    st.integers(1, 7),
)
def test_byte_ranges_share_the_content_and_none_begins_inside_a_line(content, cut, chunk):
    taken = [(part, b"".join(part)) for part in parts(content, cut, chunk)]
    assert b"".join(data for _, data in taken) == content
    assert all(data.endswith(b"\n") for _, data in taken[:-1] if data and not content.endswith(data))
    for part, data in taken:
        assert part.digest() == hashlib.sha256(data).digest()
        assert part.newlines == data.count(b"\n")
        if data:
            assert content[part.offset :].startswith(data)
            assert part.offset == 0 or content[part.offset - 1 : part.offset] == b"\n"


@given(
    st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\n\n", b"defgh", b"\r\n"]), max_size=30).map(b"".join),
    st.integers(1, 12),
    st.integers(1, 7),
)
def test_lines_of_ranges_have_offsets_of_the_file_and_numbers_of_the_range(content, cut, chunk):
    found, before = [], 0
    for part in parts(content, cut, chunk):
        found += [(before + line.number, line.offset, line.data) for line in each_line(lines(part))]
        before += part.newlines
    wanted, offset = [], 0
    for number, data in enumerate(content.split(b"\n"), 1):
        if data or offset + len(data) < len(content):
            wanted.append((number, offset, data))
        offset += len(data) + 1
    assert found == wanted


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_damage_is_told_once_whatever_the_ranges(cut_at, cut, chunk):
    content = b"one\ntwo two\n\nthree three three\nfour\nfive five!\n"[:cut_at]
    found = [line for part in parts(content, cut, chunk, "cut") for line in each_line(lines(part))]
    assert [line.data for line in found if line.damage is None] == content.split(b"\n")[:-1]
    assert [line.data for line in found if line.damage] == [content.split(b"\n")[-1]]


def test_a_line_too_long_to_hold_leaves_an_excerpt_and_a_hash_and_the_next_line_is_whole():
    content = b"ok\n" + b"x" * 300 + b"\nfine\n"
    found = list(each_line(lines(LineRange(in_chunks(content, 16)), longest=100)))
    assert [line.data for line in (found[0], found[2])] == [b"ok", b"fine"]
    assert found[1].size == 300
    assert found[1].sha256 == hashlib.sha256(b"x" * 300).hexdigest()
