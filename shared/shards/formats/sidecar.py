"""The optional entropy sidecar of a shard: entropies of every input token, on the uint8 grid or as float32 nats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shared.errors import DatasetError
from shared.shards.columns import Ragged
from shared.shards.formats.arrow import MOST_BATCH_BYTES, ArrowFile, new_file, ragged
from shared.shards.manifest import SidecarType

_DTYPES: dict[SidecarType, np.dtype[Any]] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


def sidecar_name(shard_name: str) -> str:
    return f"{shard_name}.entropy"


def _schema(sidecar: SidecarType) -> pa.Schema:
    column = pa.field("entropies", pa.large_binary(), nullable=False)
    return pa.schema([column], metadata={"type": sidecar})


class SidecarWriter:
    """Writes one large_binary for each row of a shard, in the shard's own record batches."""

    def __init__(self, sink: Any, sidecar: SidecarType):
        self._schema = _schema(sidecar)
        self._dtype = _DTYPES[sidecar]
        self._writer = new_file(sink, self._schema)

    def write(self, values: Sequence[np.ndarray]) -> None:
        """Write one batch: for each row uint8 grid values or float32 nats."""
        data = [v.astype(self._dtype, copy=False).tobytes() for v in values]
        self._writer.write_batch(pa.record_batch([pa.array(data, pa.large_binary())], schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class SidecarReader:
    """The record batches of one sidecar file."""

    def __init__(self, path: Path, sidecar: SidecarType):
        self._path = path
        self._dtype = _DTYPES[sidecar]
        self._file = ArrowFile(path, (_schema(sidecar),), "entropy sidecar")
        recorded = (self._file.schema.metadata or {}).get(b"type", b"").decode("utf-8", "replace")
        if recorded != sidecar:
            raise DatasetError(f"{path} holds {recorded or 'untyped'} entropies, the manifest says {sidecar}")

    def batch(self, number: int) -> list[np.ndarray]:
        """For each row of a batch uint8 [T] or float32 [T]. Raises DatasetError."""
        rows: Ragged = ragged(self._file.read(number, MOST_BATCH_BYTES).column("entropies"))
        if ((rows.starts | rows.ends) % self._dtype.itemsize).any():
            raise DatasetError(f"{self._path} is damaged: batch {number} does not hold whole {self._dtype} values")
        return [rows[row].view(self._dtype) for row in range(len(rows))]
