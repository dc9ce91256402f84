"""Planning packs: which slices of which documents each one holds. Pure arithmetic on the catalogue.

Packs take turns to be cut from streams. A stream takes the next documents of the merged stream, and each of its packs
is the longest next piece of them within the limits. So packs that follow one another come from different documents
however long these are: cut from one and the same, they would make steps that know that document alone. Only where a cut
falls inside a document are its patch lengths read. S slices of a pack.
"""

from dataclasses import dataclass

import numpy as np

from shared.errors import ConfigError, IdentityError
from trainer.data.catalogue import Catalogue
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.slices import Cut, SliceReader, Slices
from trainer.data.sampling.cursor import Cursor, PackStream
from trainer.data.sampling.schedule import ENDLESS, Mixing, Schedule, document_ends, document_rates
from trainer.data.sampling.streams import SubsetStream

BLOCK = 1024
"""Documents scheduled at a time."""


@dataclass(frozen=True)
class PackPlan(Slices):
    """The slices of one pack, in order; only the first may begin and only the last may end inside a document."""

    number: int
    targets: int
    """Labels that count: one for each input, but for what spans leave out."""
    bytes: int
    """Bytes of text among them; the others are special ids."""


class Room:
    """What is left of a pack while it is filled."""

    def __init__(self, limits: PackLimits) -> None:
        self.tokens = limits.tokens
        self.patches = None if limits.patches is None else limits.patches - 1
        self.subwords = limits.subwords
        self.targets = self.bytes = 0
        """Targets of what has been taken, and the bytes of text among it."""
        self._slices: list[np.ndarray] = []

    def add_slice(self, document: int, start: int, cut: Cut, target_counts: tuple[int, int]) -> None:
        """Take a slice, with so many (targets, bytes); a continued one costs BOE too."""
        boe = start > 0
        slices = np.array([[document], [start], [cut.stop], [cut.first_patch], [cut.patches]])
        self.add(slices, cut.stop - start + boe, cut.patches + boe, target_counts)

    def add(self, slices: np.ndarray, tokens: int, patches: int, target_counts: tuple[int, int]) -> None:
        """Take slices, all together of so many tokens, patches and (targets, bytes).

        slices int64 [5, S]: the document, start, stop, first patch and patches of each.
        """
        self._slices.append(slices)
        self.tokens -= tokens
        self.targets, self.bytes = self.targets + target_counts[0], self.bytes + target_counts[1]
        if self.patches is not None:
            self.patches -= patches
        assert self.tokens >= 0
        assert self.patches is None or self.patches >= 0

    def plan(self, number: int) -> PackPlan:
        """The plan of what has been taken."""
        slices = np.concatenate(self._slices, axis=1) if self._slices else np.zeros((5, 0), np.int64)
        documents, starts, stops, first_patches, patches = slices
        return PackPlan(documents, starts, stops, first_patches, patches, number, self.targets, self.bytes)


class Upcoming:
    """Documents in the order in which they are packed, and how many of them fit into what is left."""

    def __init__(self, catalogue: Catalogue, documents: np.ndarray) -> None:
        self.documents = documents
        inputs, patches, nothing = catalogue.inputs[documents], catalogue.patches[documents], np.zeros_like(documents)
        self._slices = np.stack([documents, nothing, inputs, nothing, patches])
        self._tokens = _running(inputs)
        self._patches = _running(patches)
        self._targets = _running(catalogue.targets[documents])
        self._bytes = _running(catalogue.target_bytes[documents])

    def tokens_from(self, position: int) -> int:
        """Inputs of all documents from a position on."""
        return int(self._tokens[-1] - self._tokens[position])

    def fill(self, position: int, room: Room) -> int:
        """Move whole documents from this position into the room; the position of the first that does not fit whole."""
        end = int(self._tokens.searchsorted(self._tokens[position] + room.tokens, side="right")) - 1
        if room.patches is not None:
            by_patches = self._patches.searchsorted(self._patches[position] + room.patches, side="right") - 1
            end = min(end, int(by_patches))
        if end > position:
            tokens, patches, targets, text = (
                int(sums[end] - sums[position]) for sums in (self._tokens, self._patches, self._targets, self._bytes)
            )
            room.add(self._slices[:, position:end], tokens, patches, (targets, text))
        return end


def _running(values: np.ndarray) -> np.ndarray:
    """int64 [N + 1]: the sum of the values before each place."""
    return np.append(0, np.cumsum(values))


def continue_document(reader: SliceReader, inputs: int, document: int, start: int, room: Room) -> int:
    """Put as much of a document as fits into the room, from input ``start``; where the slice ends."""
    boe = start > 0
    patches = None if room.patches is None else room.patches - boe
    cut = reader.furthest_cut(document, start, room.tokens - boe, patches)
    if cut.stop > start:
        room.add_slice(document, start, cut, reader.target_counts(document, start, cut.stop, room.subwords))
    assert cut.stop <= inputs
    return cut.stop


