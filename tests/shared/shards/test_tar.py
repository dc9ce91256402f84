"""Headers that this code wrote are read many at once, and mean what the standard library says."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.shard_examples import NONE, STATIC, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.patching.lengths import patch_lengths
from shared.shards.document import Row
from shared.shards.formats import tar
from shared.shards.formats.webdataset import TarReader
from shared.vocabulary import document_tokens

names = st.sampled_from(["0000000007.json", "a", "x" * 100, "é.bytes"])
files = st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=4)


def archive_of(members: list[tuple[str, bytes]]) -> bytes:
    archive = b"".join(tar.member(name, content) for name, content in members)
    return archive + tar.end_of_archive(len(archive))


def at_once(archive: bytes, offsets: list[int]) -> list[tuple[str, int]] | None:
    """Names and sizes of headers, as they are found together."""
    found = tar.written_here(
        np.frombuffer(archive, np.uint8).reshape(-1, tar.BLOCK), np.array(offsets, np.int64) // tar.BLOCK
    )
    if found is None:
        return None
    return [(name.tobytes().rstrip(b"\0").decode(), int(size)) for name, size in zip(*found)]


@settings(max_examples=60, deadline=None)
@given(files)
def test_members_are_what_the_standard_library_reads(members: list[tuple[str, bytes]]) -> None:
    archive = archive_of(members)
    found = list(tar.members(memoryview(archive), 0))
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8") as opened:
        assert [(m.offset, m.name, m.offset_data, m.offset_data + m.size) for m in opened] == found
    assert [(name, archive[start:end]) for _, name, start, end in found] == members
    assert at_once(archive, [offset for offset, *_ in found]) == [(name, len(content)) for name, content in members]


def test_a_header_past_the_end_is_none_of_ours() -> None:
    archive = archive_of([("a", b"b")])
    assert at_once(archive, [len(archive)]) is None


@pytest.mark.parametrize("place", range(tar.BLOCK))
def test_a_changed_header_means_what_the_standard_library_says_or_is_none_of_ours(place: int) -> None:
    header = bytearray(tar.member("0000000007.bytes", b"some text"))
    for value in (0, 0x20, 0x30, 0x37, 0x38, 0xFF, header[place] ^ 1):
        changed = header.copy()
        changed[place] = value
        if (found := at_once(bytes(changed), [0])) is not None:
            said = tarfile.TarInfo.frombuf(bytes(changed[: tar.BLOCK]), "utf-8", "strict")
            assert found == [(said.name, said.size)]
            assert bytes(changed) == bytes(header)


@pytest.mark.parametrize("patched", [True, False])
def test_a_shard_with_headers_of_others_holds_the_same(tmp_path: Path, patched: bool) -> None:
    patching = STATIC if patched else NONE
    texts = [b"", b"some text", bytes(600), b"abc"]
    lengths = [patch_lengths(document_tokens(text), patching) if patched else None for text in texts]
    rows = [Row(f"d{n}", "a", text, 0, own) for n, (text, own) in enumerate(zip(texts, lengths))]
    dataset = make_dataset(tmp_path / "d", [rows], "webdataset", patching=patching)
    path, offsets = Path(dataset.shard_path(0)), dataset.shard_index(0).offset
    with tarfile.open(path) as ours, tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as theirs:
        for member in ours:
            member.mtime = 1
            theirs.addfile(member, ours.extractfile(member))
    starts = np.array([0, len(rows)])
    one, other = TarReader(path, offsets, starts), TarReader(tmp_path / "theirs.tar", offsets, starts)
    assert one._written_here(0, np.empty((len(rows) - 1, 3, 2), np.int64))
    assert not other._written_here(0, np.empty((len(rows) - 1, 3, 2), np.int64))
    for columns in (one.batch(0), other.batch(0)):
        assert [columns.text(row).tobytes() for row in range(len(rows))] == texts
        assert columns.ids.to_pylist() == [row.id for row in rows]
        for row, stored in enumerate(rows):
            found = columns.patch_lengths(row)
            assert (found is None) if stored.patch_lengths is None else found.tolist() == stored.patch_lengths.tolist()
