"""One pass over the sample of a dataset: its figures, and the documents worth a look."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.inspect.figures import Figures, nats
from pipeline.inspect.sample import SAMPLE_BYTES, SEED, Stretch, shown_body, stretches
from shared.shards.dataset import Dataset
from shared.vocabulary import is_special

SHOWN_BYTES = 4096
"""Of each example, from its beginning."""
SHORTEST_EXAMPLE = 64
"""Bytes of text; the mean entropy of a shorter document says little."""
SIZE_GROUPS = (1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16, 32)
"""Bytes a patch, upper bounds of the groups in which documents are counted; one more for those above."""


@dataclass(frozen=True)
class Example:
    """The beginning of a document, with its patches and entropies."""

    id: str
    subset: str
    size: int
    """Bytes of text of the whole document, as far as it was read."""
    mean: float
    """Mean entropy of its positions, nats; NaN without a sidecar."""
    text: bytes
    """n bytes."""
    whole: bool
    """Whether the text is all of the document, so that EOS follows."""
    lengths: np.ndarray | None
    """uint16: patches that begin in these tokens (BOS, the n bytes, EOS if whole); the last may end beyond them."""
    values: np.ndarray | None
    """uint8 grid values or float32 nats [n + 1]; None without a sidecar."""
    specials: list[int]
    """Positions among the tokens of special ids between the bytes, which the text shows as SPECIAL."""


@dataclass(frozen=True)
class Survey:
    """What one pass has found."""

    figures: Figures
    documents_by_size: np.ndarray
    """int64 [S, groups]: documents by subset and bytes a patch; all 0 when unpatched."""
    easiest: list[Example]
    """By mean entropy, most extreme first; empty without a sidecar."""
    hardest: list[Example]
    random: dict[str, list[Example]]
    """By subset; of any length but 0."""


class _Greatest:
    """Keeps the items with the greatest keys."""

    def __init__(self, count: int):
        self._count = count
        self._heap: list[tuple[Any, Example]] = []

    def offer(self, key: tuple[float, int], make: Any) -> None:
        """Keep ``make()`` if its key is among the greatest so far; no two keys are equal."""
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, (key, make()))
        elif self._count and key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, make()))

    def items(self) -> list[Example]:
        """Greatest first."""
        return [item for _, item in sorted(self._heap, key=lambda entry: entry[0], reverse=True)]


@dataclass
class _Document:
    """A document while its parts go by."""

    stretch: Stretch
    """Where its first part lies, at ``row``."""
    row: int
    next: int
    """The row at which it would go on."""
    ended: bool = False
    """Whether its last row is in the sample."""
    bytes: int = 0
    patches: int = 0
    nats: float = 0.0
    scored: int = 0

    @property
    def number(self) -> int:
        """Its first row."""
        return self.stretch.first + self.row


def survey(dataset: Dataset, examples: int, budget: int = SAMPLE_BYTES, seed: int = SEED) -> Survey:
    """Look at a sample of a dataset: ``budget`` bytes of text in bounded memory, the same for the same seed.

    ``examples`` documents are kept at either end, and as many at random of each subset. Raises DatasetError.
    """
    names = dataset.subset_names
    figures = Figures(len(names))
    by_size = np.zeros((len(names), len(SIZE_GROUPS) + 1), np.int64)
    easiest, hardest = _Greatest(examples), _Greatest(examples)
    sampled = [_Greatest(examples) for _ in names]
    random = np.random.default_rng(seed)
    sample = stretches(dataset, budget, seed)
    for document in _documents(_counted(sample, figures)):
        code = int(document.stretch.subset[document.row])
        number = document.number

        def example(document: _Document = document) -> Example:
            return _example(document)

        if document.patches:
            by_size[code, np.searchsorted(SIZE_GROUPS, document.bytes / document.patches)] += 1
        if document.bytes:
            sampled[code].offer((random.random(), number), example)
        if document.bytes >= SHORTEST_EXAMPLE and document.scored:
            mean = document.nats / document.scored
            easiest.offer((-mean, -number), example)
            hardest.offer((mean, -number), example)
    chosen = {name: own.items() for name, own in zip(names, sampled)}
    return Survey(figures, by_size, easiest.items(), hardest.items(), chosen)


def _counted(sample: Iterator[Stretch], figures: Figures) -> Iterator[Stretch]:
    for stretch in sample:
        figures.add(stretch)
        yield stretch


def _documents(sample: Iterator[Stretch]) -> Iterator[_Document]:
    """Every document whose beginning is in the sample, as far as its parts follow there."""
    current: _Document | None = None
    for stretch in sample:
        totals = np.append(0.0, np.cumsum(nats(stretch.values)))
        ends = np.cumsum(stretch.scored)
        sums = totals[ends] - totals[ends - stretch.scored]
        rows = zip(
            *(
                column.tolist()
                for column in (
                    stretch.part,
                    stretch.last,
                    stretch.sizes,
                    stretch.patches,
                    stretch.scored,
                    sums,
                )
            )
        )
        for row, (part, last, size, patches, scored, total) in enumerate(rows):
            place = stretch.first + row
            if current is not None and (part == 0 or place != current.next):
                yield current
                current = None
            if part == 0:
                current = _Document(stretch, row, place)
            if current is None:
                continue  # its beginning is not in the sample
            current.next = place + 1
            current.bytes += size
            current.patches += patches - (part == 0 and patches > 0)
            current.nats += total
            current.scored += scored
            if last:
                current.ended = True
                yield current
                current = None
    if current is not None:
        yield current


def _example(document: _Document) -> Example:
    columns, row = document.stretch.columns, document.row
    text = shown_body(columns, row)[:SHOWN_BYTES].tobytes()
    whole = len(text) == document.bytes and document.ended
    lengths = columns.patch_lengths(row)
    if lengths is not None:
        lengths = lengths[: len(text) + 2]
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        lengths = lengths[starts < len(text) + 1 + whole].copy()
    stored, spans = document.stretch.stored, columns.spans(row)
    named: list[int] = []
    if spans is not None:
        named = (np.flatnonzero(is_special(spans.tokens(columns.text(row))[: len(text)])) + 1).tolist()
    return Example(
        id=columns.id(row),
        subset=columns.subset(row),
        size=document.bytes,
        mean=document.nats / document.scored if document.scored else float("nan"),
        text=text,
        whole=whole,
        lengths=lengths,
        values=None if stored is None else stored[row][: len(text) + 1].copy(),
        specials=named,
    )
