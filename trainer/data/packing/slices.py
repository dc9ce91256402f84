"""Reading pieces of documents: their tokens, their patches, and where a pack may cut them.

Inputs of a document are numbered 0..n: BOS, then its body; input n + 1 would be EOS, which is only ever a label. A
slice is the range [start, stop) of inputs. The body of most documents is their bytes; that of one with spans has
special ids between them, and not all of it may be a target. Decoded record batches are kept, the most recent ones, up
to CACHE_BYTES of them.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from shared.bpe.folder import check_tokenizer
from shared.bpe.vocabulary import Subwords, load_subwords
from shared.errors import DatasetError
from shared.shards.columns import BatchColumns
from shared.vocabulary import BOS, EOS, VOCABULARY_SIZE, byte_tokens, is_special
from trainer.data.catalogue import Catalogue
from trainer.data.source import Source

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=np.ndarray | BatchColumns)


class Recent(Generic[K, V]):
    """Values by key, the latest always and earlier ones up to ``limit`` bytes in all."""

    def __init__(self, limit: int, make: Callable[[K], V]) -> None:
        self._limit, self._make = limit, make
        self._values: OrderedDict[K, V] = OrderedDict()
        self._held = 0

    def __getitem__(self, key: K) -> V:
        """The value of a key, made if it is not held."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
            return value
        value = self._values[key] = self._make(key)
        self._held += value.nbytes
        while self._held > self._limit and len(self._values) > 1:
            self._held -= self._values.popitem(last=False)[1].nbytes
        return value


CACHE_BYTES = 2**28
ENDS_BYTES = 2**24
"""Memory for where the patches of rows end that were cut lately: many streams go on with them by turns."""
SPECIAL_BYTE, SPECIAL_PATCH = np.zeros(1, np.uint8), np.ones(1, np.dtype("<u2")).view(np.uint8)
"""Where BOS or BOE begins a slice, and the patch that BOE is, as it would be stored."""


