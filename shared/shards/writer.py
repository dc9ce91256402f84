"""Writing one shard: rows are grouped by subset, and the files appear complete or not at all."""

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from shared.io.files import atomic_file
from shared.patching.grid import quantise
from shared.shards.content import ShardContent, check_order, check_row, with_last
from shared.shards.document import Row
from shared.shards.formats.arrow import ArrowWriter
from shared.shards.formats.sidecar import SidecarWriter, sidecar_name
from shared.shards.formats.webdataset import TarWriter
from shared.shards.index import IndexWriter, index_name
from shared.shards.manifest import ShardEntry, ShardFormat, SidecarType

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

    rows: list[tuple[Row, bool]] = field(default_factory=list)
    """Each with whether its document ends there; without entropies that nothing will store."""
    grid_values: list[np.ndarray | None] = field(default_factory=list)
    """Entropies of each as sidecar grid values, uint8."""
    bytes: int = 0
    """Of text and metadata."""

    def has_room(self, rows: int, size: int) -> bool:
        """Whether so many rows of so many bytes fit beside those that are there."""
        return not self.rows or (self.bytes + size <= BATCH_BYTES and len(self.rows) + rows <= BATCH_ROWS)


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """One shard with its index and sidecar, written as rows come; the same rows in the same order give the same bytes.

    Rows are grouped by subset: each subset has an open batch, which is written when the next row does not fit. What is
    left in them at the end is packed together in the order of subset names. So the rows of a subset in a batch are
    consecutive, those of a subset keep their order, and the parts of a document follow one another.

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

    def add(self, row: Row, last: bool) -> None:
        """Write a row, and say whether its document ends there; the parts of a document are consecutive.

        Raises ValueError that names the document which cannot be stored.
        """
        check_order(self._previous, row)
        check_row(row, last)
        self._require_like(self._previous, row)
        self._previous = row
        size = len(row.text) + len(row.meta or "")
        batch = self._open.setdefault(row.subset, _OpenBatch())
        if not batch.has_room(1, size):
            self._write_open(row.subset)
            if row.part:
                self._unfinished = row.subset
            batch = self._open[row.subset] = _OpenBatch()
        # On the grid for the histogram of the manifest, whether or not there is a sidecar to store them in.
        batch.grid_values.append(None if row.entropies is None else quantise(row.entropies))
        if row.entropies is not None and self._sidecar != "float32":
            row = replace(row, entropies=None)
        batch.rows.append((row, last))
        batch.bytes += size
        self._held_rows += 1
        self._held_bytes += size
        if last and (self._held_bytes > HELD_BYTES or self._held_rows > HELD_ROWS):
            self._write_all_open()

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
            self._write_all_open()
            self._shard.close()
            self._index.write(self._index_file)
            if self._entropies is not None:
                self._entropies.close()
        self.entry = ShardEntry(
            name=self._name,
            bytes_on_disk=self._shard_file.size,
            sha256=self._shard_file.sha256,
            index_sha256=self._index_file.sha256,
            sidecar_sha256=self._sidecar_file.sha256 if self._entropies is not None else None,
            **self._content.figures(),
        )

    def _write_all_open(self) -> None:
        """Pack the open batches of all subsets together, in the order of their names; none is divided."""
        self._write_unfinished()
        packed = _OpenBatch()
        for name in sorted(self._open):
            batch = self._open[name]
            if not packed.has_room(len(batch.rows), batch.bytes):
                self._write_batch(packed)
                packed = _OpenBatch()
            packed.rows += batch.rows
            packed.grid_values += batch.grid_values
            packed.bytes += batch.bytes
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
        self._held_rows -= len(batch.rows)
        self._held_bytes -= batch.bytes
        self._write_batch(batch)

    def _write_unfinished(self) -> None:
        """Before anything of another subset is written: the parts of a document are consecutive."""
        if self._unfinished is not None:
            self._write_open(self._unfinished)

    def _write_batch(self, batch: _OpenBatch) -> None:
        for (row, last), values in zip(batch.rows, batch.grid_values):
            self._content.add(row, last, values)
        self._index.add_batch(batch.rows, self._shard.write([row for row, _ in batch.rows]))
        if self._entropies is not None:
            self._entropies.write(_stored(batch, self._sidecar))

    def _require_like(self, previous: Row | None, row: Row) -> None:
        """Raises ValueError for a row unlike the one before, or without the entropies that the sidecar needs."""
        patched = row.patch_lengths is not None
        if previous is not None and patched != (previous.patch_lengths is not None):
            raise ValueError(
                f"document {row.id!r} is {'patched' if patched else 'unpatched'}, those before it in the shard are not"
            )
        if self._sidecar != "none" and row.entropies is None:
            raise ValueError(f"document {row.id!r} has no entropies to store in the {self._sidecar} sidecar")


def write_shard(
    folder: Path, name_stem: str, rows: Iterable[Row], format: ShardFormat, sidecar: SidecarType = "none"
) -> ShardEntry:
    """Write rows as one shard. Raises ValueError that names the document which cannot be stored."""
    with ShardWriter(folder, name_stem, format, sidecar) as writer:
        for row, last in with_last(rows):
            writer.add(row, last)
    return writer.entry


def _stored(batch: _OpenBatch, sidecar: SidecarType) -> list[np.ndarray]:
    """What the sidecar holds for each row of a batch."""
    values = batch.grid_values if sidecar == "uint8" else [row.entropies for row, _ in batch.rows]
    return [value for value in values if value is not None]


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
