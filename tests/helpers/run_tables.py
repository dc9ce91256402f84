"""Run tables without shards: what streams of documents read of a dataset."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
from hypothesis import strategies as st

from shared.shards.manifest import SubsetTotals
from shared.shards.runs import ROW_BITS, Runs
from trainer.data.sampling.schedule import Schedule, passes_over
from trainer.data.sampling.streams import SHARDS, Merged, SubsetStreams


class Tables:
    """The run tables of a dataset, and of its indexes where documents begin; nothing else matters to a stream."""

    def __init__(
        self, runs: Mapping[str, list[tuple[int, int, int, int]]], shards: int, whole: bool = True, size: int = 100
    ) -> None:
        """runs: shard, batch, first row and documents of each, by subset; whole: documents of one row, else of two.

        size: bytes of each document.
        """
        rows_each = 1 if whole else 2
        self.subsets, self._runs = {}, []
        for name, own in runs.items():
            shard, batch, row, documents = np.array(own, np.int32).reshape(-1, 4).T
            nothing = np.zeros(len(own), np.int64)
            rows = documents * np.int32(rows_each)
            self._runs.append(Runs(shard, batch, row, rows, documents, nothing, nothing, nothing, 0, shards))
            count = int(documents.sum())
            self.subsets[name] = SubsetTotals(documents=count, rows=count * rows_each, bytes=size * count)
        self._rows_each = rows_each

    def runs(self, subset: int) -> Runs:
        return self._runs[subset]

    def shard_index(self, shard: int) -> SimpleNamespace:
        return SimpleNamespace(part=np.arange(1000) % self._rows_each)

    def references(self, subset: int) -> list[int]:
        """Of all documents of a subset."""
        runs = self.runs(subset)
        return [
            ((int(shard) + runs.first_shard) << ROW_BITS) + int(row) + number * self._rows_each
            for shard, row, documents in zip(runs.shard, runs.row, runs.documents)
            for number in range(documents)
        ]

    def batches(self, subset: int) -> dict[int, tuple[int, int]]:
        """Shard and batch of each document, by reference."""
        runs = self.runs(subset)
        places = [
            (int(shard), int(batch))
            for shard, batch, documents in zip(runs.shard, runs.batch, runs.documents)
            for _ in range(documents)
        ]
        return dict(zip(self.references(subset), places))


def regular(shards: int, batches: int, documents: int, subsets: int = 1, size: int = 100) -> Tables:
    """Every batch of every shard holds so many documents of each subset."""
    runs = {
        f"s{subset}": [
            (shard, batch, (batch * subsets + subset) * documents, documents)
            for shard in range(shards)
            for batch in range(batches)
        ]
        for subset in range(subsets)
    }
    return Tables(runs, shards, size=size)


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    """A few subsets in some of the batches of up to four groups of shards; some of them in few shards."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shards = draw(st.integers(1, 3 * SHARDS + 9))
    runs = {}
    for subset in range(draw(st.integers(1, 4))):
        present = rng.random(shards) < rng.choice([0.02, 0.3, 1.0])
        present[rng.integers(shards)] = True
        runs[f"s{subset}"] = [
            (shard, batch, batch * 100 + subset * 20, int(rng.integers(1, 5)))
            for shard in np.flatnonzero(present).tolist()
            for batch in range(int(rng.integers(1, 4)))
        ]
    return Tables(runs, shards, draw(st.booleans()))


def open_streams(
    source: Tables,
    speeds: list[float] | None = None,
    seed: int = 1,
    begun: np.ndarray | None = None,
    ends: np.ndarray | None = None,
) -> SubsetStreams:
    """Merged by these speeds, all the same by default; each stands at its beginning, or at ``begun``."""
    subsets = len(source.subsets)
    values = np.ones(subsets) if speeds is None else np.array(speeds, np.float64)
    schedule = Schedule(values, passes_over(source), seed, ends)
    return SubsetStreams(source, schedule, seed, np.zeros((subsets, 5), np.int64) if begun is None else begun)


def draw(streams: SubsetStreams, count: int, block: int = 50) -> Merged:
    """So many next documents, asked for in blocks; what comes after them is lost."""
    pieces = [streams.following(block)]
    while sum(len(piece.subsets) for piece in pieces) < count and len(pieces[-1].subsets):
        pieces.append(streams.following(block))
    return Merged(*(np.concatenate(values)[:count] for values in zip(*pieces)))