class RowRange(NamedTuple):
    """One row of a document and the inputs [start, stop) of the document that lie in it."""

    row: int
    start: int
    stop: int


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

    documents: np.ndarray
    """int64 [S]."""
    starts: np.ndarray
    """int64 [S], the first input of each slice; above 0 it is continued and begins with BOE."""
    stops: np.ndarray
    """int64 [S], one past the last input."""
    first_patches: np.ndarray
    """int64 [S], patches of the document before each slice; 0 when unpatched."""
    patches: np.ndarray
    """int64 [S], patches of each slice, without one for BOE; 0 when unpatched."""


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

    def __init__(self, dataset: Source, catalogue: Catalogue) -> None:
        self._dataset = dataset
        self._catalogue = catalogue
        self._batches = Recent(CACHE_BYTES, self._decoded)
        self._ends = Recent(ENDS_BYTES, self._patch_ends)
        self._body: tuple[int, np.ndarray, np.ndarray] = (-1, np.zeros(0, np.int16), np.zeros(0, bool))
        self._largest = VOCABULARY_SIZE + len(dataset.specials)

    def pieces(self, slices: Slices, plain: np.ndarray, patched: bool) -> Pieces:
        """What slices hold; plain bool [S], whether a slice is of a document without spans.

        Raises DatasetError that names shard and document where the data is damaged.
        """
        text, lengths = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint8)]
        previous = -1
        for number, row, low, high, first, last in zip(*self._row_parts(slices).tolist()):
            columns, place = self._columns(row), self._place(row)
            if number != previous:
                text.append(SPECIAL_BYTE)
                if slices.starts[number]:
                    lengths.append(SPECIAL_PATCH)
                previous = number
            text.append(columns.texts.part(place, low, high) if plain[number] else np.zeros(high - low, np.uint8))
            if patched:
                if columns.lengths is None:
                    raise self.damaged(row, "no patch lengths")
                lengths.append(columns.lengths.part(place, 2 * first, 2 * last))
        return Pieces(np.concatenate(text), np.concatenate(lengths).view("<u2"))

    def _row_parts(self, slices: Slices) -> np.ndarray:
        """int64 [6, K]: the parts of rows that slices are made of.

        Each is the number of the slice, the row, and of that row's body and stored patches the first and one past the
        last. Nearly all documents are one row, and then K = S.
        """
        catalogue = self._catalogue
        rows = catalogue.first_row[slices.documents]
        count = catalogue.first_row[slices.documents + 1] - rows
        parts = np.stack(
            [
                np.arange(len(rows)),
                rows,
                np.maximum(slices.starts, 1) - 1,  # BOS is not of the body
                slices.stops - 1,
                slices.first_patches,
                slices.first_patches + slices.patches,
            ]
        )
        if len(rows) == count.sum():
            return parts
        return self._divided(parts, slices, count)

    def _divided(self, parts: np.ndarray, slices: Slices, count: np.ndarray) -> np.ndarray:
        """int64 [6, K]: the same for documents of ``count`` [S] rows, from what would be if each were one row."""
        catalogue = self._catalogue
        parts = np.repeat(parts, count, axis=1)
        parts[1] += np.arange(len(parts[1])) - np.repeat(np.cumsum(count) - count, count)
        begin, size = catalogue.row_start[parts[1]], catalogue.row_inputs[parts[1]]
        touched = (begin < slices.stops[parts[0]]) & (begin + size > slices.starts[parts[0]])
        parts, begin, size = parts[:, touched], begin[touched], size[touched]
        body = size - (begin == 0)
        parts[2:4] = np.minimum(np.maximum(parts[2:4] - np.maximum(begin - 1, 0), 0), body)
        patches = catalogue.row_patches[parts[1]]
        parts[4:6] = np.minimum(np.maximum(parts[4:6] - catalogue.row_first_patch[parts[1]], 0), patches)
        return parts

    def marked(self, document: int, start: int, stop: int) -> Marked:
        """A slice of a document, with spans or not."""
        tokens, is_target = np.empty(stop - start + 1, np.int16), np.ones(stop - start + 1, bool)
        if start == 0:
            tokens[0] = BOS
        for row, begin, end in self._rows(document, start):
            if begin > stop:
                break
            begin = max(begin, 1)  # BOS is not of the body
            body, body_targets = self._marked_body(row, end - begin)
            low, high = max(start, begin), min(stop + 1, end)
            tokens[low - start : high - start] = body[low - begin : high - begin]
            is_target[low - start : high - start] = body_targets[low - begin : high - begin]
            if end <= stop and self._catalogue.row_last[row]:
                spans = self._columns(row).spans(self._place(row))
                tokens[-1], is_target[-1] = EOS, spans is None or spans.last_loss
        return Marked(tokens, is_target)

    def target_counts(self, document: int, start: int, stop: int, subwords: bool = False) -> tuple[int, int]:
        """Targets of a slice, and the bytes of text among them.

        Of bytes each but the first predicts the next one, past the slice's end too. Of ``subwords`` each but BOS is
        predicted inside its slice, since the last one cannot know where the next ends.
        """
        ended = stop == int(self._catalogue.inputs[document])
        if self._catalogue.plain[document]:
            text = stop - max(start, 1) if subwords else stop - start - ended
            return text + ended, text
        marked = self.marked(document, start, stop)
        if subwords:
            return marked.targets_inside(start, ended)
        return marked.targets, marked.target_bytes

    def target_mask(self, slices: Slices, plain: np.ndarray) -> np.ndarray:
        """bool [T]: whether each token of slices is a target when it is predicted; BOS and BOE are none."""
        boe = slices.starts > 0
        in_slice = slices.stops - slices.starts + boe
        ends = np.cumsum(in_slice)
        is_target = np.ones(int(in_slice.sum()), bool)
        for number in np.flatnonzero(~plain).tolist():
            marked = self.marked(*(int(column[number]) for column in (slices.documents, slices.starts, slices.stops)))
            is_target[ends[number] - len(marked.is_target) + 1 : ends[number]] = marked.is_target[:-1]
        is_target[ends - in_slice] = False
        return is_target

    @cached_property
    def subwords(self) -> Subwords:
        """The tokens that are the patches of rule bpe. Raises DatasetError, IdentityError for another tokenizer."""
        recorded = self._dataset.patching.tokenizer
        assert recorded is not None, "rule bpe records its tokenizer"
        check_tokenizer(self._dataset.tokenizer, recorded)
        return load_subwords(self._dataset.tokenizer)

    def _marked_body(self, row: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """int16 and bool [size]: the body of a row, and which of its tokens are targets."""
        if self._body[0] != row:
            columns, place = self._columns(row), self._place(row)
            text, spans = columns.text(place), columns.spans(place)
            tokens = byte_tokens(text) if spans is None else spans.tokens(text)
            is_target = np.ones(len(tokens), bool) if spans is None else spans.target_mask()
            if len(tokens) != size:
                raise self.damaged(row, f"{len(tokens)} bytes and special ids, the index says {size}")
            if size and (largest := int(tokens.max())) >= self._largest:
                raise self.damaged(row, f"the special id {largest}; the manifest names those below {self._largest}")
            self._body = row, tokens, is_target
        return self._body[1:]

    def byte(self, document: int, number: int) -> int:
        """One byte of a document, counted from 0."""
        row = self._row_of(document, number + 1)
        place = number - max(int(self._catalogue.row_start[row]) - 1, 0)
        return int(self._columns(row).texts.part(self._place(row), place, place + 1)[0])

    def on_boundary(self, document: int, stop: int) -> bool:
        """Whether a patch of the document ends just before input ``stop``, 0 < stop < inputs."""
        return bool(np.isin(stop, self._ends[self._row_of(document, stop - 1)]))

    def furthest_cut(self, document: int, start: int, tokens: int, patches: int | None) -> Cut:
        """The longest slice from ``start`` of at most so many inputs and patches.

        It ends at ``start`` if nothing fits. patches None cuts at any byte.
        """
        if patches is None:
            return Cut(min(start + tokens, int(self._catalogue.inputs[document])), 0, 0)
        stop, left, before = start, patches, None
        for row, _, _ in self._rows(document, start):
            ends = self._ends[row]
            first = int(ends.searchsorted(stop, side="right"))
            if before is None:
                before = int(self._catalogue.row_first_patch[row]) + first
            last = min(first + left, int(ends.searchsorted(start + tokens, side="right")))
            if last > first:
                stop = int(ends[last - 1])
                left -= last - first
            if last < len(ends):
                break
        return Cut(stop, before or 0, patches - left)

    def _patch_ends(self, row: int) -> np.ndarray:
        """int64 [P]: the input of the document at which each patch of a row ends.

        Raises DatasetError when the row's lengths do not fit the index.
        """
        stored = self._columns(row).patch_lengths(self._place(row))
        if stored is None or len(stored) == 0:
            raise self.damaged(row, "no patch lengths")
        ends = np.cumsum(stored, dtype=np.int64)
        ends += self._catalogue.row_start[row]
        last = self._catalogue.row_last[row]
        ends[-1] -= last  # EOS is no input
        found, wanted = int(ends[-1] - self._catalogue.row_start[row]), int(self._catalogue.row_inputs[row])
        if found != wanted:
            raise self.damaged(row, f"patches of {found} inputs, the index says {wanted}")
        return ends[:-1] if last and stored[-1] == 1 else ends

    def _rows(self, document: int, start: int) -> Iterator[RowRange]:
        """The rows of a document from the one that holds input ``start``."""
        catalogue = self._catalogue
        for row in range(self._row_of(document, start), int(catalogue.first_row[document + 1])):
            begin = int(catalogue.row_start[row])
            yield RowRange(row, begin, begin + int(catalogue.row_inputs[row]))

    def _row_of(self, document: int, number: int) -> int:
        """The row that holds an input of a document."""
        first, after = map(int, self._catalogue.first_row[document : document + 2])
        if after - first == 1:
            return first
        return first + int(self._catalogue.row_start[first:after].searchsorted(number, side="right")) - 1

    def _place(self, row: int) -> int:
        """The row's number in its record batch."""
        return int(self._catalogue.row_place[row, 2])

    def _columns(self, row: int) -> BatchColumns:
        """The decoded record batch of a row, from the most recently used ones."""
        return self._batches[row - int(self._catalogue.row_place[row, 2])]

    def _decoded(self, first: int) -> BatchColumns:
        """The record batch that begins with a row, of the sizes that the index says. Raises DatasetError."""
        shard, batch, _ = self._catalogue.row_place[first].tolist()
        return self._dataset.batch(shard, batch)

    def damaged(self, row: int, problem: str) -> DatasetError:
        """The error that names the shard and the document of a row."""
        shard = self._dataset.shard_path(int(self._catalogue.row_place[row, 0]))
        name = self._columns(row).id(self._place(row))
        return DatasetError(f"{shard}: document {name!r} has {problem}")
