"""Writing one shard: rows pass through, and the files appear complete or not at all."""

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
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
SUFFIXES: dict[ShardFormat, str] = {"arrow": ".arrow", "webdataset": ".tar"}


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """One shard with its index and sidecar, written as rows come; the same rows give the same bytes.

    A context: files are written beside their place; when the block ends they are synced and renamed, the shard last,
    and ``entry`` is set; after an error in it no file is left. All rows are patched or none is; a sidecar needs the
    entropies of each. Memory: one record batch and some tens of bytes a row.
    """

    entry: ShardEntry

    def __init__(self, folder: Path, name_stem: str, format: ShardFormat, sidecar: SidecarType = "none") -> None:
        self._name = name_stem + SUFFIXES[format]
        self._folder, self._sidecar = folder, sidecar
        self._content, self._index = ShardContent(), IndexWriter()
        self._batch: list[tuple[Row, bool]] = []
        self._batch_bytes = 0
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
        if self._batch and (self._batch_bytes + size > BATCH_BYTES or len(self._batch) == BATCH_ROWS):
            self._write_batch()
        self._batch.append((row, last))
        self._batch_bytes += size

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
            if self._batch:
                self._write_batch()
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

    def _write_batch(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        # On the grid for the histogram of the manifest, whether or not there is a sidecar to store them in.
        grid_values = [None if row.entropies is None else quantise(row.entropies) for row, _ in batch]
        for (row, last), values in zip(batch, grid_values):
            self._content.add(row, last, values)
        self._index.add_batch(batch, self._shard.write([row for row, _ in batch]))
        if self._entropies is not None:
            self._entropies.write(_stored(batch, grid_values, self._sidecar))

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


def _stored(
    batch: list[tuple[Row, bool]], grid_values: list[np.ndarray | None], sidecar: SidecarType
) -> list[np.ndarray]:
    """What the sidecar holds for each row of a batch."""
    values = grid_values if sidecar == "uint8" else [row.entropies for row, _ in batch]
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
