"""One decoded record batch, whichever format it came from: what every reader of shards sees."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shared.shards.document import LONGEST_PART
from shared.shards.spans import LARGEST_ID, NO_SPECIAL, Spans, spans_problem
from shared.vocabulary import VOCABULARY_SIZE

INDEX_BYTES = 4
"""Of the subset of a row."""


@dataclass(frozen=True)
class Ragged:
    """Byte strings as ranges of one buffer; taking one copies nothing."""

    buffer: np.ndarray
    """uint8 [N]."""
    starts: np.ndarray
    """int64 [rows]."""
    ends: np.ndarray
    """int64 [rows]."""

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def views(self) -> tuple[memoryview, memoryview]:
        """The buffer and the starts: a few bytes, or one number, are had several times as fast as of an array."""
        return self.buffer.data, self.starts.data

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 [n], read-only where the file is mapped."""
        return self.buffer[self.starts[row] : self.ends[row]]

    def part(self, row: int, low: int, high: int) -> np.ndarray:
        """uint8 [high - low]: bytes low..high of a row, which must have as many."""
        start = int(self.starts[row])
        return self.buffer[start + low : start + high]


@dataclass(frozen=True)
class RaggedSpans:
    """The spans of the rows of a batch, Z of them together."""

    present: np.ndarray
    """bool [rows]: False for plain text."""
    bounds: np.ndarray
    """int64 [rows + 1], where the spans of each row begin."""
    all: Spans
    """[Z], those of all rows one after the other."""

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.present, self.bounds, self.all.ends, self.all.specials, self.all.losses)
        return sum(array.nbytes for array in arrays)

    def __getitem__(self, row: int) -> Spans | None:
        if not self.present[row]:
            return None
        own = slice(self.bounds[row], self.bounds[row + 1])
        return Spans(self.all.ends[own], self.all.specials[own], self.all.losses[own])

    def counts(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [rows] each: tokens of the body, and bytes that are targets; sizes are the bytes of each text."""
        row, step = self._steps()
        named = np.bincount(row, self.all.specials != NO_SPECIAL, len(self.present)).astype(np.int64)
        target_bytes = np.bincount(row, step * self.all.losses, len(self.present)).astype(np.int64)
        return sizes + named, np.where(self.present, target_bytes, sizes)

    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [Z] each: the row of every span, and its bytes."""
        count = np.diff(self.bounds)
        step = np.diff(self.all.ends, prepend=0)
        begun = self.bounds[:-1][count > 0]
        step[begun] = self.all.ends[begun]
        return np.repeat(np.arange(len(count)), count), step

    def problem(self, sizes: np.ndarray) -> tuple[int, str] | None:
        """The first row whose spans are none of its text, and why; sizes int64 [rows] are the bytes of each text."""
        count, (row, step) = np.diff(self.bounds), self._steps()
        wrong = self.present & (count == 0)
        unknown = (self.all.specials != NO_SPECIAL) & (self.all.specials < VOCABULARY_SIZE)
        wrong[row[(step < 0) | unknown | (self.all.specials > LARGEST_ID)]] = True
        filled = np.flatnonzero(count)
        wrong[filled] |= self.all.ends[self.bounds[1:][filled] - 1] != sizes[filled]
        for number in np.flatnonzero(wrong & self.present).tolist():
            spans = self[number]
            assert spans is not None
            return number, spans_problem(spans, int(sizes[number])) or "spans that cannot be read"
        return None


@dataclass(frozen=True)
class BatchColumns:
    """The rows of one record batch. Arrays are views of the decoded batch: valid as long as they are held."""

    texts: Ragged
    lengths: Ragged | None
    """uint16 little-endian; None when unpatched."""
    parts: np.ndarray
    """int32 [rows]."""
    ids: Any
    """pyarrow string array [rows]."""
    subsets: Any
    """pyarrow string array [rows], dictionary-encoded or not."""
    metas: Any
    """pyarrow string array [rows], null where nothing came with the record."""
    all_spans: RaggedSpans | None = None
    """None when all rows are plain text."""

    def __len__(self) -> int:
        return len(self.texts)

    def problem(self) -> tuple[int, str] | None:
        """The first row that no shard can hold, and why, as far as the batch alone says; None if all can be held."""
        sizes = self.texts.ends - self.texts.starts
        for wrong in np.flatnonzero(sizes > LONGEST_PART)[:1].tolist():
            return wrong, f"{sizes[wrong]:,} bytes of text; a row has at most {LONGEST_PART:,}"
        for wrong in np.flatnonzero(self.parts < 0)[:1].tolist():
            return wrong, f"the part number {self.parts[wrong]}"
        return None if self.all_spans is None else self.all_spans.problem(sizes)

    @property
    def nbytes(self) -> int:
        """Memory that holding this batch costs, its names of subsets left out."""
        ragged = [self.texts, *([] if self.lengths is None else [self.lengths])]
        spans = 0 if self.all_spans is None else self.all_spans.nbytes
        columns = self.parts.nbytes + self.ids.nbytes + self.metas.nbytes + INDEX_BYTES * len(self)
        return int(sum(own.buffer.nbytes + own.starts.nbytes for own in ragged) + columns + spans)

    def text(self, row: int) -> np.ndarray:
        """uint8 [n], the raw bytes of a row."""
        return self.texts[row]

    def patch_lengths(self, row: int) -> np.ndarray | None:
        """uint16 [P], or None when unpatched."""
        return None if self.lengths is None else self.lengths[row].view("<u2")

    def spans(self, row: int) -> Spans | None:
        """None for plain text."""
        return None if self.all_spans is None else self.all_spans[row]

    def part(self, row: int) -> int:
        return int(self.parts[row])

    def id(self, row: int) -> str:
        return str(self.ids[row])

    def subset(self, row: int) -> str:
        return str(self.subsets[row])

    def meta(self, row: int) -> str | None:
        """JSON that came with the record."""
        meta: str | None = self.metas[row].as_py()
        return meta
