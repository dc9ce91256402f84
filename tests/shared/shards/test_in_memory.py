"""Documents in memory are read as a stored dataset of them is."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset, columns_row
from shared.shards.document import Row
from shared.shards.in_memory import InMemoryDataset
from shared.shards.index import RowColumns
from shared.shards.manifest import DatasetIdentity
from shared.shards.spans import spans_of
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens

STATIC = PatchingSettings(rule="static", stride=4, max_length=64)
TEXTS = [b"", b"one text", "\N{SNOWMAN}".encode() * 9, b"\xff\x00", b"the last of them"]


@pytest.fixture(params=[STATIC, PatchingSettings(rule="none")], ids=["patched", "unpatched"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Dataset, InMemoryDataset]:
    """The same documents, stored and in memory; one of them is a target in part."""
    patching = request.param
    rows = []
    for number, text in enumerate(TEXTS):
        lengths = patch_lengths(document_tokens(text), patching) if patching.patched else None
        spans = spans_of([(3, None, False), (len(text), None, True)]) if number == 1 else None
        meta = '{"n": 1}' if number == 2 else None
        rows.append(Row(str(number), "ab"[number > 2], text, patch_lengths=lengths, spans=spans, meta=meta))
    identity = DatasetIdentity(
        split="validation", format="arrow", sidecar="none", patching=patching, entropy_model=None, source="a test"
    )
    entry = write_shard(tmp_path, "shard-00000", rows, "arrow")
    return Dataset(tmp_path, commit_dataset(tmp_path, identity, [entry])), InMemoryDataset(rows, patching)


def test_the_index_is_the_same(both: tuple[Dataset, InMemoryDataset]) -> None:
    stored, held = both
    assert held.subset_names == stored.subset_names
    for field in fields(RowColumns):
        ours, theirs = (getattr(one.shard_index(0), field.name) for one in (held, stored))
        assert ours.dtype == theirs.dtype, field.name
        assert np.array_equal(ours, theirs), field.name


def test_rows_of_the_record_batch_are_the_same(both: tuple[Dataset, InMemoryDataset]) -> None:
    for number in range(len(TEXTS)):
        ours, theirs = (columns_row(one.batch(0, 0), number) for one in both)
        for name in ("id", "subset", "text", "part", "meta"):
            assert getattr(ours, name) == getattr(theirs, name), (number, name)
        assert str(ours.patch_lengths) == str(theirs.patch_lengths)
        assert str(ours.spans) == str(theirs.spans)


def test_totals_and_content_are_the_same(both: tuple[Dataset, InMemoryDataset]) -> None:
    stored, held = both
    assert (held.subsets, held.totals, held.content) == (stored.subsets, stored.totals, stored.content)
