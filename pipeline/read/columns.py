"""Named values to a record: what every format with columns has in common. Pure."""

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from pipeline.read.chat import COLUMNS, chat_of
from pipeline.read.values import BadRecord, encoded
from pipeline.records import Option, Place, Record, Records, Text
from pipeline.settings import ReadSettings
from shared.io.files.digests import canonical_json, in_short
from shared.shards.document import DEFAULT_SUBSET
from shared.shards.spans import Spans

SUBSET_COLUMNS = ("subset", "lang", "language", "source")
"""Looked for in this order when no column is named; the first that holds a name is taken."""
_SHOWN, _LONGEST_SHOWN = 12, 60


def named_subset(path: str, reading: ReadSettings) -> str | None:
    """The subset that an option gives a file whatever its columns say; None if columns decide."""
    if reading.subset is not None:
        return reading.subset
    if reading.subset_from == "directory":
        folder, slash, _ = path.partition("/")
        return folder if slash else DEFAULT_SUBSET
    return None


def wanted_columns(names: list[str], path: str, reading: ReadSettings) -> list[str]:
    """Those of a file's columns that its records are made of."""
    if reading.meta:
        return names
    wanted = {*body_columns(reading), reading.id_column, reading.split_key}
    if named_subset(path, reading) is None:
        wanted |= {reading.subset_column} if reading.subset_column else set(SUBSET_COLUMNS)
    return [name for name in names if name in wanted]


def record_of(
    place: Place,
    values: Mapping[str, Any],
    body: tuple[bytes, Spans | None],
    reading: ReadSettings,
    otherwise: str,
    size: int,
) -> Record:
    """The record with these columns (with or without that of the text), this text and its spans.

    ``otherwise`` is its id if it brings none; ``size`` its bytes in the input. No column but that of the text can cost
    the record: what has no form in a name or in JSON is replaced, and counted.
    """
    passing = _Passing()
    subset, subset_column = _subset(place, values, reading, passing)
    used = {*body_columns(reading), reading.id_column, subset_column}
    return Record(
        place=place,
        id=_id(values.get(reading.id_column), passing) or otherwise,
        subset=subset,
        text=body[0],
        spans=body[1],
        key=None if reading.split_key is None else _key(values.get(reading.split_key), passing),
        meta=_meta({k: v for k, v in values.items() if k not in used}, passing) if reading.meta else None,
        size=size,
        lacks=lacking(values, reading),
        replaced=passing.replaced,
    )


def records_in(
    path: str,
    place: Callable[[int], Place],
    column: Callable[[str], Sequence[Any]],
    row: Callable[[int], Mapping[str, Any]],
    texts: Sequence[bytes],
    reading: ReadSettings,
    otherwise: Callable[[int], str],
    sizes: Sequence[int],
) -> Records:
    """The records of plain text of some rows of one file, as `record_of` makes each.

    ``column`` gives the values of a column (None where it is not there), ``row`` all values of a row.
    """
    columns = dict(_named_columns(reading))
    ids = _names(column(reading.id_column))
    if ids is None and "id" not in columns and all(value is None for value in column(reading.id_column)):
        ids = [""] * len(texts)
    subsets = _subsets(path, column, reading)
    keys = None if reading.split_key is None else column(reading.split_key)
    if ids is None or subsets is None or reading.meta or not all(isinstance(key, str) for key in keys or ()):
        # Values that are not plain names, or others besides: each record is looked at by itself.
        return Records.of(
            [
                record_of(place(n), row(n), (text, None), reading, otherwise(n), size)
                for n, (text, size) in enumerate(zip(texts, sizes))
            ]
        )
    return Records(
        place,
        [id or otherwise(number) for number, id in enumerate(ids)],
        subsets,
        texts,
        sizes,
        keys=None if keys is None else [key.encode("utf-8", "surrogatepass") for key in keys],
    )


def _names(values: Sequence[Any]) -> Sequence[str] | None:
    """Values that are names as they are; None unless all are."""
    if not all(isinstance(value, str) and value for value in values):
        return None
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return None
    return values


def _subsets(path: str, column: Callable[[str], Sequence[Any]], reading: ReadSettings) -> Sequence[str] | None:
    """The subsets of rows of which all or none has a plain name in each column that is looked at; None for others."""
    if (named := named_subset(path, reading)) is not None:
        return [named] * len(column(reading.id_column))
    given = reading.subset_column
    for name in SUBSET_COLUMNS if given is None else (given,):
        values = column(name)
        taken = name in (*body_columns(reading), reading.id_column)
        if given is None and (taken or all(value is None for value in values)):
            continue
        names = _names(values)
        return None if names is None or any("\0" in one for one in set(names)) else names
    return [DEFAULT_SUBSET] * len(column(reading.id_column))


def text_record(path: str, text: Text, reading: ReadSettings, offset: int | None = None) -> Record:
    """The record of a text without columns: a file, or what begins at an offset of one."""
    name, subset = path if offset is None else f"{path}:@{offset}", named_subset(path, reading) or DEFAULT_SUBSET
    return Record(Place(path, offset=offset), name, subset, text, size=len(text), lacks=lacking({}, reading))


