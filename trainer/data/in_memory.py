"""Whole documents in memory, to be packed as those of a dataset are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from shared.patching import PatchingSettings
from shared.shards.columns import BatchColumns, Ragged, RaggedSpans
from shared.shards.content import ContentHash
from shared.shards.dataset import Dataset, DatasetIndex
from shared.shards.document import Row
from shared.shards.manifest import TOKENIZER_FOLDER, DatasetIdentity, Manifest, ShardEntry, SubsetTotals
from shared.shards.spans import Spans, joined_spans

NAME, NO_HASH = "texts in memory", "0" * 64


class MemoryDataset:
    """D documents, one row each, in the order given: one shard of one record batch."""

    def __init__(
        self,
        rows: Sequence[Row],
        patching: PatchingSettings,
        specials: tuple[str, ...] = (),
        tokenizer: Path = Path(TOKENIZER_FOLDER),
        where: str = NAME,
        content: str = "",
    ) -> None:
        """Rows are whole documents; they have patch lengths if ``patching`` makes any; of rule bpe by ``tokenizer``.

        Args:
            where: they come from, for messages and figures.
            content: their content hash, where they are compared with other documents (`content_of`).
        """
        self.tokenizer, self.where = tokenizer, where
        self._rows = rows
        self.subset_names = tuple(sorted({row.subset for row in rows}))
        self.index = _index(rows, self.subset_names)
        identity = DatasetIdentity(
            split="validation",
            format="arrow",
            sidecar="none",
            patching=patching,
            entropy_model=None,
            source="",
            specials=specials,
        )
        self.manifest = Manifest(identity=identity, shards=[_entry(self.index, self.subset_names, content)])
        self._columns = _columns(rows, patching.patched)

    @property
    def fingerprint(self) -> str:
        """Of the manifest."""
        return self.manifest.fingerprint

    def rows(self, entropies: bool = False) -> Iterator[Row]:
        """The documents in order."""
        return iter(self._rows)

    def batch(self, shard: int, batch: int) -> BatchColumns:
        """The one record batch."""
        return self._columns

    def shard_path(self, shard: int) -> str:
        return self.where


def content_of(rows: Iterable[Row]) -> str:
    """The content hash of whole documents, as the manifest of a dataset of them has it."""
    content = ContentHash()
    for row in rows:
        content.add(row, last=True)
    return content.hexdigest()


Documents = Dataset | MemoryDataset
"""Whole documents, on disk or in memory."""


def _index(rows: Sequence[Row], subset_names: Sequence[str]) -> DatasetIndex:
    codes = {name: code for code, name in enumerate(subset_names)}
    count = len(rows)
    size = np.array([len(row.text) for row in rows], np.int64)
    tokens, targets, target_bytes = size.copy(), size + 1, size.copy()
    for number, row in enumerate(rows):
        if row.spans is not None:
            tokens[number], targets[number], target_bytes[number] = row.size, row.targets(True), row.learnt_bytes
    lengths = [row.patch_lengths for row in rows]
    return DatasetIndex(
        shard=np.zeros(count, np.int32),
        batch=np.zeros(count, np.int32),
        row=np.arange(count, dtype=np.int32),
        bytes=size,
        tokens=tokens,
        targets=targets,
        learnt_bytes=target_bytes,
        patches=np.array([0 if own is None else len(own) for own in lengths], np.int32),
        last_patch=np.array([0 if own is None else own[-1] for own in lengths], np.uint16),
        part=np.zeros(count, np.int32),
        last=np.ones(count, np.bool_),
        subset=np.array([codes[row.subset] for row in rows], np.int32),
    )


def _entry(index: DatasetIndex, subset_names: Sequence[str], content: str) -> ShardEntry:
    """The shard's figures; it is no file, so that there is nothing to verify."""
    totals = {}
    for code, name in enumerate(subset_names):
        own = index.subset == code
        size, target_bytes, patches = index.bytes[own], index.learnt_bytes[own], index.patches[own]
        totals[name] = SubsetTotals(
            documents=int(own.sum()),
            rows=int(own.sum()),
            bytes=int(size.sum()),
            patches=int(np.maximum(patches - 1, 0).sum()),
            specials=int((index.tokens[own] - size).sum()),
            unlearnt=int((index.tokens[own] + 1 - index.targets[own]).sum()),
            unlearnt_bytes=int((size - target_bytes).sum()),
        )
    return ShardEntry(
        name=NAME,
        bytes_on_disk=0,
        sha256=content or NO_HASH,
        index_sha256=NO_HASH,
        sidecar_sha256=None,
        content_hash=content or NO_HASH,
        subsets=totals,
        patch_length_histogram=[],
        entropy_histogram=[],
    )


def _columns(rows: Sequence[Row], patched: bool) -> BatchColumns:
    lengths = None
    if patched:
        lengths = _ragged([np.asarray(row.patch_lengths, "<u2").tobytes() for row in rows])
    return BatchColumns(
        texts=_ragged([row.text for row in rows]),
        lengths=lengths,
        parts=np.zeros(len(rows), np.int32),
        ids=pa.array([_encodable(row.id) for row in rows], pa.string()),
        subsets=pa.array([row.subset for row in rows], pa.string()),
        metas=pa.array([row.meta for row in rows], pa.string()),
        all_spans=_spans([row.spans for row in rows]),
    )


def _encodable(id: str) -> str:
    """An id whose bytes that are not UTF-8, as names of files may have them, are escapes."""
    return id.encode("utf-8", "backslashreplace").decode()


def _ragged(values: Sequence[bytes]) -> Ragged:
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    return Ragged(np.frombuffer(b"".join(values), np.uint8), np.append(0, ends[:-1]), ends)


def _spans(spans: Sequence[Spans | None]) -> RaggedSpans | None:
    present = np.array([own is not None for own in spans], bool)
    if not present.any():
        return None
    bounds = np.append(0, np.cumsum([0 if own is None else len(own.ends) for own in spans]))
    given = [own for own in spans if own is not None]
    together = Spans(
        np.concatenate([own.ends for own in given]),
        np.concatenate([own.specials for own in given]),
        np.concatenate([own.losses for own in given]),
    )
    return RaggedSpans(present, bounds, together)


def whole_documents(dataset: Documents, entropies: bool = False) -> Iterator[Row]:
    """The documents of a dataset in order, each as one row however many it was stored in; without patches.

    With ``entropies``: those of its sidecar, float32 nats, one for each input. Raises DatasetError.
    """
    parts: list[Row] = []
    last = dataset.index.last
    for number, row in enumerate(dataset.rows(entropies)):
        parts.append(row)
        if last[number]:
            yield _joined(parts)
            parts = []


def _joined(parts: Sequence[Row]) -> Row:
    """One row of all parts of a document."""
    first = replace(parts[0], patch_lengths=None)
    if len(parts) == 1:
        return first
    spans = [(part.spans, len(part.text)) for part in parts if part.spans is not None]
    entropies = [part.entropies for part in parts if part.entropies is not None]
    return replace(
        first,
        text=b"".join(part.text for part in parts),
        spans=joined_spans(spans) if spans else None,
        entropies=np.concatenate(entropies) if entropies else None,
    )
