"""The part of a dataset that inspect looks at: record batches sampled by a seed, up to a bound on bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shared.randomness import Permutation, stream_key
from shared.shards.columns import BatchColumns
from shared.shards.dataset import Dataset
from shared.shards.runs import ROW_BITS
from shared.vocabulary import OFFSET, is_special

SAMPLE_BYTES = 32_000_000
"""Of text, about; a smaller dataset is read whole."""
ROW_BYTES = 4_000_000
"""Of the text of one row at most; the rest of a huge one is left out."""
SEED = 1
SPECIAL = 0x1E
"""Byte (record separator) that stands for a named special id: texts hardly ever have it."""


@dataclass(frozen=True)
class Stretch:
    """One record batch of R rows, its ragged columns flattened: T bytes of text, P patches, V entropies."""

    columns: BatchColumns
    first: int
    """Its first row: shard * 2**ROW_BITS + row."""
    stored: list[np.ndarray] | None
    """Entropies of each row as the sidecar holds them; None without a sidecar."""
    text: np.ndarray
    """uint8 [T]; a special id between the bytes is shown as SPECIAL, so that token t of a row is byte t - 1."""
    sizes: np.ndarray
    """int64 [R], bytes of each row."""
    part: np.ndarray
    """int32 [R]."""
    last: np.ndarray
    """bool [R], whether a document ends there."""
    subset: np.ndarray
    """int32 [R], code into the dataset's subset_names."""
    lengths: np.ndarray
    """uint16 [P], those of BOS included; empty when unpatched."""
    patches: np.ndarray
    """int64 [R], how many of them belong to each row."""
    values: np.ndarray
    """[V] uint8 grid values or float32 nats; empty without a sidecar."""
    scored: np.ndarray
    """int64 [R], how many of them belong to each row."""


def chosen_batches(dataset: Dataset, budget: int, seed: int) -> list[tuple[int, int]]:
    """Shard and batch of record batches, subsets in turn and each in a seeded order, until they hold ``budget`` bytes.

    Ascending. Raises DatasetError.
    """
    runs = [dataset.runs(code) for code in range(len(dataset.subset_names))]
    orders = [Permutation(len(own), stream_key(seed, "inspect", code)) for code, own in enumerate(runs)]
    chosen: set[tuple[int, int]] = set()
    held = 0
    for turn in range(max(map(len, runs), default=0)):
        for own, order in zip(runs, orders):
            if turn >= len(own):
                continue
            number = int(order(np.array([turn]))[0])
            shard, row, rows = (int(column[number]) for column in (own.shard, own.row, own.rows))
            index = dataset.shard_index(shard)
            for batch in np.unique(index.batch[row : row + rows]).tolist():
                if held >= budget:
                    return sorted(chosen)
                if (shard, batch) not in chosen:
                    chosen.add((shard, batch))
                    held += int(index.bytes[slice(*index.batch_starts[batch : batch + 2])].sum(dtype=np.int64))
    return sorted(chosen)


def stretches(dataset: Dataset, budget: int, seed: int) -> Iterator[Stretch]:
    """The sample in the order of the dataset. Raises DatasetError."""
    scored = dataset.manifest.identity.sidecar != "none"
    for shard, batch in chosen_batches(dataset, budget, seed):
        columns, index = dataset.batch(shard, batch), dataset.shard_index(shard)
        start, stop = index.batch_starts[batch : batch + 2].tolist()
        rows = range(stop - start)
        codes = dataset.subset_codes(shard)
        part = index.part[start:stop]
        texts = [shown_body(columns, row)[:ROW_BYTES] for row in rows]
        stored = dataset.entropies(shard, batch) if scored else None
        values = [] if stored is None else [value[: ROW_BYTES + 1] for value in stored]
        lengths = [_within(columns.patch_lengths(row)) for row in rows] if columns.lengths is not None else []
        yield Stretch(
            columns=columns,
            first=(shard << ROW_BITS) + start,
            stored=stored,
            text=np.concatenate(texts),
            sizes=np.array([len(text) for text in texts], np.int64),
            part=part,
            last=index.last[start:stop],
            subset=codes[index.subset[start:stop]].astype(np.int32),
            lengths=np.concatenate([np.zeros(0, np.uint16), *lengths]),
            patches=np.array([len(own) for own in lengths] or [0] * len(rows), np.int64),
            values=np.concatenate(values) if values else np.zeros(0, np.uint8),
            scored=np.array([len(own) for own in values] or [0] * len(rows), np.int64),
        )


def shown_body(columns: BatchColumns, row: int) -> np.ndarray:
    """uint8 [n]: the bytes of a row, with SPECIAL for each special id between them."""
    text, spans = columns.text(row), columns.spans(row)
    if spans is None:
        return text
    return np.where(is_special(body := spans.tokens(text)), SPECIAL, body - OFFSET).astype(np.uint8)


def _within(lengths: np.ndarray | None) -> np.ndarray:
    """uint16: the patches of a row that end inside what is read of it."""
    assert lengths is not None
    if len(lengths) <= ROW_BYTES // 65_535:
        return lengths
    ends = np.cumsum(lengths, dtype=np.int64)
    return lengths if ends[-1] <= ROW_BYTES + 2 else lengths[: int(np.searchsorted(ends, ROW_BYTES, side="right"))]
