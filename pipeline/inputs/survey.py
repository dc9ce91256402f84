"""One file looked at before any work: its identity, and the pieces that it can be cut into."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.inputs.finding import Found
from pipeline.plan import PIECES_OF_COMPRESSED, Piece, SourceFile, byte_pieces, row_pieces
from pipeline.read.checked import LineChecks, range_digest
from pipeline.read.formats.arrow_ipc import batch_ranges, batch_sizes
from pipeline.read.formats.parquet import row_group_ranges, row_group_sizes
from pipeline.read.storage import DATA_ERRORS, reason_in
from pipeline.read.streams import DamagedStream, chunks
from pipeline.settings import PipelineError, ReadSettings
from shared.io.identity import file_sha256
from shared.io.storage import is_url
from shared.io.transient_errors import retried

MOST_TABLE_BYTES = 2**50
"""That the batches or row groups of a file may say that they hold; of more their sizes are not believed."""


def survey_file(found: Found, cut_bytes: int, reading: ReadSettings) -> SourceFile:
    """The file as the plan holds it. Bad content is no matter here: reading meets it again and says so.

    Raises PipelineError for a file that the system cannot read.
    """
    file = SourceFile(
        root=found.root,
        path=found.path,
        kind=found.format.kind,
        compression=found.format.compression,
        **vars(found.stamp),
        sha256="",
        pieces=(),
        cut_bytes=cut_bytes,
        split=found.split,
        query=found.query,
    )
    try:
        if is_url(file.full_path):
            return replace(file, pieces=retried(lambda: _pieces(file, reading)))
        if file.kind == "jsonl" and file.compression == "none" and file.size:
            return _with_lines(file)
        return replace(file, sha256=file_sha256(Path(file.full_path)), pieces=_pieces(file, reading))
    except OSError as error:
        raise PipelineError(f"{file.shown} cannot be read: {error.strerror or error}") from None


def _whole(file: SourceFile) -> tuple[Piece, ...]:
    return (Piece(begin=0, end=file.size, bytes=file.size),)


def _pieces(file: SourceFile, reading: ReadSettings) -> tuple[Piece, ...]:
    """Those of a file, unless it is a local one of plain lines."""
    remote = is_url(file.full_path)
    if file.size == 0 or (remote and file.compression != "none"):
        return _whole(file)
    if file.kind == "jsonl":
        return byte_pieces(file.size, file.cut_bytes, None) if remote else _compressed_pieces(file, reading)
    if file.kind != "parquet" and (remote or file.kind != "arrow"):
        return _whole(file)
    pieces = _table_pieces(file, reading)
    if remote or len(pieces) == 1:
        return pieces
    ranges = (row_group_ranges if file.kind == "parquet" else batch_ranges)(file.full_path)
    return _with_checks(
        pieces, lambda number: range_digest(file.full_path, ranges(pieces[number].begin, pieces[number].end))
    )


def _table_pieces(file: SourceFile, reading: ReadSettings) -> tuple[Piece, ...]:
    try:
        parquet = file.kind == "parquet"
        sizes = row_group_sizes(file.full_path, reading.text_column) if parquet else batch_sizes(file.full_path)
    except DATA_ERRORS as error:
        reason_in(error)  # raises what the system says of a disk
        return _whole(file)
    if not 0 <= min(sizes, default=0) <= sum(sizes) <= MOST_TABLE_BYTES:
        return _whole(file)  # reading meets what is wrong with it and says so
    return row_pieces(sizes, range(len(sizes)), file.cut_bytes) or _whole(file)


def _with_checks(pieces: Sequence[Piece], check: Callable[[int], str]) -> tuple[Piece, ...]:
    return tuple(replace(piece, check=check(number)) for number, piece in enumerate(pieces))


def _compressed_pieces(file: SourceFile, reading: ReadSettings) -> tuple[Piece, ...]:
    content = chunks(file.full_path, file.compression, 0, reading.max_ratio, reading.max_window)
    total, newlines = count_lines(content, file.cut_bytes)
    step = -(-total // (file.cut_bytes * PIECES_OF_COMPRESSED)) or 1
    return byte_pieces(total, file.cut_bytes * step, newlines[step - 1 :: step])


def _with_lines(file: SourceFile) -> SourceFile:
    """A plain file of lines with what one pass over it tells."""
    state, checks = hashlib.sha256(), LineChecks(file.cut_bytes)

    def hashed() -> Iterator[bytes]:
        for chunk in chunks(file.full_path, "none"):
            state.update(chunk)
            checks.add(chunk)
            yield chunk

    size, newlines = count_lines(hashed(), file.cut_bytes)
    pieces = byte_pieces(size, file.cut_bytes, newlines)
    checks.close()
    if len(pieces) > 1:
        pieces = _with_checks(pieces, checks.checks.__getitem__)
    return replace(file, sha256=state.hexdigest(), pieces=pieces)


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
