"""Shards as WebDataset tars: the same rows as raw members, which plain webdataset reads without decoding anything.

Row 7 is 0000000007.json (id, subset, part, meta, and spans where the row has any), 0000000007.bytes and, when patched,
0000000007.patch_lengths (uint16 LE).
"""

import mmap
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from shared.errors import DatasetError
from shared.io.files.digests import canonical_json
from shared.settings import first_problem
from shared.shards.columns import BatchColumns, Ragged
from shared.shards.document import LONGEST_PART
from shared.shards.formats import tar
from shared.shards.formats.arrow import SPANS_TYPE, ragged_spans
from shared.shards.manifest import SubsetName
from shared.shards.rows import Rows
from shared.shards.spans import LARGEST_ID
from shared.vocabulary import VOCABULARY_SIZE

FIELDS = ("json", "bytes", "patch_lengths")
_JSON, _BYTES, _LENGTHS = range(len(FIELDS))
_TENS = 10 ** np.arange(9, -1, -1)
"""Of the digits that a row's members begin with."""
_NAMES = [np.frombuffer(f".{field}".encode().ljust(tar.NAME_BYTES - len(_TENS), b"\0"), np.uint8) for field in FIELDS]
"""What follows them."""
MOST_RECORD_BYTES = 2**28
"""Of a row's JSON: id, meta and spans."""


# Typed dicts, since pydantic checks a million of them faster than it makes models. It takes their configuration from
# this attribute, which the syntax of typed dicts has no place for.


