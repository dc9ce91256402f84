"""A file that is one document, byte for byte: no encoding is asked for."""

import hashlib
from collections.abc import Callable, Iterator

from pipeline.files import SourceFile
from pipeline.read.columns import text_record
from pipeline.read.streams import DamagedStream
from pipeline.records import LONGEST_EXCERPT, LONGEST_HELD, DeadLetter, LongText, Place, Record, Text
from pipeline.settings import PipelineError, ReadSettings


def whole_file(
    file: SourceFile, content: Callable[[], Iterator[bytes]], reading: ReadSettings
) -> Iterator[Record | DeadLetter]:
    """The one record of a text file. It is read once to see that it is sound; a long one is not held.

    ``content`` gives the file's content, each time from its beginning.
    """
    digest, size, held = hashlib.sha256(), 0, bytearray()
    try:
        for chunk in content():
            digest.update(chunk)
            size += len(chunk)
            if size <= LONGEST_HELD:
                held += chunk
            else:
                del held[LONGEST_EXCERPT:]
    except DamagedStream as damage:
        place = Place(file.path, offset=size)
        yield DeadLetter(place, str(damage), size, digest.hexdigest(), bytes(held[:LONGEST_EXCERPT]))
        return
    text: Text = bytes(held)
    if size > LONGEST_HELD:
        text = LongText(size, digest.digest(), lambda: _same(content, size, digest.digest(), file.shown))
    yield text_record(file.path, text, reading)


def _same(content: Callable[[], Iterator[bytes]], size: int, sha256: bytes, path: str) -> Iterator[bytes]:
    """The content once more. Raises PipelineError, before its last chunk, when it is not what it was before."""
    digest, read = hashlib.sha256(), 0
    try:
        for chunk in content():
            digest.update(chunk)
            read += len(chunk)
            if read > size or (read == size and digest.digest() != sha256):
                raise PipelineError(f"{path} changed while it was read")
            yield chunk
    except DamagedStream as damage:
        raise PipelineError(f"{path} changed while it was read: {damage}") from None
    if read < size:
        raise PipelineError(f"{path} changed while it was read")
