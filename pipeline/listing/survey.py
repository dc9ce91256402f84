"""One file looked at before any work: its identity, and the pieces that it can be cut into."""

import hashlib
from collections.abc import Iterator

from pipeline.listing.finding import Found
from pipeline.listing.formats import format_of
from pipeline.plan import PIECES_OF_COMPRESSED, Piece, SourceFile, byte_pieces, row_pieces
from pipeline.read.arrow_ipc import batch_sizes
from pipeline.read.parquet import row_group_sizes
from pipeline.read.storage import DATA_ERRORS, reason_in
from pipeline.read.streams import Compression, DamagedStream, chunks
from pipeline.settings import PipelineError, ReadSettings
from shared.storage import is_url, open_binary


def survey_file(found: Found, cut_bytes: int, reading: ReadSettings) -> SourceFile:
    """The file as the plan holds it. Bad content is no matter here: reading meets it again and says so.

    Raises PipelineError for a file that the system cannot read.
    """
    form = format_of(found.path)
    assert form is not None, "files without a format are not found"
    file = SourceFile(
        root=found.root,
        path=found.path,
        kind=form.kind,
        compression=form.compression,
        size=found.stamp.size,
        mtime_ns=found.stamp.mtime_ns,
        version=found.stamp.version,
        sha256="",
        pieces=(),
        cut_bytes=cut_bytes,
        split=found.split,
    )
    try:
        sha256 = "" if is_url(file.full_path) else _sha256(file.full_path)
        return file.model_copy(update={"sha256": sha256, "pieces": _pieces(file, reading)})
    except OSError as error:
        raise PipelineError(f"{file.full_path} cannot be read: {error.strerror or error}") from None


def _sha256(location: str) -> str:
    with open_binary(location) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _pieces(file: SourceFile, reading: ReadSettings) -> tuple[Piece, ...]:
    whole = (Piece(begin=0, end=file.size, bytes=file.size),)
    remote = is_url(file.full_path)
    if file.size == 0 or (remote and file.compression != "none"):
        return whole
    if file.kind == "jsonl":
        if remote:
            return byte_pieces(file.size, file.cut_bytes, None)
        return _line_pieces(file.full_path, file.compression, file.cut_bytes, reading.max_ratio)
    if file.kind == "parquet" or (file.kind == "arrow" and not remote):
        try:
            parquet = file.kind == "parquet"
            sizes = row_group_sizes(file.full_path, reading.text_column) if parquet else batch_sizes(file.full_path)
        except DATA_ERRORS as error:
            reason_in(error)  # raises what the system says of a disk
            return whole
        return row_pieces(sizes, range(len(sizes)), file.cut_bytes) or whole
    return whole


def _line_pieces(location: str, compression: Compression, cut_bytes: int, max_ratio: int) -> tuple[Piece, ...]:
    total, newlines = count_lines(chunks(location, compression, max_ratio=max_ratio), cut_bytes)
    distance = cut_bytes
    if compression != "none":
        distance *= -(-total // (cut_bytes * PIECES_OF_COMPRESSED)) or 1
    step = distance // cut_bytes
    return byte_pieces(total, distance, newlines[step - 1 :: step])


def count_lines(content: Iterator[bytes], cut_bytes: int) -> tuple[int, list[int]]:
    """Bytes of the content, and newlines before each multiple of ``cut_bytes`` that it reaches."""
    total, count, newlines = 0, 0, []
    try:
        for chunk in content:
            at = 0
            while (room := cut_bytes - total % cut_bytes) <= len(chunk) - at:
                count += chunk.count(b"\n", at, at + room)
                newlines.append(count)
                total, at = total + room, at + room
            count += chunk.count(b"\n", at)
            total += len(chunk) - at
    except DamagedStream:
        pass  # reading meets it again and says so
    return total, newlines
