"""Rows and datasets that the tests of shards share."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, ShardFormat, SidecarType
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens

FORMATS: tuple[ShardFormat, ...] = ("arrow", "webdataset")
STATIC = PatchingSettings(rule="static", stride=4)
NONE = PatchingSettings(rule="none")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
subsets = st.sampled_from(["code", "prose", "中文", "a b"])


def document(id: str, subset: str, text: bytes, seed: int = 0, meta: str | None = None) -> Row:
    """A document with static patches and random entropies."""
    entropies = np.random.default_rng(seed).random(len(text) + 1).astype(np.float32) * 5
    return Row(id, subset, text, 0, patch_lengths(document_tokens(text), STATIC), entropies, meta)


def cut(row: Row, patches: Sequence[int]) -> list[Row]:
    """The parts of a document, cut before the patches of these numbers (none of them the first or an EOS alone)."""
    assert row.patch_lengths is not None
    assert row.entropies is not None
    ends = np.cumsum(row.patch_lengths.astype(np.int64))
    bounds = [0, *(int(ends[p - 1]) for p in patches), len(row.text) + 2]
    parts = []
    for part, (start, stop) in enumerate(pairwise(bounds)):
        first, last = start == 0, part == len(patches)
        lengths = row.patch_lengths[(ends > start) & (ends <= stop)]
        text = row.text[max(0, start - 1) : stop - 1 - last]
        tokens = row.entropies[start : stop - last]
        parts.append(replace(row, part=part, text=text, patch_lengths=lengths, entropies=tokens))
        assert lengths.sum() == len(text) + first + last
    return parts


@st.composite
def row_lists(draw: st.DrawFn) -> list[Row]:
    """Documents of any bytes, some in parts, all patched or none."""
    patched = draw(st.booleans())
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 6))):
        text = draw(st.binary(max_size=60))
        meta = draw(st.none() | texts)
        whole = document(draw(texts), draw(subsets), text, draw(st.integers(0, 9)), meta)
        count = 1 + (len(text) + 3) // 4  # patches whose bytes are in the document
        cuts = sorted(draw(st.sets(st.integers(1, count - 1), max_size=2))) if text else []
        rows += cut(whole, cuts)
    return rows if patched else [replace(row, patch_lengths=None) for row in rows]


def by_subset(rows: Sequence[Row]) -> list[Row]:
    """Rows that fit in one record batch, in the order in which a shard holds them."""
    return sorted(rows, key=lambda row: row.subset)


def make_dataset(
    folder: Path,
    shards: Sequence[Sequence[Row]],
    format: ShardFormat = "arrow",
    sidecar: SidecarType = "none",
    patching: PatchingSettings = STATIC,
) -> Dataset:
    """A finished dataset of these shards."""
    entries = [write_shard(folder, f"shard-{n:05d}", rows, format, sidecar) for n, rows in enumerate(shards)]
    identity = DatasetIdentity(
        split="train", format=format, sidecar=sidecar, patching=patching, entropy_model=None, source="a test"
    )
    commit_dataset(folder, identity, entries)
    return open_dataset(folder)


def assert_same_rows(found: Sequence[Row], wanted: Sequence[Row]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted):
        assert (ours.id, ours.subset, ours.part, ours.text, ours.meta) == (
            theirs.id,
            theirs.subset,
            theirs.part,
            theirs.text,
            theirs.meta,
        )
        if theirs.patch_lengths is None:
            assert ours.patch_lengths is None
        else:
            np.testing.assert_array_equal(ours.patch_lengths, theirs.patch_lengths)
            assert ours.patch_lengths.dtype == np.uint16
