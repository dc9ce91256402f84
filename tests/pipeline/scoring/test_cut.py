"""A document in rows: whole, or in parts that end where patches end; nothing is lost at the seams."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Place, Record, Records
from pipeline.scoring.cut import Document, Piece, cut
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.content import check_row, with_last
from shared.shards.document import Row
from shared.shards.rows import Rows
from shared.shards.spans import spans_of
from shared.vocabulary import document_tokens


def pieces(text: bytes, entropies: np.ndarray | None, cuts: set[int]) -> Iterator[Piece]:
    """A document in pieces that end at these bytes."""
    document = Document(Record(Place("f"), "id", "s", text, meta="{}"))
    for begin, end in pairwise([0, *sorted(place for place in cuts if place < len(text)), len(text)]):
        own = None if entropies is None else entropies[begin + (begin > 0) : end + 1]
        yield Piece(document, end - begin, own, end == len(text))


def each_row(found: Iterable[tuple[Any, Rows]]) -> list[tuple[Row, bool]]:
    """The rows one by one, each with whether its document ends there."""
    return [(rows.row(number), bool(rows.last[number])) for _, rows in found for number in range(len(rows))]


@given(
    st.binary(max_size=60),
    st.integers(8, 70),
    st.integers(1, 8),
    st.booleans(),
    st.booleans(),
    st.sets(st.integers(1, 59), max_size=5),
)
def test_parts_are_the_document(text, longest, stride, patched, scored, cuts):
    patching = PatchingSettings(rule="static", stride=stride) if patched else PatchingSettings(rule="none")
    entropies = np.arange(len(text) + 1, dtype=np.float32) if scored else None
    found = each_row(cut(pieces(text, entropies, cuts), patching, longest))
    rows = [row for row, _ in found]
    assert [last for _, last in found] == [last for _, last in with_last(rows)]
    for row, last in with_last(rows):
        check_row(row, last)  # the writer takes it
    assert b"".join(row.text for row in rows) == text
    assert all(len(row.text) <= longest for row in rows)
    if not patched:
        assert all(len(row.text) == longest for row in rows[:-1])
    assert [row.part for row in rows] == list(range(len(rows)))
    if len(text) > longest:
        assert len(rows) >= 2
    if patched:
        whole = patch_lengths(document_tokens(text), patching)
        assert np.concatenate([row.patch_lengths for row in rows]).tolist() == whole.tolist()
    if scored:
        assert np.concatenate([row.entropies for row in rows]).tolist() == entropies.tolist()


def test_the_threshold_of_the_subset_is_used():
    patching = PatchingSettings(rule="entropy", theta=0.5, thetas={"s": 2.5})
    entropies = np.array([9, 1, 2, 3, 1], np.float32)
    ((row, _),) = each_row(cut(pieces(b"abcd", entropies, {2}), patching))
    assert (
        row.patch_lengths.tolist()
        == patch_lengths(document_tokens(b"abcd"), PatchingSettings(rule="entropy", theta=2.5), entropies).tolist()
    )


@pytest.mark.parametrize(
    "patching",
    [
        PatchingSettings(rule="static", stride=3, max_length=5),
        PatchingSettings(rule="static", stride=1),
        PatchingSettings(rule="space", max_length=4),
        PatchingSettings(rule="space", min_length=3, max_length=9),
        PatchingSettings(rule="byte"),
        PatchingSettings(rule="byte", min_length=2, max_length=6, whole_characters=True),
        PatchingSettings(rule="static", stride=9, max_length=6, whole_characters=True),
        PatchingSettings(rule="none"),
    ],
    ids=lambda patching: f"{patching.rule}-{patching.min_length}-{patching.whole_characters}",
)
def test_records_that_come_together_are_cut_as_each_alone(monkeypatch, patching: PatchingSettings) -> None:
    monkeypatch.setattr("pipeline.scoring.cut.TOGETHER", 64)
    rng = np.random.default_rng(1)
    texts = [bytes(rng.choice(list(b"ab ,\n\xc3\xa4"), 1 + n % 60).tolist()) for n in range(199)]
    chat = {n: spans_of([(1, 260, False), (len(texts[n]), None, True)]) for n in range(0, 199, 7)}
    spans = [chat.get(n) for n in range(199)]
    for own in (None, spans):
        records = Records(lambda _: Place("f"), [str(n) for n in range(199)], ["s"] * 199, texts, [9] * 199, spans=own)
        found = each_row(cut([records], patching))
        assert [row.id for row, _ in found] == list(records.ids)
        for number, (row, last) in enumerate(found):
            assert (row.text, row.part, last) == (texts[number], 0, True)
            if patching.patched:
                assert row.patch_lengths.tolist() == patch_lengths(row.tokens(True), patching).tolist()
            else:
                assert row.patch_lengths is None


def test_short_documents_are_cut_together_as_each_alone(monkeypatch):
    monkeypatch.setattr("pipeline.scoring.cut.TOGETHER", 50)
    patching = PatchingSettings(rule="entropy", theta=0.5, thetas={"b": 0.9}, max_length=7)
    rng = np.random.default_rng(0)
    records = [Record(Place("f"), str(n), "ab"[n % 2], bytes(rng.integers(0, 256, n % 60))) for n in range(1, 120)]
    given = []
    for record in records:
        entropies = rng.random(len(record.text) + 1).astype(np.float32)
        given.append((record, entropies))
    whole = [Piece(Document(record), len(record.text), entropies, True) for record, entropies in given]
    found = each_row(cut(whole, patching))
    assert [row.id for row, _ in found] == [record.id for record in records]
    for (row, last), (record, entropies) in zip(found, given):
        wanted = patch_lengths(document_tokens(record.text), patching.for_subset(record.subset), entropies)
        assert (row.text, row.part, last) == (record.text, 0, True)
        assert row.patch_lengths.tolist() == wanted.tolist()
        assert row.entropies is entropies
