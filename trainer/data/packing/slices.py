"""Reading pieces of documents: their tokens, their patches, and where a pack may cut them.

Inputs of a document are numbered 0..n: BOS, then its body; input n + 1 would be EOS, which is only ever a label. A
slice is the range [start, stop) of inputs. The body of most documents is their bytes; that of one with spans has
special ids between them, and not all of it may be a target. Decoded record batches are kept, the most recent ones, up
to CACHE_BYTES of them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from shared.bpe.folder import check_tokenizer
from shared.bpe.vocabulary import Subwords, load_subwords
from shared.errors import DatasetError
from shared.shards.columns import BatchColumns, Ragged
from shared.vocabulary import BOS, EOS, VOCABULARY_SIZE, byte_tokens, is_special
from trainer.data.documents import Column, Document, Documents
from trainer.data.recent import Recent
from trainer.data.recut_lengths import RecutLengths
from trainer.data.source import Source

CACHE_BYTES = 2**28
ENDS_BYTES = 2**24
"""Memory for where the patches of rows end that were cut lately: many streams go on with them by turns."""
SPECIAL_BYTE, SPECIAL_PATCH = b"\0", b"\1\0"
"""Where BOS or BOE begins a slice, and the patch that BOE is, as it would be stored."""


ROWS_HELD = 2**16
"""Rows that are kept of documents that have several, of which many streams go on by turns: some 20 MB."""


class Place(NamedTuple):
    """Where a row lies."""

    shard: int
    batch: int
    row: int
    """In the batch."""


class DocumentRow(NamedTuple):
    """One row of a document, and the inputs [start, stop) of the document that lie in it."""

    place: Place
    start: int
    stop: int
    first_patch: int
    """Patches of the document before the row."""
    patches: int
    """Of the row as they are stored, one of EOS alone included; 0 when unpatched."""
    last: bool
    """Whether the document ends in this row."""
    first_begin: int
    """The input with which the first of its patches begins: that of the row, or an earlier one where the document is
    cut by other thresholds than it is stored with."""
    phase: int
    """Of the document."""


class Cut(NamedTuple):
    """Where a slice ends."""

    stop: int
    """One past its last input."""
    first_patch: int
    """Patches of the document before the slice; 0 when unpatched."""
    patches: int
    """Patches of the slice, without one for BOE; 0 when unpatched."""


@dataclass(frozen=True)
class Slices:
    """S slices of documents, one after the other."""

    values: np.ndarray
    """int64 [4 + fields of Document, S]: start, stop, first patch, patches, and the document of each slice."""

    starts = Column(0)
    """int64 [S], the first input of each slice; above 0 it is continued and begins with BOE."""
    stops = Column(1)
    """int64 [S], one past the last input."""
    first_patches = Column(2)
    """int64 [S], patches of the document before each slice; 0 when unpatched."""
    patches = Column(3)
    """int64 [S], patches of each slice, without one for BOE; 0 when unpatched."""

    @property
    def documents(self) -> Documents:
        """[S]."""
        return Documents(self.values[4:])


class Pieces(NamedTuple):
    """What S slices hold, one after the other, each begun by one special token: T tokens, P patches."""

    text: np.ndarray
    """uint8 [T]: a SPECIAL_BYTE and the text of each slice; of a document with spans something as long as its body."""
    lengths: np.ndarray
    """uint16 [P]: patch lengths of each slice as they are stored: an EOS that shares the last patch is counted there.
    Empty when unpatched."""


class Marked(NamedTuple):
    """A slice of a document with spans: N inputs and the token after them."""

    tokens: np.ndarray
    """int16 [N + 1]."""
    is_target: np.ndarray
    """bool [N + 1], whether each is a target when it is predicted."""

    @property
    def targets(self) -> int:
        return int(self.is_target[1:].sum())

    @property
    def text(self) -> int:
        """Bytes of text among the tokens that are predicted."""
        return int((~is_special(self.tokens[1:])).sum())

    @property
    def target_bytes(self) -> int:
        """Those that are targets."""
        return int((~is_special(self.tokens[1:]) & self.is_target[1:]).sum())

    def targets_inside(self, start: int, ended: bool) -> tuple[int, int]:
        """Targets, and the bytes among them, where the token after the slice is one only if it is EOS."""
        text = int(self.is_target[int(start == 0) : -1].sum())
        return text + int(ended and self.is_target[-1]), text


class SliceReader:
    """Slices of the documents of a dataset."""

    def __init__(self, source: Source, recut: RecutLengths | None = None) -> None:
        """``recut``: where patches are other than stored, for each phase of a run."""
        self._source, self.recut = source, recut
        self._batches: Batches = Recent(CACHE_BYTES, lambda batch: source.batch(*batch))
        self._ends = Recent(ENDS_BYTES, partial(patch_ends, source, self._batches, recut))
        self._rows: OrderedDict[tuple[int, int], list[DocumentRow]] = OrderedDict()
        self._rows_held = 0
        self._body: tuple[Place | None, np.ndarray, np.ndarray] = (None, np.zeros(0, np.int16), np.zeros(0, bool))
        self._largest = VOCABULARY_SIZE + len(source.specials)

    def pieces(self, slices: Slices, patched: bool) -> Pieces:
        """What slices hold. Raises DatasetError that names shard and document where the data is damaged."""
        # Views of bytes in place of small arrays, and few steps for each: packs of short documents have hundreds.
        number, shard, batch, row, low, high, first, last = self._row_parts(slices).tolist()
        keys = list(zip(shard, batch))
        held = {key: self._batches[key] for key in dict.fromkeys(keys)}
        texts = {key: columns.texts.views for key, columns in held.items()}
        text: list[bytes | memoryview] = [
            buffer[begins[place] + start : begins[place] + stop]
            for (buffer, begins), place, start, stop in zip(map(texts.__getitem__, keys), row, low, high)
        ]
        for marked in np.flatnonzero(~slices.documents.plain[number]).tolist():
            text[marked] = bytes(high[marked] - low[marked])
        lengths: list[bytes | memoryview] = []
        if patched:
            phases = slices.documents.phase[number].tolist()
            cut_by = {key: self._lengths(*key) for key in dict.fromkeys(zip(phases, shard, batch))}
            for key in [key for key, found in cut_by.items() if found is None][:1]:
                raise self.damaged(Place(*key[1:], row[keys.index(key[1:])]), "no patch lengths")
            views = {key: found.views for key, found in cut_by.items() if found is not None}
            lengths += [
                buffer[begins[place] + 2 * start : begins[place] + 2 * stop]
                for (buffer, begins), place, start, stop in zip(
                    map(views.__getitem__, zip(phases, shard, batch)), row, first, last
                )
            ]
        if len(number) > len(slices.starts):
            text, lengths = _by_slice(number, text), _by_slice(number, lengths)
        if patched:
            for continued in np.flatnonzero(slices.starts).tolist():
                lengths[continued] = SPECIAL_PATCH + lengths[continued]
        found = bytearray(SPECIAL_BYTE).join([b"", *text]), bytearray().join(lengths)
        return Pieces(np.frombuffer(found[0], np.uint8), np.frombuffer(found[1], "<u2"))

    def _lengths(self, phase: int, shard: int, batch: int) -> Ragged | None:
        """Patch lengths of a record batch in a phase; None when unpatched."""
        if self.recut is not None:
            return self.recut.batch(phase, shard, batch)
        return self._batches[shard, batch].lengths

    def _row_parts(self, slices: Slices) -> np.ndarray:
        """int64 [8, K]: the parts of rows that slices are made of.

        Each is the number of the slice, the row's shard, batch and number in it, and of that row's body and stored
        patches the first and one past the last. Nearly all documents are one row, and then K = S.
        """
        documents = slices.documents
        parts = np.empty((8, len(documents)), np.int64)
        parts[0] = np.arange(len(documents))
        parts[1], parts[2], parts[3] = documents.shard, documents.batch, documents.row
        parts[4] = np.maximum(slices.starts, 1) - 1  # BOS is not of the body
        parts[5] = slices.stops - 1
        parts[6] = slices.first_patches
        parts[7] = slices.first_patches + slices.patches
        several = (documents.rows > 1).nonzero()[0].tolist()
        if not several:
            return parts
        pieces, done = [], 0
        for number in several:
            pieces += [parts[:, done:number], self._divided(parts[:, number], slices, number)]
            done = number + 1
        return np.concatenate([*pieces, parts[:, done:]], axis=1)

    def _divided(self, part: np.ndarray, slices: Slices, number: int) -> np.ndarray:
        """int64 [8, K]: the same for one slice of a document of several rows, from what would be if it were one."""
        start, stop = int(slices.starts[number]), int(slices.stops[number])
        found = []
        for row in self.rows(slices.documents[number]):
            before = max(row.start - 1, 0)  # of the body
            body = row.stop - row.start - (row.start == 0)
            low, high = (min(max(int(value) - before, 0), body) for value in part[4:6])
            first, last = (min(max(int(value) - row.first_patch, 0), row.patches) for value in part[6:8])
            # The last patch of a slice may belong to a row of which the slice has no token, see `BatchLengths`.
            if (row.start < stop and row.stop > start) or first < last:
                found.append([number, *row.place, low, high, first, last])
        return np.array(found, np.int64).reshape(-1, 8).T

    def marked(self, document: Document, start: int, stop: int) -> Marked:
        """A slice of a document, with spans or not."""
        tokens, is_target = np.empty(stop - start + 1, np.int16), np.ones(stop - start + 1, bool)
        if start == 0:
            tokens[0] = BOS
        for row in self._rows_from(document, start):
            if row.start > stop:
                break
            begin, end = max(row.start, 1), row.stop  # BOS is not of the body
            body, body_targets = self._marked_body(row.place, end - begin)
            low, high = max(start, begin), min(stop + 1, end)
            tokens[low - start : high - start] = body[low - begin : high - begin]
            is_target[low - start : high - start] = body_targets[low - begin : high - begin]
            if end <= stop and row.last:
                spans = self._columns(row.place).spans(row.place.row)
                tokens[-1], is_target[-1] = EOS, spans is None or spans.last_loss
        return Marked(tokens, is_target)

    def target_counts(self, document: Document, start: int, stop: int, subwords: bool = False) -> tuple[int, int]:
        """Targets of a slice, and the bytes of text among them.

        Of bytes each but the first predicts the next one, past the slice's end too. Of ``subwords`` each but BOS is
        predicted inside its slice, since the last one cannot know where the next ends.
        """
        ended = stop == document.inputs
        if document.plain:
            text = stop - max(start, 1) if subwords else stop - start - ended
            return text + ended, text
        marked = self.marked(document, start, stop)
        if subwords:
            return marked.targets_inside(start, ended)
        return marked.targets, marked.target_bytes

    def target_mask(self, slices: Slices) -> np.ndarray:
        """bool [T]: whether each token of slices is a target when it is predicted; BOS and BOE are none."""
        documents, boe = slices.documents, slices.starts > 0
        in_slice = slices.stops - slices.starts + boe
        ends = np.cumsum(in_slice)
        is_target = np.ones(int(in_slice.sum()), bool)
        for number in np.flatnonzero(~documents.plain).tolist():
            marked = self.marked(documents[number], int(slices.starts[number]), int(slices.stops[number]))
            is_target[ends[number] - len(marked.is_target) + 1 : ends[number]] = marked.is_target[:-1]
        is_target[ends - in_slice] = False
        return is_target

    @cached_property
    def subwords(self) -> Subwords:
        """The tokens that are the patches of rule bpe. Raises DatasetError, IdentityError for another tokenizer."""
        recorded = self._source.patching.tokenizer
        assert recorded is not None, "rule bpe records its tokenizer"
        check_tokenizer(self._source.tokenizer, recorded)
        return load_subwords(self._source.tokenizer)

    def _marked_body(self, place: Place, size: int) -> tuple[np.ndarray, np.ndarray]:
        """int16 and bool [size]: the body of a row, and which of its tokens are targets."""
        if self._body[0] != place:
            columns = self._columns(place)
            text, spans = columns.text(place.row), columns.spans(place.row)
            tokens = byte_tokens(text) if spans is None else spans.tokens(text)
            is_target = np.ones(len(tokens), bool) if spans is None else spans.target_mask()
            if len(tokens) != size:
                raise self.damaged(place, f"{len(tokens)} bytes and special ids, the index says {size}")
            if size and (largest := int(tokens.max())) >= self._largest:
                raise self.damaged(place, f"the special id {largest}; the manifest names those below {self._largest}")
            self._body = place, tokens, is_target
        return self._body[1:]

    def next_bytes(self, slices: Slices, chosen: np.ndarray) -> np.ndarray:
        """int16 [K]: the byte that follows each of the chosen slices int64 [K], of documents that go on there."""
        stops, documents = slices.stops, slices.documents
        found = []
        for number in chosen.tolist():
            document, after = documents[number], int(stops[number]) - 1  # BOS is not of the body
            row = next(self._rows_from(document, after + 1))
            texts = self._columns(row.place).texts
            found.append(int(texts.buffer[int(texts.starts[row.place.row]) + after - max(row.start - 1, 0)]))
        return np.array(found, np.int16)

    def on_boundary(self, document: Document, stop: int) -> bool:
        """Whether a patch of the document ends just before input ``stop``, 0 < stop < inputs."""
        rows = islice(self._rows_from(document, stop - 1), 2)  # the one that the patch belongs to may be the next
        return any(bool(np.isin(stop, self._ends[row])) for row in rows)

    def furthest_cut(self, document: Document, start: int, tokens: int, patches: int | None) -> Cut:
        """The longest slice from ``start`` of at most so many inputs and patches.

        It ends at ``start`` if nothing fits. patches None cuts at any byte.
        """
        if patches is None:
            return Cut(min(start + tokens, document.inputs), 0, 0)
        stop, left, before = start, patches, None
        for row in self._rows_from(document, start):
            ends = self._ends[row]
            first = int(ends.searchsorted(stop, side="right"))
            if before is None:
                before = row.first_patch + first
            last = min(first + left, int(ends.searchsorted(start + tokens, side="right")))
            if last > first:
                stop = int(ends[last - 1])
                left -= last - first
            if last < len(ends):
                break
        return Cut(stop, before or 0, patches - left)

    def rows(self, document: Document) -> list[DocumentRow]:
        """The rows of a document."""
        if document.rows == 1:
            place = Place(document.shard, document.batch, document.row)
            patches = document.patches + document.eos_alone
            return [DocumentRow(place, 0, document.inputs, 0, patches, True, 0, document.phase)]
        key = document.reference, document.phase
        held = self._rows.get(key)
        if held is None:
            held = self._rows[key] = self._indexed_rows(document)
            self._rows_held += len(held)
            while self._rows_held > ROWS_HELD and len(self._rows) > 1:
                self._rows_held -= len(self._rows.popitem(last=False)[1])
        return held

    def _indexed_rows(self, document: Document) -> list[DocumentRow]:
        index = self._source.shard_index(document.shard)
        own = slice(document.first_row, document.first_row + document.rows)
        found: list[DocumentRow] = []
        start = first_patch = begin = 0
        for batch, row, tokens, patches in zip(
            index.batch[own].tolist(), index.row[own].tolist(), index.tokens[own].tolist(), index.patches[own].tolist()
        ):
            stop = ended = start + tokens + (start == 0)
            if self.recut is not None:
                lengths = self.recut.batch(document.phase, document.shard, batch)
                patches = int(lengths.patches[row])
                ended = begin + int(lengths.of_row(row).sum(dtype=np.int64))
            last, place = len(found) == document.rows - 1, Place(document.shard, batch, row)
            found.append(DocumentRow(place, start, stop, first_patch, patches, last, begin, document.phase))
            start, first_patch, begin = stop, first_patch + patches, ended
        return found

    def _rows_from(self, document: Document, number: int) -> Iterator[DocumentRow]:
        """The rows of a document from the one that holds an input."""
        return (row for row in self.rows(document) if row.stop > number or row.last)

    def _columns(self, place: Place) -> BatchColumns:
        """The decoded record batch of a row, from the most recently used ones."""
        return self._batches[place.shard, place.batch]

    def damaged(self, place: Place, problem: str) -> DatasetError:
        """The error that names the shard and the document of a row."""
        return damaged_row(self._source, self._batches, place, problem)


def _by_slice(number: list[int], parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """One for each slice, of the parts of its rows; their slices, int [K], ascend."""
    return [b"".join(part for _, part in own) for _, own in groupby(zip(number, parts), itemgetter(0))]


Batches = Recent[tuple[int, int], BatchColumns]
"""Decoded record batches by shard and number in it, of the sizes that the index says."""


def patch_ends(source: Source, batches: Batches, recut: RecutLengths | None, row: DocumentRow) -> np.ndarray:
    """int64 [P]: the input of the document at which each patch of a row ends.

    Raises DatasetError when the row's lengths do not fit the index.
    """
    if recut is not None:
        lengths = recut.batch(row.phase, row.place.shard, row.place.batch).of_row(row.place.row)
        ends = row.first_begin + np.cumsum(lengths, dtype=np.int64)
        ends[len(ends) - row.last :] -= 1  # EOS is no input
        return ends[:-1] if row.last and lengths[-1] == 1 else ends
    stored = batches[row.place.shard, row.place.batch].patch_lengths(row.place.row)
    if stored is None or len(stored) == 0:
        raise damaged_row(source, batches, row.place, "no patch lengths")
    ends = np.cumsum(stored, dtype=np.int64)
    ends += row.start
    ends[-1] -= row.last  # EOS is no input
    found, wanted = int(ends[-1]), row.stop
    if found != wanted:
        problem = f"patches of {found - row.start} inputs, the index says {wanted - row.start}"
        raise damaged_row(source, batches, row.place, problem)
    return ends[:-1] if row.last and stored[-1] == 1 else ends


def damaged_row(source: Source, batches: Batches, place: Place, problem: str) -> DatasetError:
    """The error that names the shard and the document of a row."""
    name = batches[place.shard, place.batch].id(place.row)
    return DatasetError(f"{source.shard_path(place.shard)}: document {name!r} has {problem}")
