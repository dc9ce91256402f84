"""The whole state of the training data: small, JSON-able, and independent of ranks and loader workers (law 5)."""

from collections.abc import Sequence
from operator import not_
from typing import NamedTuple, Self

import numpy as np
from pydantic import Field

from shared.errors import IdentityError
from shared.io.files.digests import differences, in_short
from shared.settings import Settings
from shared.shards.dataset import Dataset
from trainer.data.mixture import Mixture


class PackStream(Settings):
    """A sequence of documents that packs are cut from by turns, and the document that its last pack cut."""

    document: int = Field(default=0, ge=0, lt=2**62)
    """Its reference; without meaning when offset is 0."""
    offset: int = Field(default=0, ge=0, lt=2**62)
    """Inputs of the document that are used up: 0 when the stream goes on with a document that no pack has begun."""
    phase: int = Field(default=0, ge=0, lt=2**31, exclude_if=not_)
    """Of the run, whose thresholds cut the document; left out where it is the first, or there is but one."""


class SubsetCursor(NamedTuple):
    """Where the stream of a subset stands, after what is used up of it, or begun by a stream."""

    number: int = 0
    """Of the pass."""
    group: int = 0
    window: int = 0
    used: int = 0
    """Documents of the window."""
    sampled: int = 0
    """Documents in all."""


class Cursor(Settings):
    """Where the stream of packs stands: everything before pack number ``pack`` has been handed out."""

    seed: int
    pack: int = Field(ge=0, lt=2**62)
    """Number of the next pack."""
    subsets: dict[str, SubsetCursor]
    streams: tuple[PackStream, ...]
    """Pack p is cut from stream p modulo their number."""
    fingerprints: dict[str, str]
    """Of the datasets, by split; of several, by NAME/split."""
    targets: int = Field(default=0, ge=0, lt=2**62, exclude_if=not_)
    """Training targets of all packs before: with the steps they decide which phase comes next."""
    phase: int = Field(default=0, ge=0, lt=2**31, exclude_if=not_)
    """Of the run, in which the last pack was made."""

    @property
    def sampled(self) -> dict[str, int]:
        """Documents of each subset that are used up, or begun by a stream."""
        return {name: subset.sampled for name, subset in self.subsets.items()}


class CursorChange(NamedTuple):
    """What a step changes of a cursor: small, however many subsets there are, since it travels with every pack."""

    pack: int
    targets: int
    phase: int
    subsets: np.ndarray
    """int64 [K, 6]: the code of each subset that documents came from, and its SubsetCursor."""
    streams: np.ndarray
    """int64 [L, 4]: the number, document, offset and phase of each stream that packs were cut from."""


class CursorState:
    """A cursor while it moves."""

    def __init__(self, cursor: Cursor, names: Sequence[str]) -> None:
        """names: of the subsets of the data. Raises IdentityError for the cursor of others, or of none of this kind."""
        if set(cursor.subsets) != set(names) or any(
            min(subset) < 0 or max(subset) >= 2**62 for subset in cursor.subsets.values()
        ):
            raise IdentityError("the checkpoint's data state is not one of these subsets")
        self._cursor, self._names = cursor, tuple(names)
        self.pack, self.targets, self.phase = cursor.pack, cursor.targets, cursor.phase
        self.subsets = np.array([cursor.subsets[name] for name in names], np.int64).reshape(-1, 5)
        """int64 [S, 5]: the SubsetCursor of each subset."""
        self.streams = np.array([(one.document, one.offset, one.phase) for one in cursor.streams], np.int64)
        """int64 [L, 3]: document, offset and phase of each stream."""

    def apply(self, change: CursorChange) -> None:
        """Move on by a step."""
        self.pack, self.targets, self.phase = change.pack, change.targets, change.phase
        self.subsets[change.subsets[:, 0]] = change.subsets[:, 1:]
        self.streams[change.streams[:, 0]] = change.streams[:, 1:]

    def change(self, subsets: np.ndarray, streams: np.ndarray) -> CursorChange:
        """What these subsets and streams, int64 by their numbers, are now."""
        return CursorChange(
            self.pack,
            self.targets,
            self.phase,
            np.concatenate([subsets[:, None], self.subsets[subsets]], axis=1),
            np.concatenate([streams[:, None], self.streams[streams]], axis=1),
        )

    def copy(self) -> Self:
        """The state as it is now."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__, subsets=self.subsets.copy(), streams=self.streams.copy())
        return copied

    @property
    def cursor(self) -> Cursor:
        """The state as it is saved."""
        subsets = {name: SubsetCursor(*row) for name, row in zip(self._names, self.subsets.tolist())}
        streams = tuple(
            PackStream(document=document, offset=offset, phase=phase) if offset else PackStream()
            for document, offset, phase in self.streams.tolist()
        )
        moved = {"pack": self.pack, "targets": self.targets, "phase": self.phase}
        return self._cursor.model_copy(update={**moved, "subsets": subsets, "streams": streams})


def first_cursor(dataset: Dataset | Mixture, seed: int, streams: int) -> Cursor:
    """The cursor of a run that begins."""
    subsets = dict.fromkeys(dataset.subset_names, SubsetCursor())
    return Cursor(
        seed=seed, pack=0, subsets=subsets, streams=(PackStream(),) * streams, fingerprints=dataset.fingerprints
    )


def check_cursor(cursor: Cursor, dataset: Dataset | Mixture) -> None:
    """Raise IdentityError when the cursor belongs to other data than this."""
    lines = differences(cursor.fingerprints, dataset.fingerprints)
    if lines:
        raise IdentityError(
            f"{dataset.where} is not the data that this run began with: fingerprint of {in_short(lines)}"
        )
