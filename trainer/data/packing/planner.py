"""Planning packs: which slices of which documents each one holds. Pure arithmetic on figures of the documents in use.

Packs take turns to be cut from streams. A stream takes the next documents of the merged stream, and each of its packs
is the longest next piece of them within the limits. So packs that follow one another come from different documents
however long these are: cut from one and the same, they would make steps that know that document alone. Only where a cut
falls inside a document are its patch lengths read. S slices of a pack.
"""

from dataclasses import dataclass

import numpy as np

from shared.errors import ConfigError, DatasetError, IdentityError
from shared.patching.credit import PatchCredit
from shared.shards.runs import ROW_BITS
from trainer.data.documents import NO_DOCUMENTS, Document, Documents, gather_documents
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.slices import Cut, SliceReader, Slices
from trainer.data.patch_schedule import PatchSchedule
from trainer.data.sampling.cursor import Cursor, CursorChange, CursorState
from trainer.data.sampling.schedule import ENDLESS, Mixing, Schedule, document_ends, pass_speeds, passes_over
from trainer.data.sampling.streams import SubsetStreams
from trainer.data.source import Source

FIRST_BLOCK, BLOCK = 64, 2048
"""Documents scheduled at a time: few at first, twice as many each time, so that a short run does not wait for many."""
DATA_ENDS = "data.repeats: every subset has been sampled as often as it may be, and the run goes on"
"""What is wrong where a step has nothing to learn."""


@dataclass(frozen=True)
class PackPlan(Slices):
    """The slices of one pack, in order; only the first may begin and only the last may end inside a document."""

    number: int
    targets: int
    """Labels that count: one for each input, but for what spans leave out."""
    bytes: int
    """Bytes of text among them; the others are special ids."""
    limits: PackLimits


