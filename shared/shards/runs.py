"""Runs: what one subset has in one record batch, so that orders are planned without looking at documents.

A run is the longest piece of consecutive rows of one subset whose documents begin in one record batch. All parts of a
document belong to the run in which it begins. Every run holds at least one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from shared.shards.index import ShardIndex
from shared.shards.manifest import RunRecord

ROW_BITS = 24
"""A row of a dataset is named by shard * 2**ROW_BITS + row: a shard has at most so many rows (`MOST_ROWS`)."""


@dataclass(frozen=True)
class Runs:
    """R runs of one subset, in order of shard and row."""

    shard: np.ndarray
    """int32 [R], number in the dataset that the subset is stored in, see ``first_shard``."""
    batch: np.ndarray
    """int32 [R], record batch of the shard."""
    row: np.ndarray
    """int32 [R], first row in the shard."""
    rows: np.ndarray
    """int32 [R]."""
    documents: np.ndarray
    """int32 [R]; as many as rows where no document has several."""
    tokens: np.ndarray
    """int64 [R], inputs: BOS and body."""
    patches: np.ndarray
    """int64 [R], patches other than BOS; 0 when unpatched."""
    targets: np.ndarray
    """int64 [R]."""
    first_shard: int = 0
    """Number of shard 0 among those of all datasets that are read together: references of documents count from it."""
    shards: int = 0
    """Shards of the dataset that the subset is stored in, whether or not they hold any of it."""

    def __len__(self) -> int:
        return len(self.shard)


RUN_COLUMNS = {field.name: np.int32 for field in fields(Runs)[:5]} | {
    field.name: np.int64 for field in fields(Runs)[5:8]
}
"""Type of each array."""


def shard_runs(index: ShardIndex, shard: int) -> dict[str, Runs]:
    """The runs of one shard by subset, from its index."""
    starts = np.flatnonzero(index.part == 0)
    if not len(starts):
        return {}
    subset, batch = index.subset[starts], index.batch[starts]
    begins = np.flatnonzero(np.append(True, (subset[1:] != subset[:-1]) | (batch[1:] != batch[:-1])))
    row = starts[begins]

    def summed(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, row, dtype=np.int64)

    first = index.part == 0
    columns = {
        "shard": np.full(len(row), shard),
        "batch": batch[begins],
        "row": row,
        "rows": np.diff(row, append=len(index)),
        "documents": np.diff(begins, append=len(starts)),
        "tokens": summed(index.tokens + first),
        "patches": summed(np.where(index.patches > 0, index.patches - first, 0)),
        "targets": summed(index.targets),
    }
    code = subset[begins]
    found = {}
    for own in np.unique(code).tolist():
        mine: dict[str, Any] = {name: values[code == own].astype(RUN_COLUMNS[name]) for name, values in columns.items()}
        found[index.subset_names[own]] = Runs(**mine)
    return found


def runs_of_shard(runs: Runs, shard: int) -> Runs:
    """Those of one shard; the arrays are shared."""
    # Of its own type: for another one all of the column would be converted.
    first, stop = np.searchsorted(runs.shard, np.array([shard, shard + 1], runs.shard.dtype))
    columns: dict[str, Any] = {name: getattr(runs, name)[first:stop] for name in RUN_COLUMNS}
    return replace(runs, **columns)


def run_records(index: ShardIndex) -> list[RunRecord]:
    """The runs of one shard as its marker has them: by subset in sorted order, then by row."""
    found = shard_runs(index, 0)
    names = sorted(found)
    return [
        RunRecord(code, *values)
        for code, name in enumerate(names)
        for values in zip(*(getattr(found[name], column).tolist() for column in list(RUN_COLUMNS)[1:]))
    ]


def joined_runs(pieces: Sequence[Runs], shards: int) -> Runs:
    """The runs of one subset in successive shards as one table; the dataset has so many ``shards``."""
    columns: dict[str, Any] = {
        name: np.concatenate([np.zeros(0, dtype), *(getattr(piece, name) for piece in pieces)])
        for name, dtype in RUN_COLUMNS.items()
    }
    return Runs(**columns, shards=shards)


def after_shards(runs: Runs, before: int) -> Runs:
    """The same where so many shards of other datasets come first; the arrays are shared."""
    return replace(runs, first_shard=before)
