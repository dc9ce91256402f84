"""What reading yields: records with the place they came from, and what could not be read as one."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.settings import ReadSettings, SplitName

LONGEST_RECORD = 512 * 2**20
"""Bytes; a longer line or file is not held in memory but becomes a dead letter."""
LONGEST_EXCERPT = 64 * 2**10
"""Bytes of a dead letter's record that are kept."""
_HASHES = 2**64


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies in the input."""

    path: str
    line: int | None = None
    """Counted from 1, in line formats."""
    offset: int | None = None
    """Bytes from the start of the (decompressed) file."""
    row: int | None = None
    """In our own datasets."""

    def as_json(self) -> dict[str, Any]:
        fields = {"path": self.path, "line": self.line, "offset": self.offset, "row": self.row}
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Record:
    """A document of the input. An empty text makes no document: it is counted and listed."""

    place: Place
    id: str
    subset: str
    text: bytes
    key: bytes | None = None
    """What decides between train and validation, if not the text."""
    split: SplitName | None = None
    """Set where the input has decided already: our own datasets."""
    meta: str | None = None
    size: int = 0
    """Bytes that the record took in the input, for the progress bar."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used, with what is needed to find and mend it."""

    place: Place
    reason: str
    size: int
    sha256: str
    excerpt: bytes

    def as_json(self) -> dict[str, Any]:
        values = {**self.place.as_json(), "reason": self.reason, "bytes": self.size, "sha256": self.sha256}
        try:
            return values | {"excerpt": self.excerpt.decode()}
        except UnicodeDecodeError:
            return values | {"excerpt_base64": base64.b64encode(self.excerpt).decode()}


def dead_letter(place: Place, reason: str, data: bytes) -> DeadLetter:
    """The dead letter of a record whose bytes are at hand."""
    return DeadLetter(place, reason, len(data), hashlib.sha256(data).hexdigest(), data[:LONGEST_EXCERPT])


def split_of(record: Record, reading: ReadSettings) -> SplitName:
    """train or validation: by the hash of key or content, so that a record never changes sides."""
    if record.split is not None:
        return record.split
    key = record.text if record.key is None else record.key
    return "validation" if _hash(key) < reading.validation_fraction * _HASHES else "train"


def sample_hash(text: bytes, seed: int) -> int:
    """uint64 that orders records at random but for ever: the sample is all those below a threshold."""
    return _hash(seed.to_bytes(8, "big", signed=True), text)


def sampled(record: Record, seed: int, threshold: int | None) -> bool:
    """Whether the sample holds a record; None samples everything."""
    return threshold is None or sample_hash(record.text, seed) < threshold


def _hash(*parts: bytes) -> int:
    state: Any = hashlib.sha256()
    update: Callable[[bytes], None] = state.update
    for part in parts:
        update(part)
    return int.from_bytes(state.digest()[:8], "big")
