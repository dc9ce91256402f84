"""Text files cut into documents: nothing lost, nothing that depends on how the file is read."""

import gzip
from collections.abc import Iterator

import pytest
from helpers.pipeline_helpers import STATIC, preprocess, stored
from hypothesis import given
from hypothesis import strategies as st

from pipeline.read.formats.passages import cut

SIZE = 64


def chunked(text: bytes, step: int) -> Iterator[bytes]:
    return (text[at : at + step] for at in range(0, len(text), step))


TEXTS = st.lists(
    st.sampled_from([b"word ", b"\n", b"\n \n", b"\n\n\n", b"x" * 70, "語".encode(), b"\xff", b" " * 65, b"line\n"]),
    max_size=120,
).map(b"".join)


@given(TEXTS, st.integers(1, 300))
def test_pieces_are_the_text_whatever_the_chunks_are(text: bytes, step: int) -> None:
    pieces = list(cut(chunked(text, step), SIZE))
    assert b"".join(pieces) == text
    assert pieces == list(cut(iter([text]), SIZE))
    assert all(len(piece) >= SIZE for piece in pieces[:-1])


def test_a_piece_ends_with_a_blank_line_else_with_a_line_else_before_a_character() -> None:
    paragraph = b"a" * 70 + b"\n \n\n"
    assert list(cut(iter([paragraph * 3]), SIZE)) == [paragraph] * 3
    line = b"b" * 49 + b"\n"
    assert list(cut(iter([line * 8]), SIZE)) == [line * 2] * 4
    letters = "語" * 100
    assert [piece.decode() for piece in cut(iter([letters.encode()]), SIZE)] == ["語" * 42, "語" * 42, "語" * 16]


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_a_book_becomes_documents_that_are_the_book(tmp_path, name: str) -> None:
    book = b"".join(b"Chapter %d\n\n" % number + b"It rained. " * 30 + b"\n\n" for number in range(40))
    (tmp_path / name).write_bytes(gzip.compress(book) if name.endswith("gz") else book)
    assert preprocess(tmp_path / name, "--out", tmp_path / "out", "--document-bytes", 1000, *STATIC) == 0
    documents = {int(id.rpartition(":@")[2]): text for id, _, text in stored(tmp_path / "out")}
    assert b"".join(documents[offset] for offset in sorted(documents)) == book
    assert len(documents) > 10


def test_what_stands_before_damage_is_kept_and_the_rest_is_a_dead_letter(tmp_path) -> None:
    book = b"".join(
        b"%d: it rained and it rained and it rained, all through the night, and then again\n\n" % n for n in range(5000)
    )
    packed = gzip.compress(book, 0)
    (tmp_path / "book.txt.gz").write_bytes(packed[: len(packed) // 2])
    assert preprocess(tmp_path / "book.txt.gz", "--out", tmp_path / "out", "--document-bytes", 1000, *STATIC) == 3
    kept = {int(id.rpartition(":@")[2]): text for id, _, text in stored(tmp_path / "out")}
    text = b"".join(kept[offset] for offset in sorted(kept))
    assert len(text) > 50_000
    assert book.startswith(text)
