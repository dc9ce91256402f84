"""A document in rows: whole, or in parts that end where patches end; nothing is lost at the seams."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cutting import document_rows
from pipeline.records import Place, Record
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.content import with_last
from shared.vocabulary import document_tokens


def record(text: bytes) -> Record:
    return Record(Place("f"), "id", "s", text, meta="{}")


@given(st.binary(max_size=60), st.integers(8, 70), st.integers(1, 8), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_parts_are_the_document(text, longest, stride, patched, scored):
    patching = PatchingSettings(rule="static", stride=stride) if patched else PatchingSettings(rule="none")
    entropies = np.arange(len(text) + 1, dtype=np.float32) if scored else None
    rows = list(document_rows(record(text), patching, entropies, longest))
    assert list(with_last(rows)) == [(row, row is rows[-1]) for row in rows]  # the writer takes them
    assert b"".join(row.text for row in rows) == text
    assert all(len(row.text) <= longest for row in rows)
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
    (row,) = document_rows(record(b"abcd"), patching, entropies)
    assert (
        row.patch_lengths.tolist()
        == patch_lengths(document_tokens(b"abcd"), PatchingSettings(rule="entropy", theta=2.5), entropies).tolist()
    )
