"""What reading yields: records with the place they came from, and what could not be read as one."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.settings import ReadSettings, SplitName
from shared.io.identity import canonical_json
from shared.shards.spans import Spans

LONGEST_RECORD = 512 * 2**20
"""Bytes; a longer line is not held in memory but becomes a dead letter. JSON is parsed as a
whole, in several times the memory of its text."""
LONGEST_HELD = 32 * 2**20
"""Bytes; a longer text that can be read again, a file or the parts of a document in shards, is not held in memory."""
CHUNK = 2**20
"""Bytes of a long text at a time."""
LONGEST_EXCERPT = 64 * 2**10
"""Bytes of a dead letter's record that are kept."""
_HASHES = 2**64  # sampling and validation compare a share of this with the first 8 bytes of a sha256


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies in the input."""

    path: str
    line: int | None = None
    """Counted from 1, in line formats."""
    offset: int | None = None
    """Bytes from the start of the (decompressed) file."""
    row: int | None = None
    """Counted from 0, in formats of rows, samples or records."""
    member: str | None = None
    """Key of a sample in an archive."""

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class LongText:
    """A text that is not held: it is read again, chunk by chunk, each time it is needed."""

    size: int
    """Bytes; never 0."""
    sha256: bytes
    """Digest of the whole text."""
    open: Callable[[], Iterator[bytes]]
    """Chunks of about 1 MiB from the beginning. Raises PipelineError when the text is no longer what it was."""

    def __len__(self) -> int:
        return self.size


Text = bytes | LongText


def chunks_of(text: Text) -> Iterator[bytes]:
    """The text in order; what is held comes whole."""
    return iter((text,)) if isinstance(text, bytes) else text.open()


Option = Literal["id", "subset", "key"]
"""What an option may name a column for."""


@dataclass(frozen=True, slots=True)
class Record:
    """A document of the input. An empty text makes no document: it is counted and listed."""

    place: Place
    id: str
    subset: str
    text: Text
    key: bytes | None = None
    """What decides between train and validation, if not the text."""
    split: SplitName | None = None
    """None until it is decided (`split_of`); our own datasets come with it."""
    meta: str | None = None
    size: int = 0
    """Bytes that the record took in the input, for the progress bar."""
    spans: Spans | None = None
    """Special ids between the bytes, and which tokens are targets; None: plain text."""
    lacks: tuple[Option, ...] = ()
    """Options that name a column which this record does not have, or has null."""
    replaced: int = 0
    """Values of other columns than the text's for which null or a text stands, because they have no form here."""

    @property
    def tokens(self) -> int:
        """Of the body: bytes and special ids."""
        return len(self.text) + (self.spans.special_count if self.spans is not None else 0)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used, with what is needed to find and fix it."""

    place: Place
    reason: str
    size: int
    sha256: str
    excerpt: bytes
    records: int = 1
    """How many are lost by it, where that is known: the rows of a table, for one."""

    def as_json(self) -> dict[str, Any]:
        values = {**self.place.as_json(), "reason": self.reason, "bytes": self.size, "sha256": self.sha256}
        if self.records != 1:
            values["records"] = self.records
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
    content = content_digest(record.text, record.spans) if record.key is None else hashlib.sha256(record.key).digest()
    return "validation" if _position(content) < reading.validation_fraction * _HASHES else "train"


def content_digest(text: Text, spans: Spans | None = None) -> bytes:
    """sha256 of a text; of a chat also of its turns."""
    digest = text.sha256 if isinstance(text, LongText) else hashlib.sha256(text).digest()
    return digest if spans is None else hashlib.sha256(digest + _spans_digest(spans)).digest()


def sample_hash(text: Text, seed: int, spans: Spans | None = None) -> int:
    """uint64 that orders records at random but for ever: the sample is all those below a threshold."""
    state = hashlib.sha256(seed.to_bytes(8, "big", signed=True))
    for chunk in chunks_of(text):
        state.update(chunk)
    if spans is not None:
        state.update(_spans_digest(spans))
    return _position(state.digest())


def _spans_digest(spans: Spans) -> bytes:
    return hashlib.sha256(canonical_json(spans.as_json()).encode()).digest()


def _position(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")