class Planner:
    """The endless sequence of training packs from a cursor on."""

    def __init__(
        self, catalogue: Catalogue, reader: SliceReader, limits: PackLimits, mixing: Mixing, cursor: Cursor
    ) -> None:
        """Raises ConfigError for shares that cannot be kept, IdentityError for a cursor made with other packs."""
        names = catalogue.subset_names
        documents = np.bincount(catalogue.subset, minlength=len(names))
        rates = document_rates(documents, catalogue.bytes_of_subset(), mixing.weights, names)
        if not catalogue.targets_of_subset()[rates > 0].any():
            raise ConfigError("the data has nothing to learn: the loss of all its spans is off")
        ends = document_ends(documents, mixing.repeats, names)
        lasting = (rates > 0) & (ends == ENDLESS)
        if lasting.any() and not catalogue.targets_of_subset()[lasting].any():
            raise ConfigError(
                "data.repeats ends every subset with anything to learn, others go on for ever; end them too"
            )
        self._catalogue, self._reader, self._limits = catalogue, reader, limits
        self._schedule = Schedule(rates, cursor.seed, ends)
        self._streams = [SubsetStream(catalogue, subset, cursor.seed) for subset in range(len(names))]
        self._cursor = cursor
        self._pack, self._pack_streams = cursor.pack, list(cursor.streams)
        self._sampled = np.array([cursor.sampled[name] for name in names], np.int64)
        """Documents of each subset sampled before those that are upcoming."""
        self._scheduled = self._sampled.copy()
        self._position = 0
        self._upcoming = Upcoming(catalogue, np.zeros(0, np.int64))
        for stream in self._pack_streams:
            self._check_stream(stream)

    @property
    def cursor(self) -> Cursor:
        """Where the stream stands after the packs planned so far."""
        sampled = dict(zip(self._catalogue.subset_names, (self._sampled + self._used()).tolist()))
        return self._cursor.model_copy(
            update={"pack": self._pack, "sampled": sampled, "streams": tuple(self._pack_streams)}
        )

    def next_pack(self) -> PackPlan:
        """Plan one pack: the longest next piece of its stream in which there is anything to learn.

        It is empty only when all documents have been used up.
        """
        plan = self._cut_pack()
        while len(plan.documents) and not plan.targets:
            plan = self._cut_pack()  # nothing to learn in that piece, and the next one sees nothing of it anyway
        self._pack += 1
        return plan

    def _cut_pack(self) -> PackPlan:
        """The longest next piece of a stream."""
        room = Room(self._limits)
        number = self._turn()
        stream = self._pack_streams[number]
        if stream.offset:
            stream = self._fill(stream, room)
        if not stream.offset:
            self._extend(room.tokens)
            self._position = self._upcoming.fill(self._position, room)
            if not self._ended():
                left = room.tokens
                stream = self._fill(PackStream(document=int(self._upcoming.documents[self._position])), room)
                if room.tokens < left:
                    self._position += 1
        self._pack_streams[number] = stream
        plan = room.plan(self._pack)
        assert len(plan.documents) or self._ended(), "a pack must make progress"
        return plan

    def shards_ahead(self) -> list[int]:
        """Shards that are needed next, each once, subset by subset in the order of their use."""
        ahead = [self._streams[subset].shards_ahead(int(self._scheduled[subset])) for subset in self._schedule.subsets]
        return list(dict.fromkeys(np.concatenate(ahead).tolist()))

    def _turn(self) -> int:
        """The stream of the next pack; when no more documents begin, the next one that has something left."""
        number = self._pack % len(self._pack_streams)
        if not self._pack_streams[number].offset and self._ended():
            begun = [stream for stream, at in enumerate(self._pack_streams) if at.offset]
            number = min(begun, key=lambda stream: (stream - number) % len(self._pack_streams), default=number)
        return number

    def _ended(self) -> bool:
        """Whether no more documents begin: every subset has been sampled as often as it may be."""
        self._extend(0)
        return self._position == len(self._upcoming.documents)

    def _fill(self, stream: PackStream, room: Room) -> PackStream:
        """Take what fits of a stream's document; the stream after that, with offset 0 if all or nothing was taken."""
        inputs = int(self._catalogue.inputs[stream.document])
        stop = continue_document(self._reader, inputs, stream.document, stream.offset, room)
        return PackStream(document=stream.document, offset=stop) if stop < inputs else PackStream()

    def _used(self) -> np.ndarray:
        """int64 [subsets]: how many of the documents at hand have been sampled."""
        used = self._upcoming.documents[: self._position]
        return np.bincount(self._catalogue.subset[used], minlength=len(self._sampled))

    def _extend(self, tokens: int) -> None:
        """Schedule more documents, until those at hand have more than so many inputs or none is left."""
        while self._upcoming.tokens_from(self._position) <= tokens:
            subsets = self._schedule.following(self._scheduled, BLOCK)
            if not len(subsets):
                break
            documents = np.empty(len(subsets), np.int64)
            for subset in np.unique(subsets):
                mine = subsets == subset
                documents[mine] = self._streams[subset].take(int(self._scheduled[subset]), int(mine.sum()))
            self._scheduled += np.bincount(subsets, minlength=len(self._scheduled))
            self._sampled += self._used()
            waiting = self._upcoming.documents[self._position :]
            self._upcoming, self._position = Upcoming(self._catalogue, np.concatenate([waiting, documents])), 0

    def _check_stream(self, stream: PackStream) -> None:
        """Raise IdentityError for a document that packs of these limits could not have cut there."""
        if not stream.offset:
            return
        known = stream.document < len(self._catalogue.inputs)
        inside = known and stream.offset < self._catalogue.inputs[stream.document]
        patched = self._limits.patches is not None
        if not inside or (patched and not self._reader.on_boundary(stream.document, stream.offset)):
            raise IdentityError(
                f"the checkpoint stops at byte {stream.offset - 1} of document {stream.document}, where these packs "
                "cannot; was it made with patches of another kind?"
            )


def check_division(packs: int, ranks: int) -> None:
    """Raise ConfigError unless every rank gets as many packs of a step as every other."""
    if packs % ranks:
        raise ConfigError(
            f"data.packs is {packs}, which {ranks} ranks cannot share equally; choose a multiple of {ranks}"
        )
