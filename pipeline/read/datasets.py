"""Our own shards as input: rows become the records that they were, parts joined, in the split that they are in."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.records import Place, Record
from pipeline.settings import SplitName
from shared.shards.columns import BatchColumns
from shared.shards.dataset import Dataset, open_dataset


def documents(folder: Path, shard: int, begin: int, end: int, meta: bool) -> Iterator[Record]:
    """The documents in rows [begin, end) of one shard. Raises DatasetError for a shard that is missing or damaged."""
    dataset = open_dataset(folder)
    name, split = dataset.manifest.shards[shard].name, dataset.manifest.identity.split
    parts: list[bytes] = []
    start, head = begin, None
    for number, (columns, row) in enumerate(_rows(dataset, shard, begin, end), begin):
        if columns.part(row) == 0:
            if head is not None:
                yield _record(*head, Place(name, row=start), split, parts, meta)
            start, head, parts = number, (columns, row), []
        parts.append(columns.text(row).tobytes())
    if head is not None:
        yield _record(*head, Place(name, row=start), split, parts, meta)


def _rows(dataset: Dataset, shard: int, begin: int, end: int) -> Iterator[tuple[BatchColumns, int]]:
    """Each row with the record batch it is in; a batch is decoded once."""
    index = dataset.shard_index(shard)
    columns, held = None, -1
    for batch, row in zip(index.batch[begin:end].tolist(), index.row[begin:end].tolist()):
        if columns is None or batch != held:
            columns, held = dataset.batch(shard, batch), batch
        yield columns, row


def _record(columns: BatchColumns, row: int, place: Place, split: SplitName, parts: list[bytes], meta: bool) -> Record:
    text = parts[0] if len(parts) == 1 else b"".join(parts)
    return Record(
        place=place,
        id=columns.id(row),
        subset=columns.subset(row),
        text=text,
        split=split,
        meta=columns.meta(row) if meta else None,
        size=len(text),
    )
