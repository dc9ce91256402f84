"""Writing the shards of a checkpoint so that what was written is known: size and sha256 as the bytes go by."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from shared.files import NamedFile
from trainer.checkpoints.folders import FileRecord

BUFFER_BYTES = 2**20


class RecordingWriter(FileSystemWriter):
    """DCP's writer into a fresh folder; ``records`` has what this rank has written, by file name."""

    def __init__(self, path: Path) -> None:
        # DCP's own fsync comes before the last buffer is flushed: `_HashedFile` syncs when it is closed.
        super().__init__(path, sync_files=False, overwrite=False)
        self.records: dict[str, FileRecord] = {}
        self.fs = _RecordingFiles(self.records)


class _RecordingFiles(FileSystem):
    def __init__(self, records: dict[str, FileRecord]) -> None:
        self._records = records

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb"
        file = _HashedFile(Path(path), Path(path))
        with io.BufferedWriter(file, BUFFER_BYTES) as stream:
            yield cast(io.IOBase, stream)
        self._records[Path(path).name] = FileRecord(bytes=file.size, sha256=file.digest.hexdigest())

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self._records[Path(new_path).name] = self._records.pop(Path(path).name)


class _HashedFile(NamedFile):
    """Counts and hashes what is written, always at the end; synced when closed."""

    def __init__(self, temporary: Path, path: Path) -> None:
        super().__init__(temporary, path)
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.digest.update(memoryview(data).cast("B")[:written])
        self.size += written
        return written

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        try:
            if not self.closed:
                os.fsync(self.fileno())
        finally:
            super().close()