class Room:
    """What is left of a pack while it is filled."""

    def __init__(self, limits: PackLimits) -> None:
        self.limits, self.tokens = limits, limits.tokens
        self.patches = None if limits.patches is None else limits.patches - 1
        self.credit = limits.credit
        self.targets = self.bytes = 0
        """Targets of what has been taken, and the bytes of text among it."""
        self._slices: list[np.ndarray] = []

    def add_slice(self, document: Document, start: int, cut: Cut, target_counts: tuple[int, int]) -> None:
        """Take a slice, with so many (targets, bytes); a continued one costs BOE too."""
        boe = start > 0
        slices = np.array([start, cut.stop, cut.first_patch, cut.patches, *document], np.int64)[:, None]
        self.add(slices, cut.stop - start + boe, cut.patches + boe, target_counts)

    def add(self, slices: np.ndarray, tokens: int, patches: int, target_counts: tuple[int, int]) -> None:
        """Take slices, all together of so many tokens, patches and (targets, bytes).

        slices int64 [4 + fields of Document, S]: the values of `Slices`.
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
        slices = np.concatenate([NO_SLICES, *self._slices], axis=1)
        return PackPlan(slices, number, self.targets, self.bytes, self.limits)


NO_SLICES = np.zeros((4 + len(Document._fields), 0), np.int64)


class Upcoming:
    """Documents in the order in which they are packed, and how many of them fit into what is left."""

    def __init__(self, documents: Documents, credit: PatchCredit | None = None) -> None:
        """``credit``: what bounds the patches of each document, where the model finds them itself."""
        self.documents = documents
        inputs, nothing = documents.inputs, np.zeros(len(documents), np.int64)
        patches = documents.patches if credit is None else credit.bound(inputs)
        self._slices = np.concatenate([np.stack([nothing, inputs, nothing, patches]), documents.values])
        self._tokens = totals_before(inputs)
        self._patches = totals_before(patches)
        self._targets = totals_before(documents.targets)
        self._bytes = totals_before(documents.target_bytes)

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


def totals_before(values: np.ndarray) -> np.ndarray:
    """int64 [N + 1]: the sum of the values before each place."""
    return np.append(0, np.cumsum(values))


def continue_document(reader: SliceReader, document: Document, start: int, room: Room) -> int:
    """Put as much of a document as fits into the room, from input ``start``; where the slice ends."""
    boe = start > 0
    if room.credit is None:
        patches = None if room.patches is None else room.patches - boe
        cut = reader.furthest_cut(document, start, room.tokens - boe, patches)
    else:
        cut = credited_cut(document, start, room)
    if cut.stop > start:
        room.add_slice(document, start, cut, reader.target_counts(document, start, cut.stop, room.limits.subwords))
    assert cut.stop <= document.inputs
    return cut.stop


def credited_cut(document: Document, start: int, room: Room) -> Cut:
    """The longest slice from ``start`` whose patches have room, however many of its bound the model will end."""
    assert room.credit is not None and room.patches is not None  # noqa: PT018
    boe = start > 0
    stop = min(start + min(room.tokens, room.credit.reach(room.patches)) - boe, document.inputs)
    if stop <= start:
        return Cut(start, 0, 0)
    return Cut(stop, 0, room.credit.bound(stop - start + boe) - boe)


class Planner:
    """The endless sequence of training packs from a cursor on."""

    def __init__(
        self,
        source: Source,
        reader: SliceReader,
        limits: PackLimits,
        mixing: Mixing,
        cursor: Cursor,
        schedule: PatchSchedule | None = None,
    ) -> None:
        """With a ``schedule`` each phase has limits of its own, and the reader has its thresholds.

        Raises ConfigError for shares that cannot be kept, IdentityError for a cursor made with other packs.
        Raises DatasetError when the data is damaged or empty.
        """
        require_documents(source)
        names, passes = source.subset_names, passes_over(source)
        targets = np.array([totals.targets for totals in source.subsets.values()], np.int64)
        speeds = pass_speeds(passes.documents, passes.text, mixing.weights, names)
        if not targets[speeds > 0].any():
            raise ConfigError("the data has nothing to learn: the loss of all its spans is off")
        ends = document_ends(passes.documents, mixing.repeats, names)
        lasting = (speeds > 0) & (ends == ENDLESS)
        if lasting.any() and not targets[lasting].any():
            raise ConfigError(
                "data.repeats ends every subset with anything to learn, others go on for ever; end them too"
            )
        self._source, self._reader, self._limits, self._phases = source, reader, limits, schedule
        self._state = CursorState(cursor, names)
        """After the packs planned so far; of subsets, up to what is counted of the documents at hand."""
        mixed = Schedule(speeds, passes, cursor.seed, ends)
        self._streams = SubsetStreams(source, mixed, cursor.seed, self._state.subsets)
        self._changed: tuple[list[np.ndarray], list[int]] = [], []
        """Subsets and pack streams that have moved since `change` was last asked."""
        self._block = FIRST_BLOCK
        self._position = self._counted = 0
        self._upcoming, self._after = Upcoming(NO_DOCUMENTS, limits.credit), np.zeros((0, 5), np.int64)
        self._open = [
            self._begun(document, offset, phase) if offset else None
            for document, offset, phase in self._state.streams.tolist()
        ]
        """The document that the last pack of each pack stream cut."""

    @property
    def pack(self) -> int:
        """Number of the next pack."""
        return self._state.pack

    @property
    def state(self) -> CursorState:
        """Where the stream stands after the packs planned so far."""
        self._count()
        return self._state

    def change(self) -> CursorChange:
        """What has changed of the state since this was last asked."""
        self._count()
        subsets, streams = (
            np.unique(np.array(numbers, np.int64))
            for numbers in (np.concatenate([np.zeros(0, np.int64), *self._changed[0]]), self._changed[1])
        )
        self._changed = [], []
        return self._state.change(subsets, streams)

    def next_step(self, packs: int) -> list[PackPlan]:
        """Plan the packs of one optimizer step, in the phase of the run that it belongs to."""
        if self._phases is not None:
            self._enter(self._phases, self._phases.phase_after(self._state.pack // packs, self._state.targets))
        return [self.next_pack() for _ in range(packs)]

    def _enter(self, schedule: PatchSchedule, phase: int) -> None:
        """Cut the documents that no pack has begun with the thresholds of a phase."""
        self._limits = schedule.phases[phase].limits
        if phase != self._state.phase:
            self._count()
            self._state.phase = phase
            references, subsets = self._upcoming.documents.values[:2, self._position :]
            self._upcoming = Upcoming(self._gather(references, subsets, phase), self._limits.credit)
            self._after = self._after[self._position :]
            self._position = self._counted = 0

    def _gather(self, references: np.ndarray, subsets: np.ndarray, phase: int) -> Documents:
        """Documents [K] by their references int64 [K]; subsets int64 [K]."""
        return gather_documents(self._source, references, subsets, phase, self._reader.recut)

    def next_pack(self) -> PackPlan:
        """Plan one pack: the longest next piece of its stream in which there is anything to learn.

        It is empty only when all documents have been used up.
        """
        plan = self._cut_pack()
        while len(plan.documents) and not plan.targets:
            plan = self._cut_pack()  # nothing to learn in that piece, and the next one sees nothing of it anyway
        self._state.pack += 1
        self._state.targets += plan.targets
        return plan

    def _cut_pack(self) -> PackPlan:
        """The longest next piece of a stream."""
        room = Room(self._limits)
        number = self._turn()
        document, offset = self._open[number], int(self._state.streams[number, 1])
        if document is not None:
            document, offset = self._continued(document, offset, room)
        if document is None:
            self._extend(room.tokens)
            self._position = self._upcoming.fill(self._position, room)
            if not self._ended():
                left = room.tokens
                document, offset = self._continued(self._upcoming.documents[self._position], 0, room)
                if room.tokens < left:
                    self._position += 1
        self._open[number] = document
        self._state.streams[number] = (document.reference, offset, document.phase) if document is not None else 0
        self._changed[1].append(number)
        plan = room.plan(self._state.pack)
        assert len(plan.documents) or self._ended(), "a pack must make progress"
        return plan

    def shards_ahead(self) -> list[int]:
        """Shards that are needed next, each once, subset by subset in the order of their use."""
        return self._streams.shards_ahead()

    def _turn(self) -> int:
        """The stream of the next pack; when no more documents begin, the next one that has something left."""
        number = self._state.pack % len(self._open)
        if self._open[number] is None and self._ended():
            begun = [stream for stream, document in enumerate(self._open) if document is not None]
            number = min(begun, key=lambda stream: (stream - number) % len(self._open), default=number)
        return number

    def _ended(self) -> bool:
        """Whether no more documents begin: every subset has been sampled as often as it may be."""
        self._extend(0)
        return self._position == len(self._upcoming.documents)

    def _continued(self, document: Document, start: int, room: Room) -> tuple[Document | None, int]:
        """Take what fits of a document from input ``start``; the document and where it was cut, None if it was not."""
        stop = continue_document(self._reader, document, start, room)
        return (document, stop) if 0 < stop < document.inputs else (None, 0)

    def _count(self) -> None:
        """Bring the state of the subsets up to the documents that have been used."""
        used = slice(self._counted, self._position)
        subsets = self._upcoming.documents.subset[used]
        if len(subsets):
            self._state.subsets[subsets] = self._after[used]  # of several documents of a subset the last one counts
            self._changed[0].append(subsets)
            self._counted = self._position

    def _extend(self, tokens: int) -> None:
        """Schedule more documents, until those at hand have more than so many inputs or none is left."""
        while self._upcoming.tokens_from(self._position) <= tokens:
            subsets, references, after = self._streams.following(self._block)
            self._block = min(2 * self._block, BLOCK)
            if not len(subsets):
                break
            self._count()
            documents = self._gather(references, subsets, self._state.phase)
            waiting = self._upcoming.documents.values[:, self._position :]
            self._after = np.concatenate([self._after[self._position :], after])
            waiting_too = Documents(np.concatenate([waiting, documents.values], axis=1))
            self._upcoming = Upcoming(waiting_too, self._limits.credit)
            self._position = self._counted = 0

    def _begun(self, reference: int, offset: int, phase: int) -> Document:
        """A document that a pack stream has begun. Raises IdentityError where packs of these limits cannot cut it."""
        shard, row = reference >> ROW_BITS, reference % 2**ROW_BITS
        phases = 1 if self._phases is None else len(self._phases.phases)
        if shard < self._source.shard_count and max(phase, self._state.phase) < phases:
            index = self._source.shard_index(shard)
            if row < len(index) and index.part[row] == 0:
                subset = self._source.subset_codes(shard)[index.subset[row]]
                document = self._gather(np.array([reference]), subset, phase)[0]
                fits = offset < document.inputs
                if fits and (not self._limits.patched or self._reader.on_boundary(document, offset)):
                    return document
        raise IdentityError(
            f"the checkpoint stops at byte {offset - 1} of the document in row {row} of shard {shard}, where these "
            "packs cannot; was it made with patches of another kind?"
        )


def require_documents(source: Source) -> None:
    """Raise DatasetError when there is nothing to read."""
    if not any(totals.documents for totals in source.subsets.values()):
        raise DatasetError(
            f"{source.where} holds no documents: training needs some in train and in validation; preprocess more, "
            "with another --validation-fraction, or cut long texts with --document-bytes"
        )


def check_division(packs: int, ranks: int) -> None:
    """Raise ConfigError unless every rank gets as many packs of a step as every other."""
    if packs % ranks:
        raise ConfigError(
            f"data.packs is {packs}, which {ranks} ranks cannot share equally; choose a multiple of {ranks}"
        )
