"""Reading pieces of documents: their tokens, their patches, and where a pack may cut them.

Inputs of a document are numbered 0..n: BOS, then its body; input n + 1 would be EOS, which is only ever a label. A
slice is the range [start, stop) of inputs. The body of most documents is their bytes; that of one with spans has
special ids between them, and not all of it is learnt. Decoded record batches are kept, the most recent ones, up to
CACHE_BYTES of them.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from shared.shards.columns import BatchColumns
from shared.shards.dataset import Dataset
from shared.shards.manifest import DatasetError
from shared.vocabulary import BOS, EOS, VOCABULARY_SIZE, byte_tokens, is_special
from trainer.data.catalogue import Catalogue
from trainer.data.mixture import Mixture

CACHE_BYTES = 2**28
SPECIAL_BYTE, SPECIAL_PATCH = np.zeros(1, np.uint8), np.ones(1, np.uint16)
"""Where BOS or BOE begins a slice, and the patch that BOE is."""


class RowRange(NamedTuple):
    """One row of a document and the inputs [start, stop) of the document that lie in it."""

    row: int
    start: int
    stop: int


class Pieces(NamedTuple):
    """What S slices hold, one after the other, each slice begun by one special token."""

    texts: list[np.ndarray]
    """uint8: a SPECIAL_BYTE and the text of each slice; of a document with spans something as long as its body."""
    lengths: list[np.ndarray]
    """uint16: patch lengths of each slice as they are stored: an EOS that shares the last patch is counted there."""
    patches: np.ndarray
    """int64 [S], patches of each slice, those of BOS and BOE included."""


class Marked(NamedTuple):
    """A slice of a document with spans: N inputs and the token after them."""

    tokens: np.ndarray
    """int16 [N + 1]."""
    learnt: np.ndarray
    """bool [N + 1], whether each is a target when it is predicted."""

    @property
    def targets(self) -> int:
        return int(self.learnt[1:].sum())

    @property
    def text(self) -> int:
        """Bytes of text among the tokens that are predicted."""
        return int((~is_special(self.tokens[1:])).sum())

    @property
    def learnt_bytes(self) -> int:
        """Those that are targets."""
        return int((~is_special(self.tokens[1:]) & self.learnt[1:]).sum())


class SliceReader:
    """Slices of the documents of a dataset."""

    def __init__(self, dataset: Dataset | Mixture, catalogue: Catalogue) -> None:
        self._dataset = dataset
        self._catalogue = catalogue
        self._batches: OrderedDict[tuple[int, int], BatchColumns] = OrderedDict()
        self._held = 0
        self._ends: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._body: tuple[int, np.ndarray, np.ndarray] = (-1, np.zeros(0, np.int16), np.zeros(0, bool))
        self._largest = VOCABULARY_SIZE + len(dataset.manifest.identity.specials)

    def pieces(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray, patched: bool) -> Pieces:
        """What slices hold, as views of decoded batches: inputs [starts, stops) of documents, each int64 [S].

        Raises DatasetError that names shard and document where the data is damaged.
        """
        catalogue = self._catalogue
        rows, after = catalogue.first_row[documents], catalogue.first_row[documents + 1]
        inputs = catalogue.inputs[documents]
        whole = (starts == 0) & (stops == inputs) & (after - rows == 1)
        kept, plain = catalogue.patches[documents], catalogue.plain[documents]
        texts: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        patches: list[int] = []
        slices = zip(*(column.tolist() for column in (documents, starts, stops, rows, whole, kept, plain)))
        for document, start, stop, row, is_whole, count, is_plain in slices:
            texts.append(SPECIAL_BYTE)
            if is_whole:  # nearly all documents: nothing to search
                texts.append(self._text(row, stop - 1) if is_plain else np.zeros(stop - 1, np.uint8))
                if patched:
                    lengths.append(self._lengths(row)[:count])
                    patches.append(len(lengths[-1]))
                continue
            begin = max(start, 1)
            texts += self._text_of_inputs(document, begin, stop) if is_plain else [np.zeros(stop - begin, np.uint8)]
            if patched:
                found = self._lengths_of_inputs(document, start, stop)
                lengths += [*([SPECIAL_PATCH] if start else []), *found]
                patches.append(sum(map(len, found)) + (start > 0))
        return Pieces(texts, lengths, np.array(patches, np.int64))

    def marked(self, document: int, start: int, stop: int) -> Marked:
        """A slice of a document, with spans or not."""
        tokens, learnt = np.empty(stop - start + 1, np.int16), np.ones(stop - start + 1, bool)
        if start == 0:
            tokens[0] = BOS
        for row, begin, end in self._rows(document, start):
            if begin > stop:
                break
            begin = max(begin, 1)  # BOS is not of the body
            body, own = self._marked_body(row, end - begin)
            low, high = max(start, begin), min(stop + 1, end)
            tokens[low - start : high - start] = body[low - begin : high - begin]
            learnt[low - start : high - start] = own[low - begin : high - begin]
            if end <= stop and self._catalogue.row_last[row]:
                spans = self._columns(row).spans(self._place(row))
                tokens[-1], learnt[-1] = EOS, spans is None or spans.last_loss
        return Marked(tokens, learnt)

    def learnt(self, document: int, start: int, stop: int) -> tuple[int, int]:
        """Targets of a slice, and the bytes of text among them."""
        if self._catalogue.plain[document]:
            return stop - start, stop - start - (stop == int(self._catalogue.inputs[document]))
        marked = self.marked(document, start, stop)
        return marked.targets, marked.learnt_bytes

    def _marked_body(self, row: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """int16 and bool [size]: the body of a row, and what of it is learnt."""
        if self._body[0] != row:
            columns, place = self._columns(row), self._place(row)
            text, spans = columns.text(place), columns.spans(place)
            tokens = byte_tokens(text) if spans is None else spans.tokens(text)
            learnt = np.ones(len(tokens), bool) if spans is None else spans.learnt()
            if len(tokens) != size:
                raise self.damaged(row, f"{len(tokens)} bytes and special ids, the index says {size}")
            if size and (largest := int(tokens.max())) >= self._largest:
                raise self.damaged(row, f"the special id {largest}; the manifest names those below {self._largest}")
            self._body = row, tokens, learnt
        return self._body[1:]

    def byte(self, document: int, number: int) -> int:
        """One byte of a document, counted from 0."""
        return int(self._text_of_inputs(document, number + 1, number + 2)[0][0])

    def _text_of_inputs(self, document: int, start: int, stop: int) -> list[np.ndarray]:
        """uint8 pieces: the bytes that are inputs [start, stop), 0 < start."""
        pieces = []
        for row, begin, end in self._rows(document, start):
            if begin >= stop:
                break
            begin = max(begin, 1)  # BOS is no byte of the row
            text = self._text(row, end - begin)
            pieces.append(text[max(start, begin) - begin : min(stop, end) - begin])
        return pieces

    def _lengths_of_inputs(self, document: int, start: int, stop: int) -> list[np.ndarray]:
        """uint16 pieces: lengths, as stored, of the patches of inputs [start, stop), which lie on patch boundaries."""
        pieces = []
        for row, begin, _ in self._rows(document, start):
            if begin >= stop:
                break
            first, last = np.searchsorted(self.patch_ends(row, begin), (start, stop), side="right")
            pieces.append(self._lengths(row)[first:last])
        return pieces

    def _text(self, row: int, size: int) -> np.ndarray:
        """uint8 [size]: the bytes of a row."""
        text = self._columns(row).text(self._place(row))
        if len(text) != size:
            raise self.damaged(row, f"{len(text)} bytes of text, the index says {size}")
        return text

    def on_boundary(self, document: int, stop: int) -> bool:
        """Whether a patch of the document ends just before input ``stop``, 0 < stop < inputs."""
        row, begin, _ = next(self._rows(document, stop - 1))
        return bool(np.isin(stop, self.patch_ends(row, begin)))

    def furthest_cut(self, document: int, start: int, tokens: int, patches: int | None) -> tuple[int, int]:
        """The longest slice from ``start`` of at most so many inputs and patches: where it ends, and its patches.

        It ends at ``start`` if nothing fits. patches None cuts at any byte; then the second value is 0.
        """
        if patches is None:
            return min(start + tokens, int(self._catalogue.inputs[document])), 0
        stop, left = start, patches
        for row, begin, _ in self._rows(document, start):
            ends = self.patch_ends(row, begin)
            first = int(np.searchsorted(ends, stop, side="right"))
            last = min(first + left, int(np.searchsorted(ends, start + tokens, side="right")))
            if last > first:
                stop = int(ends[last - 1])
                left -= last - first
            if last < len(ends):
                break
        return stop, patches - left

    def patch_ends(self, row: int, begin: int) -> np.ndarray:
        """int64 [P]: the input at which each patch of a row ends; the row's first input is ``begin``.

        Raises DatasetError when the row's lengths do not fit the index.
        """
        if self._ends[0] != row:
            lengths = self._lengths(row).astype(np.int64)
            if self._catalogue.row_last[row]:
                lengths[-1] -= 1  # EOS is no input
            ends = begin + np.cumsum(lengths)
            if ends[-1] - begin != self._catalogue.row_inputs[row]:
                raise self.damaged(
                    row, f"patches of {ends[-1] - begin} inputs, the index says {self._catalogue.row_inputs[row]}"
                )
            self._ends = row, ends if lengths[-1] else ends[:-1]
        return self._ends[1]

    def _lengths(self, row: int) -> np.ndarray:
        lengths = self._columns(row).patch_lengths(self._place(row))
        if lengths is None or len(lengths) == 0:
            raise self.damaged(row, "no patch lengths")
        return lengths

    def _rows(self, document: int, start: int) -> Iterator[RowRange]:
        """The rows of a document from the one that holds input ``start``."""
        catalogue = self._catalogue
        first, last = int(catalogue.first_row[document]), int(catalogue.first_row[document + 1])
        begin = 0
        for row in range(first, last):
            end = begin + int(catalogue.row_inputs[row])
            if end > start:
                yield RowRange(row, begin, end)
            begin = end

    def _place(self, row: int) -> int:
        """The row's number in its record batch."""
        return int(self._catalogue.row_place[row, 2])

    def _columns(self, row: int) -> BatchColumns:
        """The decoded record batch of a row, from the most recently used ones."""
        shard, batch = int(self._catalogue.row_place[row, 0]), int(self._catalogue.row_place[row, 1])
        columns = self._batches.pop((shard, batch), None)
        if columns is None:
            columns = self._dataset.batch(shard, batch)
            self._held += columns.nbytes
        self._batches[shard, batch] = columns
        while self._held > CACHE_BYTES and len(self._batches) > 1:
            self._held -= self._batches.popitem(last=False)[1].nbytes
        return columns

    def damaged(self, row: int, problem: str) -> DatasetError:
        """The error that names the shard and the document of a row."""
        shard = self._dataset.shard_path(int(self._catalogue.row_place[row, 0]))
        name = self._columns(row).id(self._place(row))
        return DatasetError(f"{shard}: document {name!r} has {problem}")
