"""WebDataset archives: consecutive members with one key are a sample; its text member is the document.

Members are bytes: none is unpickled, and no name is used as a path.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.files import SourceFile
from pipeline.read.columns import body_of, record_of
from pipeline.read.formats.jsonl import json_object
from pipeline.read.formats.tar import members
from pipeline.read.forward import Forward
from pipeline.read.streams import DamagedStream
from pipeline.read.values import BadRecord
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings

TEXT_MEMBERS = ("txt", "text", "bytes")
"""Extensions that hold the text, unless --text-column names one; the first that a sample has is taken."""
JSON_MEMBER = "json"
_SHOWN = 8


@dataclass(slots=True)
class _Sample:
    key: str
    offset: int
    row: int
    extensions: list[str] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None


def read_webdataset(file: SourceFile, content: Iterator[bytes], reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """The samples of an archive, in order. What follows damage is lost, and said to be."""
    stream = Forward(content)
    wanted = (JSON_MEMBER, *_text_members(reading))
    sample: _Sample | None = None
    row = 0
    try:
        for member in members(stream):
            key, extension = _key(member.name)
            if sample is None or key != sample.key:
                if sample is not None:
                    yield _finished(file.path, sample, reading)
                    row += 1
                sample = _Sample(key, member.offset, row)
            if extension in sample.extensions:
                sample.problem = f"two members .{extension} in one sample"
            sample.extensions.append(extension)
            if member.other is not None and (extension in wanted or not extension):
                sample.problem = f"{member.name!r} is {member.other}: it has no content of its own to read"
            if extension not in wanted or member.other is not None:
                continue
            if member.size > LONGEST_RECORD:
                sample.problem = f".{extension} has {member.size} bytes; a record has at most {LONGEST_RECORD}"
                continue
            sample.content[extension] = stream.read(member.size)
            if len(sample.content[extension]) < member.size:
                cut = sample.content.pop(extension)
                raise _CutMember(stream.damage or f"the tar ends inside {member.name!r}", cut)
    except DamagedStream as damage:
        held = damage.held if isinstance(damage, _CutMember) else None
        if held is None and sample is not None and any(name in sample.content for name in _text_members(reading)):
            yield _finished(file.path, sample, reading)
            sample, row = None, row + 1
        place = Place(file.path, offset=stream.offset, row=row, member=sample.key if sample else None)
        yield dead_letter(place, f"{damage}; samples from here on are lost", held or b"")
        return
    if sample is not None:
        yield _finished(file.path, sample, reading)


class _CutMember(DamagedStream):
    """The data ends inside a member of which something is held."""

    def __init__(self, reason: str, held: bytes) -> None:
        super().__init__(reason)
        self.held = held


def _text_members(reading: ReadSettings) -> tuple[str, ...]:
    named = reading.text_column
    return TEXT_MEMBERS if named == ReadSettings().text_column else (named.removeprefix("."),)


def _key(name: str) -> tuple[str, str]:
    """Key and extension: a name is cut at the first dot of its last part, as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _finished(path: str, sample: _Sample, reading: ReadSettings) -> Record | DeadLetter:
    """What a whole sample comes to."""
    place = Place(path, offset=sample.offset, row=sample.row, member=sample.key)
    extension = next((name for name in _text_members(reading) if name in sample.content), None)
    text = sample.content[extension] if extension is not None and reading.chat is None else None
    described = sample.content.get(JSON_MEMBER)
    try:
        if sample.problem is not None:
            raise BadRecord(sample.problem)
        values = {} if described is None else json_object(described, f"{sample.key}.json")
        if text is None and reading.chat is None and reading.text_column not in values:
            has = ", ".join(f".{name}" for name in sample.extensions[:_SHOWN])
            raise BadRecord(f"no member .{' or .'.join(_text_members(reading))} in the sample; it has {has}")
        body = body_of(values, reading) if text is None else (text, None)
        otherwise = f"{path}:{sample.key}"
        return record_of(place, values, body, reading, otherwise, sum(map(len, sample.content.values())))
    except BadRecord as bad:
        return dead_letter(place, str(bad), text if text is not None else described or b"")
