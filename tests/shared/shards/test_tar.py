"""Headers that this code wrote are read faster than others, and mean the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.shards.formats import tar


def read(archive: bytes) -> list[tuple[int, str, int, int]] | str:
    """The members, or why they cannot be read."""
    try:
        return list(tar.members(memoryview(archive), 0))
    except tar.TarError as error:
        return str(error)


def read_slowly(archive: bytes) -> list[tuple[int, str, int, int]] | str:
    """The same by the standard library alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar, "_written_here", lambda block: None)
        return read(archive)


names = st.sampled_from(["0000000007.json", "a", "x" * 100, "é.bytes"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=4))
def test_members_are_what_the_standard_library_reads(files: list[tuple[str, bytes]]) -> None:
    archive = b"".join(tar.member(name, content) for name, content in files)
    archive += tar.end_of_archive(len(archive))
    found = read(archive)
    assert found == read_slowly(archive)
    assert [(name, archive[start:end]) for _, name, start, end in found] == files


def test_headers_of_this_code_take_the_fast_way() -> None:
    for size in (0, 7, 8**6):
        assert tar._written_here(tar.member("0000000007.patch_lengths", bytes(size))[: tar.BLOCK]) == (
            "0000000007.patch_lengths",
            size,
        )


@pytest.mark.parametrize("place", range(tar.BLOCK))
def test_a_changed_header_means_what_the_standard_library_says(place: int) -> None:
    header = bytearray(tar.member("0000000007.bytes", b"some text"))
    for value in (0, 0x20, 0x30, 0x37, 0x38, 0xFF, header[place] ^ 1):
        changed = header.copy()
        changed[place] = value
        assert read(bytes(changed) + tar.END) == read_slowly(bytes(changed) + tar.END)
