"""Named values to a record: what every format with columns has in common. Pure."""

import base64
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from pipeline.read.chat import COLUMNS, chat_of
from pipeline.read.values import BadRecord, encoded, kind
from pipeline.records import Place, Record
from pipeline.settings import ReadSettings
from shared.identity import canonical_json
from shared.shards.spans import Spans

SUBSET_COLUMNS = ("subset", "lang", "language", "source")
"""Looked for in this order when no column is named; the first that holds a name is taken."""
DEFAULT_SUBSET = "default"


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

    ``otherwise`` is its id if it brings none; ``size`` its bytes in the input. Raises BadRecord with the reason.
    """
    subset, subset_column = _subset(place, values, reading)
    used = {*body_columns(reading), reading.id_column, subset_column}
    return Record(
        place=place,
        id=_id(values.get(reading.id_column), reading.id_column) or otherwise,
        subset=subset,
        text=body[0],
        spans=body[1],
        key=None if reading.split_key is None else _key(values.get(reading.split_key)),
        meta=_meta({k: v for k, v in values.items() if k not in used}) if reading.meta else None,
        size=size,
    )


def body_of(values: Mapping[str, Any], reading: ReadSettings) -> tuple[bytes, Spans | None]:
    """The text among the columns, and the spans of a chat. Raises BadRecord."""
    if reading.chat is not None:
        return chat_of(values, reading.chat)
    if reading.text_column not in values:
        raise BadRecord(f"no column {reading.text_column!r}")
    return _encoded(reading.text_column, values[reading.text_column]), None


def body_columns(reading: ReadSettings) -> tuple[str, ...]:
    """Columns that the body may be in."""
    return (reading.text_column,) if reading.chat is None else COLUMNS


def _encoded(column: str, value: Any) -> bytes:
    return encoded(f"column {column!r}", value)


def _id(value: Any, column: str) -> str:
    """The id as text; empty when there is none."""
    if isinstance(value, str | bytes):
        return _encoded(column, value).decode()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _subset(place: Place, values: Mapping[str, Any], reading: ReadSettings) -> tuple[str, str | None]:
    """The record's subset, and the column that it comes from."""
    if (named := named_subset(place.path, reading)) is not None:
        return named, None
    if reading.subset_column is None:
        for column in SUBSET_COLUMNS:
            taken = column in (*body_columns(reading), reading.id_column)
            if not taken and isinstance(values.get(column), str) and values[column]:
                return _name(column, values[column]), column
        return DEFAULT_SUBSET, None
    value = values.get(reading.subset_column)
    if value is None or value == "":
        return DEFAULT_SUBSET, reading.subset_column
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), reading.subset_column
    return _name(reading.subset_column, value), reading.subset_column


def _name(column: str, value: Any) -> str:
    name = _encoded(column, value).decode()
    if "\0" in name:
        raise BadRecord(f"column {column!r} has a NUL, and names a subset")
    return name


def _key(value: Any) -> bytes | None:
    """What the validation split is decided by: a string's own bytes, other values as canonical JSON."""
    if value is None:
        return None
    try:
        return (value if isinstance(value, str) else canonical_json(_plain(value))).encode()
    except ValueError as error:
        raise BadRecord(f"the split key cannot be encoded: {error}") from None


def _meta(values: dict[str, Any]) -> str | None:
    if not values:
        return None
    try:
        text = canonical_json(_plain(values))
        text.encode()
    except ValueError as error:
        raise BadRecord(f"the other columns cannot be passed through: {error}") from None
    return text


def _plain(value: Any) -> Any:
    """A value in the types of JSON: times in ISO 8601, decimals as text, bytes as text or base64."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    raise BadRecord(f"a value of the type {kind(value)} cannot be passed through")


def without_nan(value: Any) -> Any:
    """A missing number as null: tables know it as NaN, JSON does not."""
    return None if isinstance(value, float) and math.isnan(value) else value
