"""A file that is one document, byte for byte: no encoding is asked for."""

from collections.abc import Iterator

from pipeline.plan import SourceFile
from pipeline.read.jsonl import DEFAULT_SUBSET
from pipeline.read.streams import CHUNK, DamagedStream, chunks
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings


def whole_file(file: SourceFile, reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """The one record of a text file."""
    place = Place(file.path)
    content = bytearray()
    try:
        for chunk in chunks(file.full_path, file.compression):
            content += chunk
            if len(content) > LONGEST_RECORD + CHUNK:
                break
    except DamagedStream as damage:
        yield dead_letter(Place(file.path, offset=len(content)), str(damage), bytes(content))
        return
    if len(content) > LONGEST_RECORD:
        reason = f"longer than a record may be ({LONGEST_RECORD} bytes); this hash is of its beginning"
        yield dead_letter(place, reason, bytes(content))
        return
    yield Record(place, file.path, DEFAULT_SUBSET, bytes(content), size=len(content))
