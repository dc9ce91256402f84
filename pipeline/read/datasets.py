"""Our own shards as input: rows become the records that they were, parts joined, in the split that they are in."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.records import Place, Record
from shared.shards.columns import BatchColumns
from shared.shards.dataset import Dataset, open_dataset


def documents(folder: Path, shard: int, begin: int, end: int, meta: bool) -> Iterator[Record]:
    """The documents in rows [begin, end) of one shard. Raises DatasetError for a shard that is missing or damaged."""
    dataset = open_dataset(folder)
    index = dataset.shard_index(shard)
    rows = ((shard, int(index.batch[row]), int(index.row[row]), row) for row in range(begin, end))
    yield from _joined(dataset, rows, meta)


def documents_at(dataset: Dataset, starts: np.ndarray) -> Iterator[Record]:
    """The documents that begin at these rows (int64, sorted) of the whole dataset."""
    index = dataset.index

    def rows() -> Iterator[tuple[int, int, int, int]]:
        for start in starts.tolist():
            stop = start + 1
            while not index.last[stop - 1]:
                stop += 1
            for row in range(start, stop):
                yield int(index.shard[row]), int(index.batch[row]), int(index.row[row]), row

    yield from _joined(dataset, rows(), meta=False)


def _joined(dataset: Dataset, rows: Iterable[tuple[int, int, int, int]], meta: bool) -> Iterator[Record]:
    """Records of rows (shard, batch, row in the batch, number); a batch is decoded once while rows stay in it."""
    columns: BatchColumns | None = None
    held: tuple[int, int] | None = None
    record: Record | None = None
    parts: list[bytes] = []
    for shard, batch, row, number in rows:
        if columns is None or held != (shard, batch):
            columns, held = dataset.batch(shard, batch), (shard, batch)
        if columns.part(row) == 0:
            if record is not None:
                yield _with_text(record, parts)
            record, parts = _head(dataset, columns, shard, row, number, meta), []
        parts.append(columns.text(row).tobytes())
    if record is not None:
        yield _with_text(record, parts)


def _head(dataset: Dataset, columns: BatchColumns, shard: int, row: int, number: int, meta: bool) -> Record:
    """A record but for its text."""
    return Record(
        place=Place(dataset.manifest.shards[shard].name, row=number),
        id=columns.id(row),
        subset=columns.subset(row),
        text=b"",
        split=dataset.manifest.identity.split,
        meta=columns.meta(row) if meta else None,
    )


def _with_text(record: Record, parts: list[bytes]) -> Record:
    text = parts[0] if len(parts) == 1 else b"".join(parts)
    return replace(record, text=text, size=len(text))