def lacking(values: Mapping[str, Any], reading: ReadSettings) -> tuple[Option, ...]:
    """The options that name a column which a record does not have, or has null."""
    return tuple(option for option, column in _named_columns(reading) if values.get(column) is None)


@lru_cache(maxsize=4)
def _named_columns(reading: ReadSettings) -> tuple[tuple[Option, str], ...]:
    """Columns that options other than that of the text name."""
    default = ReadSettings().id_column
    columns: dict[Option, str | None] = {
        "id": reading.id_column if reading.id_column != default else None,
        "subset": reading.subset_column,
        "key": reading.split_key,
    }
    return tuple((option, column) for option, column in columns.items() if column is not None)


def body_of(values: Mapping[str, Any], reading: ReadSettings) -> tuple[bytes, Spans | None]:
    """The text among the columns, and the spans of a chat. Raises BadRecord."""
    if reading.chat is not None:
        return chat_of(values, reading.chat)
    if reading.text_column not in values:
        raise BadRecord(no_column(reading.text_column, values))
    return encoded(f"column {reading.text_column!r}", values[reading.text_column]), None


def no_column(name: str, there: Iterable[str]) -> str:
    """Why there is no text, with the columns that there are: their names have any length, and may be no UTF-8."""
    names = [column[:_LONGEST_SHOWN].encode("utf-8", "backslashreplace").decode() for column in there]
    return f"no column {name!r}; it has {in_short(names, ', ', _SHOWN) or 'none'}"


def body_columns(reading: ReadSettings) -> tuple[str, ...]:
    """Columns that the body may be in."""
    return (reading.text_column,) if reading.chat is None else COLUMNS


class _Passing:
    """Values on their way into names and JSON, which may have no form for them: that never costs the text."""

    def __init__(self) -> None:
        self.replaced = 0

    def text(self, value: Any) -> str:
        """A value as a name: what is no UTF-8 with escapes, lists and objects as JSON, nothing as nothing."""
        if isinstance(value, str | bytes):
            try:
                return value.decode() if isinstance(value, bytes) else value.encode().decode()
            except UnicodeError:
                self.replaced += 1
                data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
                return data.decode("utf-8", "backslashreplace")
        plain = self.plain(value)
        if plain is None:
            return ""
        return plain if isinstance(plain, str) else canonical_json(plain)

    def plain(self, value: Any) -> Any:
        """A value in the types of JSON: times in ISO 8601, decimals as text, bytes as text or base64.

        Raises ValueError or RecursionError for what is too deep.
        """
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else self._no_number(value)
        if isinstance(value, Mapping):
            return {str(key): self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item) for item in value]
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                return base64.b64encode(value).decode()
        if isinstance(value, datetime | date | time):
            return value.isoformat()
        if isinstance(value, Decimal | timedelta | UUID):
            return str(value)
        self.replaced += 1
        return None

    def _no_number(self, value: float) -> str | None:
        """Infinity by its name; null for NaN, which is how tables write a missing number."""
        self.replaced += 1
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _id(value: Any, passing: _Passing) -> str:
    """The id as text; empty when there is none."""
    if isinstance(value, bool | list | dict):
        return ""
    return _named(value, passing)


def _named(value: Any, passing: _Passing) -> str:
    try:
        return passing.text(value)
    except (ValueError, RecursionError):
        passing.replaced += 1
        return ""


def _subset(
    place: Place, values: Mapping[str, Any], reading: ReadSettings, passing: _Passing
) -> tuple[str, str | None]:
    """The record's subset, and the column that it comes from."""
    if (named := named_subset(place.path, reading)) is not None:
        return named, None
    if reading.subset_column is not None:
        name = _named(values.get(reading.subset_column), passing)
        return name.replace("\0", "\\0") or DEFAULT_SUBSET, reading.subset_column
    for column in SUBSET_COLUMNS:
        taken = column in (*body_columns(reading), reading.id_column)
        if not taken and isinstance(values.get(column), str) and values[column]:
            return _named(values[column], passing).replace("\0", "\\0"), column
    return DEFAULT_SUBSET, None


def _key(value: Any, passing: _Passing) -> bytes | None:
    """What the validation split is decided by: a string's own bytes, other values as canonical JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    try:
        return canonical_json(passing.plain(value)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        passing.replaced += 1
        return None


def _meta(values: dict[str, Any], passing: _Passing) -> str | None:
    if not values:
        return None
    before = passing.replaced
    try:
        text = canonical_json(passing.plain(values))
        text.encode()
        return text
    except (ValueError, RecursionError):
        passing.replaced = before
    return canonical_json({_named(key, passing): _alone(value, passing) for key, value in values.items()})


def _alone(value: Any, passing: _Passing) -> Any:
    """A value among others of which one has no form in JSON: null for that one, escapes in a text."""
    if isinstance(value, str):
        return passing.text(value)
    try:
        plain = passing.plain(value)
        canonical_json(plain).encode()
        return plain
    except (ValueError, RecursionError):
        passing.replaced += 1
        return None


def without_nan(value: Any) -> Any:
    """A missing number as null: tables know it as NaN, JSON does not."""
    return None if isinstance(value, float) and math.isnan(value) else value
