"""Our own shards as input: rows become the records that they were, parts joined, in the split that they are in."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.plan import Piece
from pipeline.records import LONGEST_HELD, LongText, Place, Record, Text
from shared.shards.columns import BatchColumns
from shared.shards.dataset import Dataset
from shared.shards.index import ShardIndex
from shared.shards.manifest import MANIFEST_NAME, Manifest
from shared.shards.open import open_dataset
from shared.shards.runs import ROW_BITS
from shared.shards.spans import Spans, joined_spans


def documents(folder: Path, shard: int, piece: Piece, meta: bool) -> Iterator[Record]:
    """The documents of one shard that begin at a byte of its text which a piece has.

    Raises DatasetError for a shard that is missing or damaged.
    """
    written = (folder / MANIFEST_NAME).stat().st_mtime_ns if (folder / MANIFEST_NAME).exists() else 0
    dataset = _opened(folder, shard, written)
    index = dataset.shard_index(shard)
    starts = np.flatnonzero(index.part == 0)
    before = np.append(0, np.cumsum(index.bytes, dtype=np.int64))[starts]
    begin = 0 if piece.first else int(np.searchsorted(before, piece.begin))
    end = len(starts) if piece.last else int(np.searchsorted(before, piece.end))
    if begin < end:
        stop = len(index.part) if end == len(starts) else int(starts[end])
        yield from shard_records(dataset, shard, int(starts[begin]), stop, meta)


@lru_cache(maxsize=1)
def _opened(folder: Path, shard: int, written: int) -> Dataset:
    """The dataset, for reading one of its shards: the next pieces are likely to be of the same one.

    What is opened and checked for one shard is let go with it, but the manifest is parsed once.
    """
    return Dataset(folder, _manifest(folder, written))


@lru_cache(maxsize=1)
def _manifest(folder: Path, written: int) -> Manifest:
    return open_dataset(folder).manifest


def shard_records(dataset: Dataset, shard: int, begin: int, end: int, meta: bool) -> Iterator[Record]:
    """The same of a dataset that is open."""
    index = dataset.shard_index(shard)
    starts = begin + np.flatnonzero(index.part[begin:end] == 0)
    stops = np.append(starts[1:], end)
    yield from _Shard(dataset, shard, index).records(starts, stops, meta)


def documents_at(dataset: Dataset, starts: np.ndarray, stops: np.ndarray) -> Iterator[Record]:
    """The documents in [start, stop) each, which are shard * 2**ROW_BITS + row; int64, sorted."""
    shards = starts >> ROW_BITS
    for number in np.unique(shards).tolist():
        chosen, first = shards == number, number << ROW_BITS
        shard = _Shard(dataset, number, dataset.shard_index(number))
        yield from shard.records(starts[chosen] - first, stops[chosen] - first, meta=False)


class _Shard:
    """The documents of one shard; a record batch is decoded once while rows stay in it."""

    def __init__(self, dataset: Dataset, shard: int, index: ShardIndex) -> None:
        self._dataset, self._shard, self._index = dataset, shard, index
        self._number = -1
        self._columns: BatchColumns | None = None

    def records(self, starts: np.ndarray, stops: np.ndarray, meta: bool) -> Iterator[Record]:
        """Documents in rows [start, stop) each; int64 [N]."""
        sizes = np.append(0, np.cumsum(self._index.bytes))
        for start, stop, size in zip(starts.tolist(), stops.tolist(), (sizes[stops] - sizes[starts]).tolist()):
            columns, row = self._at(start)
            yield Record(
                place=Place(self._dataset.shard(self._shard).name, row=start),
                id=columns.id(row),
                subset=columns.subset(row),
                text=self._text(start, stop, size),
                split=self._dataset.manifest.identity.split,
                meta=columns.meta(row) if meta else None,
                size=size,
                spans=self._spans(start, stop),
            )

    def _text(self, start: int, stop: int, size: int) -> Text:
        if size <= LONGEST_HELD:
            return b"".join(self._parts(start, stop))
        digest = hashlib.sha256()
        for part in self._parts(start, stop):
            digest.update(part)
        return LongText(size, digest.digest(), lambda: self._parts(start, stop))

    def _spans(self, start: int, stop: int) -> Spans | None:
        """Those of a whole document, as they were before it was cut into parts."""
        found: list[tuple[Spans, int]] = []
        for number in range(start, stop):
            columns, row = self._at(number)
            if (spans := columns.spans(row)) is not None:
                found.append((spans, len(columns.text(row))))
        return joined_spans(found) if found else None

    def _parts(self, start: int, stop: int) -> Iterator[bytes]:
        for number in range(start, stop):
            columns, row = self._at(number)
            yield columns.text(row).tobytes()

    def _at(self, row: int) -> tuple[BatchColumns, int]:
        """The record batch that holds a row of the shard, and its place there."""
        batch = int(self._index.batch[row])
        if self._columns is None or self._number != batch:
            self._columns, self._number = self._dataset.batch(self._shard, batch), batch
        return self._columns, int(self._index.row[row])
