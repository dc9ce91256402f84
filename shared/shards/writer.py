"""Writing one shard: rows stream through, and the files appear complete or not at all."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from shared.files import atomic_file
from shared.patching.grid import quantise
from shared.shards.arrow import ArrowWriter
from shared.shards.content import ShardContent, with_last
from shared.shards.document import Row
from shared.shards.index import IndexWriter, index_name
from shared.shards.manifest import ShardEntry, ShardFormat, SidecarType
from shared.shards.sidecar import SidecarWriter, sidecar_name
from shared.shards.webdataset import TarWriter

BATCH_BYTES = 2**20
"""A record batch holds at most this much text and metadata, unless one row alone holds more."""
BATCH_ROWS = 2**14
"""And at most this many rows, however short."""
SUFFIXES: dict[ShardFormat, str] = {"arrow": ".arrow", "webdataset": ".tar"}


def write_shard(
    folder: Path, name_stem: str, rows: Iterable[Row], format: ShardFormat, sidecar: SidecarType = "none"
) -> ShardEntry:
    """Write rows as one shard with its index and sidecar; the same rows give the same bytes.

    Files are written beside their place, synced and renamed, the shard last. Documents in parts must be whole and
    consecutive. All rows are patched or none is; a sidecar needs the entropies of each.

    Raises ValueError that names the document which cannot be stored; then no file is left.
    """
    name = name_stem + SUFFIXES[format]
    content, index = ShardContent(), IndexWriter()
    with ExitStack() as files:
        # Leaving the stack renames in reverse order, so the shard appears when its companions are in place.
        shard_file = HashingFile(files.enter_context(atomic_file(folder / name)))
        index_file = HashingFile(files.enter_context(atomic_file(folder / index_name(name))))
        shard = ArrowWriter(shard_file) if format == "arrow" else TarWriter(shard_file)
        entropies = sidecar_file = None
        if sidecar == "none":
            (folder / sidecar_name(name)).unlink(missing_ok=True)  # of an earlier writing with other settings
        else:
            sidecar_file = HashingFile(files.enter_context(atomic_file(folder / sidecar_name(name))))
            entropies = SidecarWriter(sidecar_file, sidecar)
        patched: bool | None = None
        for batch in batches(with_last(rows)):
            grid_values = []
            for row, last in batch:
                patched = _consistent(row, patched, sidecar)
                grid_values.append(None if row.entropies is None else quantise(row.entropies))
                content.add(row, last, grid_values[-1])
            index.add_batch(batch, shard.write([row for row, _ in batch]))
            if entropies is not None:
                entropies.write(_stored(batch, grid_values, sidecar))
        shard.close()
        index.write(index_file)
        if entropies is not None:
            entropies.close()
    return ShardEntry(
        name=name,
        bytes_on_disk=shard_file.size,
        sha256=shard_file.sha256,
        index_sha256=index_file.sha256,
        sidecar_sha256=sidecar_file.sha256 if sidecar_file is not None else None,
        **content.figures(),
    )


def batches(rows: Iterable[tuple[Row, bool]]) -> Iterator[list[tuple[Row, bool]]]:
    """Group rows into record batches by their size: the same groups in every format."""
    batch: list[tuple[Row, bool]] = []
    held = 0
    for row, last in rows:
        size = len(row.text) + len(row.meta or "")
        if batch and (held + size > BATCH_BYTES or len(batch) == BATCH_ROWS):
            yield batch
            batch, held = [], 0
        batch.append((row, last))
        held += size
    if batch:
        yield batch


def _consistent(row: Row, patched: bool | None, sidecar: SidecarType) -> bool:
    """Whether the shard is patched. Raises ValueError for a row unlike those before, or without needed entropies."""
    here = row.patch_lengths is not None
    if patched is not None and here != patched:
        raise ValueError(
            f"document {row.id!r} is {'patched' if here else 'unpatched'}, those before it in the shard are not"
        )
    if sidecar != "none" and row.entropies is None:
        raise ValueError(f"document {row.id!r} has no entropies to store in the {sidecar} sidecar")
    return here


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
        view = memoryview(data)
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
