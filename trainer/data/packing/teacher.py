"""What a teacher says of slices: its targets of their bytes, and their patches as its tokens.

S slices of T tokens and P patches; K symbols that are kept of each target.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from shared.bpe.vocabulary import NO_TOKEN, Subwords, load_subwords
from shared.distillation.losses import BEGINNING
from shared.vocabulary import BOS, OFFSET, is_special
from trainer.data.packing.slices import SliceReader, Slices


class StoredProbabilities(Protocol):
    """The teacher's probabilities of a source, by its shards."""

    @property
    def top(self) -> int:
        """K."""

    def next_bytes(self, shard: int, row: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Of targets low to high of a row: symbols int16 [m, K], logarithms float32 [m, K + 1]. Raises DatasetError."""


@dataclass(frozen=True)
class TeacherReader:
    """Reads what a recipe's [distillation] needs."""

    probabilities: StoredProbabilities | None
    """None where they are not learned."""
    tokenizer: Path | None
    """Folder of the teacher's tokens; None where no embedding is learned."""

    @property
    def top(self) -> int:
        """K."""
        return 0 if self.probabilities is None else self.probabilities.top

    def targets(self, slices: Slices, in_slice: np.ndarray, reader: SliceReader) -> tuple[np.ndarray, np.ndarray]:
        """int16 [T, K] and float32 [T, K + 1]: the targets of each token of slices, that of BOE included.

        Without probabilities K is 0, and all is said of all symbols together. Raises DatasetError.
        """
        stored, tokens = self.probabilities, int(in_slice.sum())
        symbols, logs = np.zeros((tokens, self.top), np.int16), np.zeros((tokens, self.top + 1), np.float32)
        if stored is None:
            return symbols, logs
        # Target i of a document is what follows its input i, whether that is a byte, a special id or EOS.
        place = np.cumsum(in_slice) - (slices.stops - slices.starts)
        for number, (start, stop, at) in enumerate(zip(slices.starts.tolist(), slices.stops.tolist(), place.tolist())):
            document = slices.documents[number]
            for row_number, row in enumerate(reader.rows(document), document.first_row):
                begin = max(row.start - 1, 0)
                if begin >= stop:
                    break
                low, high = max(start, begin), min(stop, row.stop - 1 + row.last)
                if low < high:
                    own = slice(at + low - start, at + high - start)
                    symbols[own], logs[own] = stored.next_bytes(document.shard, row_number, low - begin, high - begin)
        return symbols, logs

    @cached_property
    def _subwords(self) -> Subwords | None:
        return None if self.tokenizer is None else load_subwords(self.tokenizer)

    def tokens(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32 [P]: patches as tokens of the teacher; BEGINNING for BOS, NO_TOKEN for what is none.

        ids int16 [T]; lengths int [P], tokens of each patch.
        """
        if self._subwords is None:
            return np.full(len(lengths), NO_TOKEN, np.int32)
        special = is_special(ids)
        text = np.where(special, 0, ids - OFFSET).astype(np.uint8)
        found = self._subwords.ids(text, lengths.astype(np.int64))
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        if len(starts):
            found[np.logical_or.reduceat(special, starts)] = NO_TOKEN
        found[ids[starts] == BOS] = BEGINNING
        return found


@dataclass(frozen=True)
class SideBySide:
    """The probabilities of several datasets, whose shards are counted on from one to the next."""

    parts: Sequence[StoredProbabilities]
    ends: Sequence[int]
    """One past the last shard of each."""

    @property
    def top(self) -> int:
        return self.parts[0].top

    def next_bytes(self, shard: int, row: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        number = bisect_right(self.ends, shard)
        before = self.ends[number - 1] if number else 0
        return self.parts[number].next_bytes(shard - before, row, low, high)
