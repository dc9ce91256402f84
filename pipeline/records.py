"""What reading yields: records with the place they came from, and what could not be read as one."""

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal

from pipeline.settings import ReadSettings, SplitName
from shared.io.files.digests import canonical_json
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
    """In line formats, counted from 1 in what its split has of the file."""
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
    """None until it is decided (`splits_of`); our own datasets come with it."""
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


@dataclass(frozen=True)
class Records:
    """N consecutive records as columns: what travels from a reader on. Of optional columns None means none has any."""

    place: Callable[[int], Place]
    """Of the record of this number."""
    ids: Sequence[str]
    subsets: Sequence[str]
    texts: Sequence[Text]
    sizes: Sequence[int]
    keys: Sequence[bytes | None] | None = None
    splits: Sequence[SplitName | None] | None = None
    metas: Sequence[str | None] | None = None
    spans: Sequence[Spans | None] | None = None
    lacks: Sequence[tuple[Option, ...]] | None = None
    replaced: Sequence[int] | None = None

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Records":
        """Some records as columns."""
        columns: dict[str, Any] = {
            name: [getattr(record, field) for record in records] for name, field in _FIELDS.items()
        }
        for name in ("keys", "splits", "metas", "spans", "lacks", "replaced"):
            if all(value is None or value in ((), 0) for value in columns[name]):
                columns[name] = None
        return cls([record.place for record in records].__getitem__, **columns)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        for number in range(len(self)):
            own = {name: column[number] for name, column in self._columns().items() if column is not None}
            yield Record(self.place(number), **{_FIELDS[name]: value for name, value in own.items()})

    def take(self, numbers: Sequence[int]) -> "Records":
        """The records of these numbers, in order."""
        columns = {
            name: None if column is None else [column[number] for number in numbers]
            for name, column in self._columns().items()
        }
        return Records(lambda number: self.place(numbers[number]), **columns)  # type: ignore[arg-type]

    @property
    def held(self) -> int:
        """Bytes that their texts and metadata take in memory."""
        texts = sum(len(text) for text in self.texts if isinstance(text, bytes))
        return texts + sum(len(meta or "") for meta in self.metas or ())

    def _columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = {
    "ids": "id",
    "subsets": "subset",
    "texts": "text",
    "sizes": "size",
    "keys": "key",
    "splits": "split",
    "metas": "meta",
    "spans": "spans",
    "lacks": "lacks",
    "replaced": "replaced",
}
"""Columns of Records, and what each is of a Record."""
RECORDS_TOGETHER, BYTES_TOGETHER = 2**10, 2**18
"""Records, and bytes of them, that are collected where a reader has them one by one."""


def collected(found: "Iterable[Record | Records | DeadLetter]") -> "Iterator[Records | DeadLetter]":
    """Records that come one by one, some of them together; the order stays."""
    held: list[Record] = []
    size = 0
    for one in found:
        if isinstance(one, Record):
            held.append(one)
            size += len(one.text) + len(one.meta or "")
        if held and (not isinstance(one, Record) or size >= BYTES_TOGETHER or len(held) == RECORDS_TOGETHER):
            yield Records.of(held)
            held, size = [], 0
        if not isinstance(one, Record):
            yield one
    if held:
        yield Records.of(held)


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


def splits_of(records: Records, reading: ReadSettings) -> Sequence[SplitName]:
    """train or validation for each: by the hash of key or content, so that a record never changes sides."""
    count = len(records)
    given, keys = records.splits or [None] * count, records.keys or [None] * count
    limit = math.ceil(reading.validation_fraction * _HASHES)
    if limit == 0:
        return [split or "train" for split in given]
    first = limit.to_bytes(9, "big")[1:] if limit < _HASHES else b"\xff" * 33  # a digest is less if its beginning is
    spans = records.spans or [None] * count
    return [
        split
        or ("validation" if (content_digest(text, own) if key is None else sha256(key).digest()) < first else "train")
        for split, key, text, own in zip(given, keys, records.texts, spans)
    ]


def content_digest(text: Text, spans: Spans | None = None) -> bytes:
    """sha256 of a text; of a chat also of its turns."""
    digest = text.sha256 if isinstance(text, LongText) else sha256(text).digest()
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
