"""Writing a folder of targets: the file of a shard as its targets come, and what all shards have in common."""

import math
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shared.distillation.stored_targets import StoredTargets, TargetFormat
from shared.distillation.targets_folder import (
    DTYPES,
    SCHEMA,
    TABLE_FILE,
    TABLE_ROWS,
    ShardTargets,
    TargetsIdentity,
    TargetsManifest,
    places_of,
    targets_name,
    tensors_of,
)
from shared.io.files.atomic import atomic_file, naming
from shared.io.files.digests import file_sha256
from shared.model_folder.tensor_header import ITEM_BYTES, made_header
from shared.shards.dataset import Dataset
from shared.shards.formats.arrow import mapped_file
from shared.shards.manifest import TableFile
from shared.shards.writer import HashingFile


class TargetsWriter(AbstractContextManager["TargetsWriter"]):
    """The targets of one shard, written as they come; the same targets give the same bytes.

    A context: the file appears when the block ends, and ``entry`` is set; after an error in it none is left. ``flops``
    of the teacher are added up by the caller. Memory:
    what is added, and some tens of bytes for each row of the shard.
    """

    entry: ShardTargets

    def __init__(self, folder: Path, dataset: Dataset, shard: int, form: TargetFormat) -> None:
        """Of one shard of a dataset, which says how many there are. Raises DatasetError."""
        recorded, places = dataset.shard(shard), places_of(dataset.shard_index(shard))
        self._path, self._form, self._content_hash = folder / targets_name(recorded.name), form, recorded.content_hash
        self._begins, self._counts = places.rows, places.counts
        self._targets = self._left = int(places.documents[-1])
        self._largest_rest = 0.0
        self.flops = 0.0
        self._row = self._written = 0
        tensors = tensors_of(form, self._targets, len(places.documents) - 1)
        names, header = made_header(tensors)
        self._arrays: dict[str, tuple[int, np.dtype[Any], int]] = {}
        """Of each array its place in the file, its dtype and the bytes of a target."""
        end = len(header)
        for name in names:
            kind, shape = tensors[name]
            width = ITEM_BYTES[kind] * math.prod(shape[1:])
            self._arrays[name] = end, DTYPES[kind], width
            end += width * shape[0]
        with ExitStack() as files:
            self._descriptor = files.enter_context(atomic_file(self._path)).fileno()
            with naming(self._path):
                os.ftruncate(self._descriptor, end)
            self._put(0, header)
            self._put(self._arrays["offsets"][0], places.documents.astype("<i8").tobytes())
            self._files = files.pop_all()

    def add(self, targets: StoredTargets) -> None:
        """Write the next targets of the shard, row by row: any number of them, all rows in order."""
        size = len(targets.symbols)
        if targets.symbols.shape[1] != self._form.top or targets.logs.dtype != self._form.dtype:
            raise ValueError(f"{self._path}: targets of another form than {self._form}")
        if size > self._left:
            raise ValueError(f"{self._path}: more targets than the {self._targets} of its shard")
        self._left -= size
        self._largest_rest = max(self._largest_rest, targets.largest_rest)
        done = 0
        while done < size:
            count = min(size - done, int(self._counts[self._row]) - self._written)
            begin = int(self._begins[self._row]) + self._written
            for name in ("symbols", "logs", "end", "rest"):
                place, dtype, width = self._arrays[name]
                part = np.ascontiguousarray(getattr(targets, name)[done : done + count], dtype)
                self._put(place + begin * width, part.tobytes())
            done += count
            self._written += count
            if self._written == self._counts[self._row]:
                self._row, self._written = self._row + 1, 0

    def _put(self, place: int, data: bytes) -> None:
        # With pwrite and not through a mapping: a disk that is full is an error here, and would be a signal there.
        with naming(self._path):
            while data:
                written = os.pwrite(self._descriptor, data, place)
                place, data = place + written, data[written:]

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is None:
            self.close()
        else:
            self._files.__exit__(*raised)  # `atomic_file` removes the temporary file

    def close(self) -> None:
        """Give the file its name. Raises ValueError when targets are missing."""
        with self._files:
            if self._left:
                raise ValueError(f"{self._path}: {self._left} of the {self._targets} targets of its shard are missing")
        self.entry = ShardTargets(
            name=self._path.name,
            bytes=self._path.stat().st_size,
            sha256=file_sha256(self._path),
            content_hash=self._content_hash,
            targets=self._targets,
            largest_rest=self._largest_rest,
            flops=self.flops,
        )


def commit_targets(
    folder: Path, identity: TargetsIdentity, entries: Iterable[ShardTargets], dataset: Dataset
) -> TargetsManifest:
    """Commit targets whose files are in their places: the table, and targets.json last.

    ``entries`` in the order of the dataset's shards.
    """
    rows = size = targets = 0
    largest = flops = 0.0
    held: list[dict[str, Any]] = []
    with atomic_file(folder / TABLE_FILE) as file:
        sink = HashingFile(file)
        with mapped_file(sink, SCHEMA) as table:

            def write() -> None:
                table.write_batch(pa.RecordBatch.from_pylist(held, schema=SCHEMA))
                held.clear()

            for entry in entries:
                digests = {key: bytes.fromhex(getattr(entry, key)) for key in ("sha256", "content_hash")}
                held.append(entry.model_dump() | digests)
                rows, size, targets = rows + 1, size + entry.bytes, targets + entry.targets
                largest, flops = max(largest, entry.largest_rest), flops + entry.flops
                if len(held) == TABLE_ROWS:
                    write()
            if held:
                write()
    manifest = TargetsManifest(
        identity=identity,
        content_hash=dataset.manifest.content_hash,
        documents=dataset.totals.documents,
        bytes=dataset.totals.bytes,
        targets=targets,
        bytes_on_disk=size,
        largest_rest=largest,
        flops=flops,
        shards=TableFile(rows=rows, bytes=sink.size, sha256=sink.sha256),
    )
    manifest.save(folder)
    return manifest