class _Span(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    end: Annotated[int, Field(ge=0, le=LONGEST_PART)]
    special: Annotated[int, Field(ge=VOCABULARY_SIZE, le=LARGEST_ID)] | None
    loss: bool


class _Record(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    id: str
    subset: SubsetName
    part: Annotated[int, Field(ge=0, le=2**31 - 1)]
    meta: str | None
    spans: NotRequired[list[_Span]]


_RECORD = TypeAdapter(_Record)


class TarWriter:
    """Writes rows to an open binary file as tar members."""

    def __init__(self, sink: Any):
        self._sink = sink
        self._rows = 0
        self._size = 0

    def write(self, rows: Rows) -> list[int]:
        """Write the rows of one batch; returns the offset of each row's first member."""
        offsets = []
        for row in map(rows.row, range(len(rows))):
            offsets.append(self._size)
            key = f"{self._rows:010d}"
            record: dict[str, Any] = {"id": row.id, "subset": row.subset, "part": row.part, "meta": row.meta}
            if row.spans is not None:
                record["spans"] = row.spans.as_json()
            self._put(f"{key}.json", canonical_json(record).encode())
            self._put(f"{key}.bytes", row.text)
            if row.patch_lengths is not None:
                self._put(f"{key}.patch_lengths", row.patch_lengths.astype("<u2", copy=False).tobytes())
            self._rows += 1
        return offsets

    def _put(self, name: str, content: bytes) -> None:
        self._size += self._sink.write(tar.member(name, content))

    def close(self) -> None:
        self._sink.write(tar.end_of_archive(self._size))


class TarReader:
    """Batches of one shard file, found through the offsets of its index."""

    def __init__(self, path: Path, offsets: np.ndarray, batch_starts: np.ndarray):
        """``offsets``: int64 [rows], of each row's first member; ``batch_starts``: int64 [batches + 1], rows."""
        self._path = path
        self._offsets = offsets
        self._starts = batch_starts
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DatasetError(f"{path}: the shard is missing") from None
        except ValueError:
            raise DatasetError(f"{path} is damaged: it is empty") from None
        self._archive = memoryview(self._map)
        whole = len(self._archive) // tar.BLOCK * tar.BLOCK
        self._blocks = np.frombuffer(self._archive[:whole], np.uint8).reshape(-1, tar.BLOCK)
        wrong = np.flatnonzero(
            (offsets % tar.BLOCK != 0) | (np.diff(offsets, prepend=-1) <= 0) | (offsets >= len(self._archive))
        )
        for row in wrong[:1].tolist():
            raise DatasetError(
                f"{path} is damaged: its index places row {row} at byte {offsets[row]}; "
                f"rows follow one another below {len(self._archive)}"
            )

    @property
    def batches(self) -> int:
        return len(self._starts) - 1

    def batch(self, number: int) -> BatchColumns:
        """Find the members of one batch. Raises DatasetError."""
        if not 0 <= number < self.batches:
            raise DatasetError(f"{self._path} is damaged: it has {self.batches} record batches, no batch {number}")
        first, stop = int(self._starts[number]), int(self._starts[number + 1])
        places = self._places(first, stop)
        patched = places[:, _LENGTHS, 0] >= 0
        if patched.any() and not patched.all():
            raise DatasetError(f"{self._path}: batch {number} mixes patched and unpatched rows")
        records = [self._record(first + row, *place) for row, place in enumerate(places[:, _JSON].tolist())]
        try:
            spans = ragged_spans(pa.array([record.get("spans") for record in records], SPANS_TYPE))
        except (pa.ArrowInvalid, OverflowError):
            raise DatasetError(f"{self._path} is damaged: batch {number} has spans with numbers out of range") from None
        found = BatchColumns(
            texts=self._ragged(places[:, _BYTES]),
            lengths=self._ragged(places[:, _LENGTHS]) if patched.any() else None,
            parts=np.array([record["part"] for record in records], np.int32),
            ids=pa.array([record["id"] for record in records], pa.string()),
            subsets=pa.array([record["subset"] for record in records], pa.string()),
            metas=pa.array([record["meta"] for record in records], pa.string()),
            all_spans=spans,
        )
        if (problem := found.problem()) is not None:
            raise DatasetError(f"{self._path} is damaged: row {first + problem[0]} has {problem[1]}")
        return found

    def _ragged(self, places: np.ndarray) -> Ragged:
        """The bytes at int64 [rows, 2] of the file. Copied: headers and padding may be twenty times as much."""
        found = np.frombuffer(b"".join([self._archive[start:end] for start, end in places.tolist()]), np.uint8)
        ends = np.cumsum(places[:, 1] - places[:, 0])
        return Ragged(found, ends - (places[:, 1] - places[:, 0]), ends)

    def _places(self, first: int, stop: int) -> np.ndarray:
        """int64 [rows, FIELDS, 2]: where the members of rows first .. stop begin and end; -1 of what a row has not."""
        places = np.full((stop - first, len(FIELDS), 2), -1, np.int64)
        known = min(stop, len(self._offsets) - 1)  # the last row of a shard ends where no offset says
        if known <= first or not self._written_here(first, places[: known - first]):
            known = first
        for row in range(known, stop):
            for field, place in self._members(row).items():
                places[row - first, FIELDS.index(field)] = place
        wrong = np.flatnonzero((places[:, _LENGTHS, 1] - places[:, _LENGTHS, 0]) % 2)
        for row in wrong[:1].tolist():
            raise self._damaged(f"the patch lengths of row {first + row} are not whole uint16 values")
        return places

    def _written_here(self, first: int, places: np.ndarray) -> bool:
        """Find the members of rows at once, if all are as `TarWriter` writes them; whether they are.

        ``places``: -1, of as many rows from ``first``, of which each is followed by another row.
        """
        at, ends = self._offsets[first:][: len(places)].copy(), self._offsets[first + 1 :][: len(places)]
        rows = np.arange(len(places))
        keys = ((first + rows)[:, None] // _TENS) % 10 + ord("0")
        for field, rest in enumerate(_NAMES):
            headers = tar.written_here(self._blocks, at[rows] // tar.BLOCK)
            if headers is None:
                return False
            names, sizes = headers
            if not ((names[:, : len(_TENS)] == keys[rows]).all() and (names[:, len(_TENS) :] == rest).all()):
                return False
            places[rows, field, 0] = start = at[rows] + tar.BLOCK
            places[rows, field, 1] = start + sizes
            at[rows] = start + sizes + -sizes % tar.BLOCK
            if (at > ends).any():
                return False
            if field >= _BYTES:
                rows = rows[at[rows] < ends[rows]]
        return not len(rows)

    def _members(self, row: int) -> dict[str, tuple[int, int]]:
        """The byte ranges of one row's members. Raises DatasetError."""
        fields: dict[str, tuple[int, int]] = {}
        following = int(self._offsets[row + 1]) if row + 1 < len(self._offsets) else None
        try:
            for offset, name, start, end in tar.members(self._archive, int(self._offsets[row]), following):
                key, _, field = name.partition(".")
                if key != f"{row:010d}":
                    break
                if field not in FIELDS or field in fields:
                    raise tar.TarError(f"{name!r} at offset {offset} has no place in a shard")
                fields[field] = (start, end)
        except tar.TarError as error:
            raise self._damaged(error) from None
        if not {"json", "bytes"} <= fields.keys():
            raise self._damaged(f"row {row} lacks its .json or .bytes")
        return fields

    def _damaged(self, problem: object) -> DatasetError:
        return DatasetError(f"{self._path} is damaged: {problem}")

    def _record(self, row: int, start: int, end: int) -> dict[str, Any]:
        if end - start > MOST_RECORD_BYTES:
            raise self._damaged(f"the .json of row {row} has {end - start} bytes; at most {MOST_RECORD_BYTES}")
        try:
            return cast(dict[str, Any], _RECORD.validate_json(bytes(self._archive[start:end])))
        except ValidationError as error:
            keys = "id, subset, part, meta"
            raise self._damaged(f"the .json of row {row} does not hold {keys}: {first_problem(error)}") from None
