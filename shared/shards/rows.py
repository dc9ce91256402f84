"""Rows one after the other as columns: what travels to a shard, so that nothing is done row by row without need."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from shared.shards.document import Row
from shared.shards.spans import Spans

T = TypeVar("T")
K = TypeVar("K")
ROWS_TOGETHER, BYTES_TOGETHER = 2**10, 2**16
"""Rows, and bytes of their texts, that are collected when they come one by one."""


@dataclass(frozen=True)
class Rows:
    """N consecutive rows of some documents. All are patched or none is."""

    ids: Sequence[str]
    subsets: Sequence[str]
    texts: Sequence[bytes]
    parts: np.ndarray
    """int32 [N]."""
    last: np.ndarray
    """bool [N], whether the document ends in this row."""
    lengths: np.ndarray | None = None
    """uint16 [P], patch lengths of all rows; None when unpatched."""
    patches: np.ndarray | None = None
    """int64 [N], how many of them are of each row; None when unpatched."""
    entropies: Sequence[np.ndarray | None] | None = None
    """Of each row float32 nats, or uint8 on the grid of the sidecar, for its input tokens; None when none has any."""
    metas: Sequence[str | None] | None = None
    """JSON that came with each record; None when none has any."""
    spans: Sequence[Spans | None] | None = None
    """None when all rows are plain text."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 [N], bytes of each text."""
        return np.fromiter(map(len, self.texts), np.int64, len(self.texts))

    @cached_property
    def stored_sizes(self) -> np.ndarray:
        """int64 [N], bytes of text and characters of metadata."""
        if self.metas is None:
            return self.sizes
        return self.sizes + np.fromiter((len(meta or "") for meta in self.metas), np.int64, len(self))

    @cached_property
    def tokens(self) -> np.ndarray:
        """int64 [N], of each body: bytes and the special ids between them."""
        if self.spans is None:
            return self.sizes
        return self.sizes + np.array([0 if own is None else own.special_count for own in self.spans], np.int64)

    def target_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [N] each: tokens that are targets, EOS among them, and bytes of text among these."""
        targets, target_bytes = self.sizes + self.last, self.sizes.copy()
        for number, own in enumerate(self.spans or ()):
            if own is not None:
                targets[number] = own.target_mask().sum() + (self.last[number] and own.last_loss)
                target_bytes[number] = own.target_bytes()
        return targets, target_bytes

    @cached_property
    def _ends(self) -> np.ndarray:
        """int64 [N + 1], where the patch lengths of each row begin; the last is P."""
        assert self.patches is not None
        return np.append(0, np.cumsum(self.patches))

    def row(self, number: int) -> Row:
        """One row by itself."""
        lengths = None
        if self.lengths is not None:
            lengths = self.lengths[self._ends[number] : self._ends[number + 1]]
        return Row(
            self.ids[number],
            self.subsets[number],
            self.texts[number],
            int(self.parts[number]),
            lengths,
            None if self.entropies is None else self.entropies[number],
            None if self.metas is None else self.metas[number],
            None if self.spans is None else self.spans[number],
        )

    def slice(self, begin: int, end: int) -> "Rows":
        """Rows [begin, end)."""
        own, lengths = slice(begin, end), None
        if self.lengths is not None:
            lengths = self.lengths[self._ends[begin] : self._ends[end]]
        return Rows(
            self.ids[own],
            self.subsets[own],
            self.texts[own],
            self.parts[own],
            self.last[own],
            lengths,
            None if self.patches is None else self.patches[own],
            None if self.entropies is None else self.entropies[own],
            None if self.metas is None else self.metas[own],
            None if self.spans is None else self.spans[own],
        )

    def take(self, numbers: np.ndarray) -> "Rows":
        """The rows of these numbers, int64 [n]."""
        picked, lengths, patches = numbers.tolist(), None, None
        if self.lengths is not None and self.patches is not None:
            patches = self.patches[numbers]
            ends = np.cumsum(patches)
            places = np.repeat(self._ends[numbers] - (ends - patches), patches) + np.arange(patches.sum())
            lengths = self.lengths[places]
        return Rows(
            _taken(self.ids, picked),
            _taken(self.subsets, picked),
            _taken(self.texts, picked),
            self.parts[numbers],
            self.last[numbers],
            lengths,
            patches,
            None if self.entropies is None else _taken(self.entropies, picked),
            None if self.metas is None else _taken(self.metas, picked),
            None if self.spans is None else _taken(self.spans, picked),
        )

    def by(self, names: Sequence[K]) -> "dict[K, Rows]":
        """The rows by a name of each, names in order of appearance."""
        codes: dict[K, int] = {}
        numbers = [codes.setdefault(name, len(codes)) for name in names]
        if len(codes) == 1:
            return {names[0]: self}
        of_row = np.array(numbers, np.int64)
        order, counts = np.argsort(of_row, kind="stable"), np.bincount(of_row)
        return {name: self.take(own) for name, own in zip(codes, np.split(order, np.cumsum(counts)[:-1]))}


def rows_of(rows: Sequence[tuple[Row, bool]]) -> Rows:
    """Some rows, each with whether its document ends there. Raises ValueError unless all are patched or none is."""
    own = [row for row, _ in rows]
    lengths = [row.patch_lengths for row in own if row.patch_lengths is not None]
    if lengths and len(lengths) < len(own):
        number = next(n for n, row in enumerate(own) if (row.patch_lengths is None) != (own[0].patch_lengths is None))
        raise mixed(own[number].id, own[number].patch_lengths is not None)
    for row in own:
        if row.patch_lengths is not None and (row.patch_lengths.dtype != np.uint16 or row.patch_lengths.ndim != 1):
            found = f"{row.patch_lengths.dtype} {list(row.patch_lengths.shape)}"
            raise ValueError(f"document {row.id!r} part {row.part}: patch lengths must be uint16 [P], not {found}")
    return Rows(
        [row.id for row in own],
        [row.subset for row in own],
        [row.text for row in own],
        np.array([row.part for row in own], np.int32),
        np.array([last for _, last in rows], bool),
        np.concatenate(lengths) if lengths else None,
        np.fromiter(map(len, lengths), np.int64, len(own)) if lengths else None,
        _unless_none([row.entropies for row in own]),
        _unless_none([row.meta for row in own]),
        _unless_none([row.spans for row in own]),
    )


def mixed(id: str, patched: bool) -> ValueError:
    """What is said of the first row of a shard that is unlike those before it."""
    found = "patched, those before it in the shard are not" if patched else "unpatched, those before it are not"
    return ValueError(f"document {id!r} is {found}")


def collected(rows: Iterable[tuple[Row, bool]]) -> Iterator[Rows]:
    """Rows that come one by one, some of them together."""
    held: list[tuple[Row, bool]] = []
    size = 0
    for row, last in rows:
        held.append((row, last))
        size += len(row.text)
        if size >= BYTES_TOGETHER or len(held) == ROWS_TOGETHER:
            yield rows_of(held)
            held, size = [], 0
    if held:
        yield rows_of(held)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of one shard, some after the others; there are some."""
    if len(parts) == 1:
        return parts[0]
    lengths = [part.lengths for part in parts if part.lengths is not None]
    patches = [part.patches for part in parts if part.patches is not None]
    return Rows(
        _chained([part.ids for part in parts]),
        _chained([part.subsets for part in parts]),
        _chained([part.texts for part in parts]),
        np.concatenate([part.parts for part in parts]),
        np.concatenate([part.last for part in parts]),
        np.concatenate(lengths) if lengths else None,
        np.concatenate(patches) if patches else None,
        _chained_optional([part.entropies for part in parts], parts),
        _chained_optional([part.metas for part in parts], parts),
        _chained_optional([part.spans for part in parts], parts),
    )


def _taken(values: Sequence[T], numbers: Sequence[int]) -> list[T]:
    return [values[number] for number in numbers]


def _unless_none(values: list[T | None]) -> list[T | None] | None:
    return None if all(value is None for value in values) else values


def _chained(columns: Sequence[Sequence[T]]) -> list[T]:
    return [value for column in columns for value in column]


def _chained_optional(columns: Sequence[Sequence[T | None] | None], parts: Sequence[Rows]) -> Sequence[T | None] | None:
    if all(column is None for column in columns):
        return None
    return [
        value
        for column, part in zip(columns, parts)
        for value in (column if column is not None else [None] * len(part))
    ]
