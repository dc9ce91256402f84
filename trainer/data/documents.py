"""The figures of documents in use, gathered from the indexes of their shards: what planning and packing read.

A document is named by a reference, an int64: shard * 2**24 + its first row in the shard. It is one row or several
consecutive ones. Its inputs are BOS and its body: bytes, and the special ids between them. Its targets are the body and
EOS, but for what its spans leave out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shared.errors import DatasetError
from shared.shards.index import ShardIndex
from shared.shards.runs import ROW_BITS
from trainer.data.recut_lengths import RecutLengths
from trainer.data.source import Source

ROW_MASK = 2**ROW_BITS - 1


class Document(NamedTuple):
    """One document."""

    reference: int
    subset: int
    """Code into the source's subset names."""
    inputs: int
    """Input tokens: body and BOS."""
    targets: int
    """Tokens that are targets."""
    target_bytes: int
    """Bytes of text that are targets."""
    patches: int
    """Patches of the inputs: that of BOS included, one of EOS alone not; 0 when unpatched."""
    batch: int
    """Record batch of the shard that holds the first row."""
    row: int
    """The first row in that batch."""
    rows: int
    eos_alone: int
    """1 if the last patch is EOS alone, which makes no patch of the inputs; 0 when unpatched."""
    plain: int
    """1 if there are no special ids between the bytes, and everything is a target."""
    phase: int = 0
    """Number of the phase of the run that cuts it (`trainer.data.patch_schedule`); 0 as it is stored."""

    @property
    def shard(self) -> int:
        return int(self.reference >> ROW_BITS)

    @property
    def first_row(self) -> int:
        """In the shard."""
        return int(self.reference & ROW_MASK)


class Column:
    """One row of the values of a class, int64 [K]."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __get__(self, owner: Any, kind: type) -> np.ndarray:
        values: np.ndarray = owner.values[self._number]
        return values


@dataclass(frozen=True)
class Documents:
    """K documents in any order."""

    values: np.ndarray
    """int64 [fields of Document, K]: one array, since packs are made of many small pieces of it."""

    def __len__(self) -> int:
        return len(self.values[0])

    def __getitem__(self, number: int) -> Document:
        return Document(*self.values[:, number].tolist())

    reference = Column(0)
    subset = Column(1)
    inputs = Column(2)
    targets = Column(3)
    target_bytes = Column(4)
    patches = Column(5)
    batch = Column(6)
    row = Column(7)
    rows = Column(8)
    phase = Column(11)

    @property
    def eos_alone(self) -> np.ndarray:
        """bool [K]."""
        return np.asarray(self.values[9] > 0)

    @property
    def plain(self) -> np.ndarray:
        """bool [K]."""
        return np.asarray(self.values[10] > 0)

    @property
    def shard(self) -> np.ndarray:
        """int64 [K]."""
        return self.reference >> ROW_BITS


NO_DOCUMENTS = Documents(np.zeros((len(Document._fields), 0), np.int64))


def gather_documents(
    source: Source, references: np.ndarray, subset: np.ndarray, phase: int = 0, recut: RecutLengths | None = None
) -> Documents:
    """Documents [K] by their references int64 [K]; subset int [K]. Raises DatasetError.

    ``recut``: where patches are other than stored, and then they are those of a phase.
    """
    if not len(references):
        return NO_DOCUMENTS
    values = np.empty((len(Document._fields), len(references)), np.int64)
    values[0], values[1], values[-1] = references, subset, phase
    order = np.argsort(references, kind="stable")
    shards = references[order] >> ROW_BITS
    for low, high in pairwise([*np.flatnonzero(np.diff(shards, prepend=-1)).tolist(), len(order)]):
        own = order[low:high]
        shard = int(shards[low])
        values[2:-1, own] = _figures(source, shard, references[own] & ROW_MASK, phase, recut)
    return Documents(values)


def _figures(source: Source, shard: int, rows: np.ndarray, phase: int, recut: RecutLengths | None) -> np.ndarray:
    """int64 [fields from inputs to plain, K]: of documents of one shard, by their first rows int64 [K], ascending."""
    index = source.shard_index(shard)
    if rows[-1] >= len(index):
        raise DatasetError(f"{source.shard_path(shard)}: its index has {len(index)} rows, none of number {rows[-1]}")
    for row in rows[index.part[rows] != 0][:1].tolist():
        raise DatasetError(
            f"{source.shard_path(shard)}: row {row} continues a document, the table of runs says that one begins there"
        )
    last, text = index.last[rows], index.bytes[rows]
    inputs, targets, target_bytes = index.tokens[rows] + 1, index.targets[rows], index.target_bytes[rows]
    patches, eos_alone, count = index.patches[rows].astype(np.int64), index.last_patch[rows] == 1, np.ones_like(inputs)
    for number in np.flatnonzero(~last).tolist():
        first = int(rows[number])
        count[number] = document_rows(index, first)
        own = slice(first, first + int(count[number]))
        inputs[number] = index.tokens[own].sum() + 1
        targets[number], target_bytes[number] = index.targets[own].sum(), index.target_bytes[own].sum()
        text[number] = index.bytes[own].sum()
        patches[number] = index.patches[own].sum(dtype=np.int64)
        eos_alone[number] = index.last_patch[own.stop - 1] == 1
    if recut is not None:
        patches, eos_alone = recut.figures(phase, shard, index, rows, count)
    plain = (inputs == text + 1) & (targets == inputs)
    batch, row = index.batch[rows], index.row[rows]
    return np.stack([inputs, targets, target_bytes, patches - eos_alone, batch, row, count, eos_alone, plain])


def document_rows(index: ShardIndex, first: int) -> int:
    """Rows of the document that begins at row ``first``."""
    width = 64
    while not (ends := index.last[first : first + width]).any():
        width *= 2  # the index itself was checked: a document ends inside its shard
    return int(ends.argmax()) + 1


def documents_in_order(source: Source, block: int, recut: RecutLengths | None = None) -> Iterator[Documents]:
    """All documents in the order of the source, about ``block`` at a time, as stored or recut. Raises DatasetError."""
    for shard in range(source.shard_count):
        index = source.shard_index(shard)
        starts = np.flatnonzero(index.part == 0)
        subset = source.subset_codes(shard)[index.subset[starts]] if len(starts) else starts
        for low in range(0, len(starts), block):
            piece = slice(low, low + block)
            yield gather_documents(source, starts[piece] + (shard << ROW_BITS), subset[piece], 0, recut)
