"""Writing one shard: rows are grouped by subset, and the files appear complete or not at all."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from shared.io.files.atomic import atomic_file
from shared.patching.grid import quantise
from shared.shards.content import ShardContent, check_rows, with_last
from shared.shards.document import PACKED_BYTES, Row
from shared.shards.formats.arrow import ArrowWriter
from shared.shards.formats.sidecar import SidecarWriter, sidecar_name
from shared.shards.formats.webdataset import TarWriter
from shared.shards.index import IndexWriter, index_name
from shared.shards.manifest import ShardEntry, ShardFormat, SidecarType
from shared.shards.rows import BYTES_TOGETHER, ROWS_TOGETHER, Rows, joined, mixed, rows_of
from shared.shards.runs import run_records

BATCH_BYTES = 2**20
"""A record batch holds at most this much text and metadata, unless one row alone holds more. A reader decompresses a
whole batch to get at one document, so larger batches cost it time and memory; smaller ones compress worse."""
BATCH_ROWS = 2**14
"""And at most this many rows, however short: what is held per row would otherwise outweigh the text."""
HELD_BYTES, HELD_ROWS = 64 * BATCH_BYTES, 16 * BATCH_ROWS
"""Of text and metadata, and rows, that the open batches of all subsets hold together at most, but for one document."""
SUFFIXES: dict[ShardFormat, str] = {"arrow": ".arrow", "webdataset": ".tar"}


@dataclass
class _OpenBatch:
    """Rows of one subset that are not written yet."""

    parts: list[Rows] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    """Of text and metadata."""

    def has_room(self, rows: int, size: int, most: int) -> bool:
        """Whether so many rows of so many bytes fit beside those that are there."""
        return not self.rows or (self.bytes + size <= most and self.rows + rows <= BATCH_ROWS)

    def add(self, parts: list[Rows], rows: int, size: int) -> None:
        self.parts += parts
        self.rows += rows
        self.bytes += size


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """One shard with its index and sidecar, written as rows come; the same rows in the same order give the same bytes.

    Rows are grouped by subset: each subset has an open batch, which is written when the next row does not fit. What is
    left in them at the end is packed together in the order of subset names, up to PACKED_BYTES. So the rows of a subset
    in a batch are consecutive, those of a subset keep their order, and the parts of a document follow one another.

    A context: files are written beside their place; when the block ends they are synced and renamed, the shard last,
    and ``entry`` is set; after an error in it no file is left. All rows are patched or none is; a sidecar needs the
    entropies of each. Memory: a record batch for each subset, all together at most HELD_BYTES and HELD_ROWS beside one
    document, and some tens of bytes a row.
    """

    entry: ShardEntry

    def __init__(self, folder: Path, name_stem: str, format: ShardFormat, sidecar: SidecarType = "none") -> None:
        self._name = name_stem + SUFFIXES[format]
        self._folder, self._sidecar = folder, sidecar
        self._content, self._index = ShardContent(), IndexWriter()
        self._open: dict[str, _OpenBatch] = {}
        self._held_rows = self._held_bytes = 0
        self._unfinished: str | None = None
        """The subset whose open batch continues the document that the last written batch ends in."""
        self._arriving: list[tuple[Row, bool]] = []
        self._arriving_bytes = 0
        self._previous: Row | None = None
        self._closed = False
        with ExitStack() as files:
            # Leaving the stack renames in reverse order, so the shard appears when its companions are in place.
            self._shard_file = HashingFile(files.enter_context(atomic_file(folder / self._name)))
            self._index_file = HashingFile(files.enter_context(atomic_file(folder / index_name(self._name))))
            self._shard = ArrowWriter(self._shard_file) if format == "arrow" else TarWriter(self._shard_file)
            self._entropies: SidecarWriter | None = None
            if sidecar == "none":
                (folder / sidecar_name(self._name)).unlink(missing_ok=True)  # of an earlier writing with other settings
            else:
                path = folder / sidecar_name(self._name)
                self._sidecar_file = HashingFile(files.enter_context(atomic_file(path)))
                self._entropies = SidecarWriter(self._sidecar_file, sidecar)
            self._files = files.pop_all()

    def add(self, rows: Rows) -> None:
        """Write some rows; the parts of a document are consecutive.

        Raises ValueError that names the document which cannot be stored.
        """
        if not len(rows):
            return
        check_rows(self._previous, rows)
        self._require_like(rows)
        self._previous = rows.row(len(rows) - 1)
        if rows.entropies is not None and self._sidecar != "float32":
            # On the grid for the histogram of the manifest, whether or not there is a sidecar to store them in.
            rows = replace(rows, entropies=[None if own is None else quantise(own) for own in rows.entropies])
        self._hold(rows)

    def add_row(self, row: Row, last: bool) -> None:
        """Write a row, and say whether its document ends there; what is wrong with it may be raised by a later call."""
        self._arriving.append((row, last))
        self._arriving_bytes += len(row.text)
        if self._arriving_bytes >= BYTES_TOGETHER or len(self._arriving) == ROWS_TOGETHER:
            self._add_arriving()

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is None:
            self.close()
        else:
            self._files.__exit__(*raised)  # `atomic_file` removes the temporary files

    def close(self) -> None:
        """Put the shard in its place, before the block ends; nothing more can be added."""
        if self._closed:
            return
        self._closed = True
        with self._files:
            self._add_arriving()
            self._write_all_open()
            self._shard.close()
            self._index.write(self._index_file)
            if self._entropies is not None:
                self._entropies.close()
        self.entry = ShardEntry(
            name=self._name,
            bytes_on_disk=self._shard_file.size,
            sha256=self._shard_file.sha256,
            index_bytes=self._index_file.size,
            index_sha256=self._index_file.sha256,
            sidecar_bytes=self._sidecar_file.size if self._entropies is not None else None,
            sidecar_sha256=self._sidecar_file.sha256 if self._entropies is not None else None,
            runs=run_records(self._index.index()),
            **self._content.figures(),
        )

    def _add_arriving(self) -> None:
        rows, self._arriving, self._arriving_bytes = self._arriving, [], 0
        self.add(rows_of(rows))

    def _hold(self, rows: Rows) -> None:
        """Put rows into the open batches of their subsets.

        Which batches come first must not depend on what comes together: only rows that fill none are taken at once.
        """
        size = int(rows.stored_sizes.sum())
        own = rows.by(rows.subsets)
        sizes = {subset: int(part.stored_sizes.sum()) for subset, part in own.items()}
        if len(rows) > 1 and not self._fit(own, sizes, len(rows), size):
            half = len(rows) // 2
            self._hold(rows.slice(0, half))
            self._hold(rows.slice(half, len(rows)))
            return
        for subset, part in own.items():
            batch = self._open.setdefault(subset, _OpenBatch())
            if not batch.has_room(len(part), sizes[subset], BATCH_BYTES):  # then it is a single row
                self._write_open(subset)
                if part.parts[0]:
                    self._unfinished = subset
                batch = self._open[subset] = _OpenBatch()
            batch.add([part], len(part), sizes[subset])
        self._held_rows += len(rows)
        self._held_bytes += size
        if rows.last[-1] and (self._held_bytes > HELD_BYTES or self._held_rows > HELD_ROWS):
            self._write_all_open()

    def _fit(self, own: Mapping[str, Rows], sizes: Mapping[str, int], rows: int, size: int) -> bool:
        """Whether rows of these sizes fit in the open batches of their subsets, and all together beside the others."""
        if self._held_bytes + size > HELD_BYTES or self._held_rows + rows > HELD_ROWS:
            return False
        for subset, part in own.items():
            batch = self._open.get(subset, _OpenBatch())
            if batch.bytes + sizes[subset] > BATCH_BYTES or batch.rows + len(part) > BATCH_ROWS:
                return False
        return True

    def _write_all_open(self) -> None:
        """Pack the open batches of all subsets together, in the order of their names; none is divided."""
        self._write_unfinished()
        packed = _OpenBatch()
        for name in sorted(self._open):
            batch = self._open[name]
            if not packed.has_room(batch.rows, batch.bytes, min(PACKED_BYTES, BATCH_BYTES)):
                self._write_batch(packed)
                packed = _OpenBatch()
            packed.add(batch.parts, batch.rows, batch.bytes)
        if packed.rows:
            self._write_batch(packed)
        self._open = {}
        self._held_rows = self._held_bytes = 0

    def _write_open(self, subset: str) -> None:
        """Write the open batch of a subset alone."""
        if self._unfinished != subset:
            self._write_unfinished()
        self._unfinished = None
        batch = self._open.pop(subset)
        self._held_rows -= batch.rows
        self._held_bytes -= batch.bytes
        self._write_batch(batch)

    def _write_unfinished(self) -> None:
        """Before anything of another subset is written: the parts of a document are consecutive."""
        if self._unfinished is not None:
            self._write_open(self._unfinished)

    def _write_batch(self, batch: _OpenBatch) -> None:
        rows = joined(batch.parts)
        self._content.add(rows)
        self._index.add_batch(rows, self._shard.write(rows))
        if self._entropies is not None:
            assert rows.entropies is not None
            self._entropies.write([values for values in rows.entropies if values is not None])

    def _require_like(self, rows: Rows) -> None:
        """Raises ValueError for rows unlike those before, or without the entropies that the sidecar needs."""
        patched = rows.lengths is not None
        if self._previous is not None and patched != (self._previous.patch_lengths is not None):
            raise mixed(rows.ids[0], patched)
        if self._sidecar != "none":
            for id, values in zip(rows.ids, rows.entropies or [None] * len(rows)):
                if values is None:
                    raise ValueError(f"document {id!r} has no entropies to store in the {self._sidecar} sidecar")


def write_shard(
    folder: Path, name_stem: str, rows: Iterable[Row], format: ShardFormat, sidecar: SidecarType = "none"
) -> ShardEntry:
    """Write rows as one shard. Raises ValueError that names the document which cannot be stored."""
    with ShardWriter(folder, name_stem, format, sidecar) as writer:
        for row, last in with_last(rows):
            writer.add_row(row, last)
    return writer.entry


class HashingFile:
    """A file to be written once from front to back, with the size and sha256 of what went through."""

    closed = False  # pyarrow asks

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)  # pyarrow hands over buffers of its own, whose length is not that of bytes
        self._hash.update(view)
        self._file.write(view)
        self.size += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.size

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
