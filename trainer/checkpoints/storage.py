"""torch.distributed.checkpoint over safetensors files and an index of ours: only tensors, never a pickle.

torch's own storage of this kind (hf_storage) makes a second copy of everything in memory before it writes, and finds
out what there is from whatever files it meets. Its files are what these are, so that it can read them.
"""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from shared.io.files.atomic import NamedFile
from shared.model_folder.tensors import CODES, DTYPES, write_to
from trainer.checkpoints.index import Chunk, Index, TensorRecord, write_index
from trainer.errors import CheckpointError
from trainer.provenance.checkpoint_folders import INDEX_NAME, TENSORS_SUFFIX, FileRecord

MODEL_PREFIX = "model."
"""How names of parameters begin in a checkpoint."""
OPTIMIZER_PREFIX = "optimizer."
BUFFER_BYTES = 2**20
"""Of a file that is written: network file systems take large writes much faster than small ones."""


def named_tensors(parameters: Mapping[str, Any], moments: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `get_state_dict` gives of a model and its optimizers, by name: model.P of a parameter P, optimizer.P.KEY of
    its state. What optimizers have beside (learning rate, decay) the recipe says.
    """
    named = {MODEL_PREFIX + name: tensor for name, tensor in parameters.items()}
    for name, state in moments["state"].items():
        named |= {f"{OPTIMIZER_PREFIX}{name}.{key}": value for key, value in state.items()}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {type(value).__name__}, only tensors are saved")
    return named


def load_tensors(path: Path, index: Index, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, sharded or not, with what a checkpoint has under their names. All ranks take part.

    Raises CheckpointError, before anything is read, when one is missing or has another dtype or shape.
    """
    for name, tensor in tensors.items():
        if name not in index.tensors:
            raise CheckpointError(f"{path} has no tensor {name}, which this model needs")
        record, code = index.tensors[name], CODES.get(tensor.dtype)
        if record.dtype != code or record.shape != tuple(tensor.shape):
            theirs, ours = f"{record.dtype} {list(record.shape)}", f"{code} {list(tensor.shape)}"
            raise CheckpointError(f"{path}: tensor {name} is {theirs}, this model wants {ours}")
    try:
        alone = not dist.is_initialized() or dist.get_world_size() == 1  # plans are exchanged as pickles
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(cast(dict[str, Any], tensors), storage_reader=TensorReader(path, index), no_dist=alone)
    except CheckpointException as error:  # derives from BaseException: a plain handler would let it pass
        raise CheckpointError(f"{path} cannot be loaded ({cause_of(error)})") from None


def check_names(path: Path, index: Index, wanted: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError when a checkpoint has tensors that nothing here wants."""
    if extra := sorted(index.tensors.keys() - wanted.keys()):
        raise CheckpointError(f"{path} has a tensor {extra[0]}, which is not part of this model and its optimizer")


def cause_of(error: CheckpointException) -> str:
    """What happened on the first rank that failed."""
    return str(next(iter(error.failures.values()))[0])


class TensorWriter(HuggingFaceStorageWriter):
    """Writes each rank's parts of tensors into one file, in a folder that is there and empty of such files.

    ``records`` has what this rank has written, by file name: size and sha256 as the bytes go by.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path=str(path), save_distributed=True)
        self.folder = path
        self.records: dict[str, FileRecord] = {}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned."""
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write what this rank has; no file where that is nothing."""
        items = {item.index.fqn: item for item in plan.items if not _is_empty(item)}
        assert len(items) == sum(not _is_empty(item) for item in plan.items), "a rank has one part of a tensor"
        results: Future[list[WriteResult]] = Future()
        if not items:
            results.set_result([])
            return results
        name = f"rank-{plan.storage_data['shard_index'] - 1:05d}{TENSORS_SUFFIX}"
        parts = {fqn: _part(item) for fqn, item in items.items()}
        entries = [(fqn, lengths, dtype) for fqn, (_, lengths, dtype) in parts.items()]
        places = {fqn: {"saved_offsets": offsets} for fqn, (offsets, _, _) in parts.items()}
        about = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)}  # for torch's reader
        file = _HashedFile(self.folder / name)
        with io.BufferedWriter(file, BUFFER_BYTES) as stream:
            write_to(stream, entries, lambda fqn: cast(Tensor, planner.resolve_data(items[fqn])), about)
        self.records[name] = FileRecord(bytes=file.size, sha256=file.digest.hexdigest())
        results.set_result([WriteResult(item.index, file.size, name) for item in items.values()])
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, on the first rank, when all have written theirs."""
        files = {
            (result.index.fqn, tuple(result.index.offset or ())): result.storage_data
            for written in results
            for result in written
        }
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            chunks = [
                Chunk(file=files[name, tuple(chunk.offsets)], offsets=tuple(chunk.offsets), lengths=tuple(chunk.sizes))
                for chunk in entry.chunks
                if chunk.sizes.numel()
            ]
            dtype = CODES[entry.properties.dtype]
            tensors[name] = TensorRecord(dtype=dtype, shape=tuple(entry.size), chunks=tuple(chunks))
        self.records[INDEX_NAME] = write_index(self.folder, Index(tensors=tensors))


class TensorReader(HuggingFaceStorageReader):
    """Reads what the index says, and nothing else that may be in the folder."""

    def __init__(self, path: Path, index: Index) -> None:
        super().__init__(path=str(path))
        self._folder = path
        self._index = index

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index in torch's words."""
        entries, places = {}, {}
        for name, record in self._index.tensors.items():
            chunks = [
                ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.lengths)) for chunk in record.chunks
            ]
            properties = TensorProperties(dtype=DTYPES[record.dtype])
            entries[name] = TensorStorageMetadata(properties, torch.Size(record.shape), chunks)
            for chunk in record.chunks:
                places[MetadataIndex(name, chunk.offsets)] = chunk
        return Metadata(cast(Any, entries), storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what this rank needs out of the files, which are mapped."""
        wanted: dict[str, list[Any]] = {}
        for item in plan.items:
            wanted.setdefault(self.storage_data[item.storage_index].file, []).append(item)
        for name, items in wanted.items():
            with self._opened(name) as file:
                for item in items:
                    part = tuple(slice(first, first + size) for first, size in zip(item.storage_offsets, item.lengths))
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(file.get_tensor(item.storage_index.fqn)[part])
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _opened(self, name: str) -> Any:
        """A file whose header says of every tensor what the index says."""
        try:
            file: Any = safetensors.safe_open(self._folder / name, framework="pt")
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{name} is not a whole safetensors file: {error}") from None
        listed = {
            fqn: (record.dtype, list(chunk.lengths))
            for fqn, record in self._index.tensors.items()
            for chunk in record.chunks
            if chunk.file == name
        }
        parts = {fqn: file.get_slice(fqn) for fqn in list(file.keys())}
        held = {fqn: (part.get_dtype(), list(part.get_shape())) for fqn, part in parts.items()}
        if different := sorted(fqn for fqn in listed.keys() | held.keys() if listed.get(fqn) != held.get(fqn)):
            fqn = different[0]
            raise CheckpointError(
                f"{name}: tensor {fqn} is {_shown(held.get(fqn))}, {INDEX_NAME} says {_shown(listed.get(fqn))}"
            )
        return file


def _shown(tensor: tuple[str, list[int]] | None) -> str:
    return "not there" if tensor is None else f"{tensor[0]} {tensor[1]}"


def _part(item: WriteItem) -> tuple[list[int], list[int], torch.dtype]:
    """Where a part begins, its shape, and its dtype."""
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    return list(chunk.offsets), list(chunk.sizes), item.tensor_data.properties.dtype


def _is_empty(item: WriteItem) -> bool:
    """Whether a rank holds nothing of a tensor."""
    assert item.tensor_data is not None, "only tensors are saved"
    return item.tensor_data.chunk.sizes.numel() == 0


class _HashedFile(NamedFile):
    """Counts and hashes what is written, always at the end; synced when closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, path)
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
