"""index.json of a checkpoint: for each tensor its dtype, its whole shape, and which file holds which part of it.

{"tensors": {NAME: {"dtype": "F32", "shape": [8, 4], "chunks": [{"file": F, "offsets": [4, 0], "lengths": [4, 4]}]}}}:
rows 4 to 7 are the tensor NAME of the safetensors file F. Free of torch; what is read here is checked as a whole before
any tensor is made: numbers are bounded by the sizes of the files.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from shared.io.files.atomic import write_atomic
from shared.settings import Settings, first_problem
from trainer.errors import CheckpointError
from trainer.provenance.checkpoint_folders import (
    COMPLETE_NAME,
    INDEX_NAME,
    MOST_BYTES,
    TENSORS_SUFFIX,
    Contents,
    FileName,
    FileRecord,
    read_small,
    record_of,
)

ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Dtypes by the names that safetensors gives them."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,128}(\.[A-Za-z0-9_]{1,128}){0,31}$")]
Lengths = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**48)], ...], Field(max_length=8)]


class Chunk(Settings):
    """A part of a tensor, whole in one file."""

    file: FileName
    offsets: Lengths
    """Where it begins, in each dimension."""
    lengths: Lengths


class TensorRecord(Settings):
    """One tensor."""

    dtype: Annotated[str, StringConstraints(pattern=f"^({'|'.join(ITEM_BYTES)})$")]
    shape: Lengths
    chunks: tuple[Chunk, ...] = Field(max_length=2**20)
    """None of a tensor without elements."""

    def gaps(self) -> str | None:
        """Why the chunks are not a grid that covers each element once; None when they are.

        Parts of a tensor that is sharded over any dimensions are such a grid: in each dimension runs that follow each
        other, and one chunk for each combination.
        """
        if not math.prod(self.shape):
            return "has chunks, but no elements" if self.chunks else None
        places = {chunk.offsets for chunk in self.chunks}
        if len(places) < len(self.chunks):
            return "has two chunks at one place"
        cells = 1
        for axis, size in enumerate(self.shape):
            runs = set()
            for chunk in self.chunks:
                if len(chunk.offsets) != len(self.shape) or len(chunk.lengths) != len(self.shape):
                    return f"has {len(self.shape)} dimensions, one of its chunks has not"
                runs.add((chunk.offsets[axis], chunk.lengths[axis]))
            end = 0
            for offset, length in sorted(runs):
                if offset != end or not length:
                    return f"has chunks that {'overlap' if offset < end else 'leave a gap'} in dimension {axis}"
                end += length
            if end != size:
                return f"has chunks up to {end} in dimension {axis}, its size is {size}"
            cells *= len(runs)
        if cells != len(self.chunks):
            return f"has {len(self.chunks)} chunks, its parts are {cells}"
        if any(chunk.lengths or chunk.offsets for chunk in self.chunks if not self.shape):
            return "is a scalar, one of its chunks is not"
        return None


class Index(Settings):
    """All tensors of a checkpoint by name."""

    tensors: dict[Name, TensorRecord]

    def objection(self, files: Mapping[str, FileRecord]) -> str | None:
        """What cannot be, given the files of the checkpoint; None when nothing."""
        held: Counter[str] = Counter()
        for name, record in self.tensors.items():
            if problem := record.gaps():
                return f"tensor {name} {problem}"
            if len({chunk.file for chunk in record.chunks}) < len(record.chunks):
                return f"tensor {name} has two chunks in one file"
            for chunk in record.chunks:
                held[chunk.file] += math.prod(chunk.lengths) * ITEM_BYTES[record.dtype]
        there = {name for name in files if name.endswith(TENSORS_SUFFIX)}
        if different := sorted(held.keys() ^ there):
            known = different[0] in there
            return f"{different[0]} {'holds no tensor' if known else 'is not a file of this checkpoint'}"
        for name, size in held.items():
            if size > files[name].bytes:
                return f"{name} has {files[name].bytes} bytes, its tensors would have {size}"
        return None


def read_index(path: Path) -> Index:
    """The index of a checkpoint whose files are known to be what was written. Raises CheckpointError."""
    index = read_part(path / INDEX_NAME, Index)
    if problem := index.objection(read_part(path / COMPLETE_NAME, Contents).files):
        raise CheckpointError(f"{path / INDEX_NAME}: {problem}")
    return index


P = TypeVar("P", bound=Settings)


def read_part(path: Path, schema: type[P]) -> P:
    """A JSON file of a checkpoint. Raises CheckpointError, naming the file, when it is missing or is none."""
    try:
        return schema.model_validate_json(read_small(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_problem(error)}") from None


def write_index(path: Path, index: Index) -> FileRecord:
    """Write the index of a checkpoint. Raises CheckpointError when it would be too large to be read again."""
    content = (index.model_dump_json() + "\n").encode()
    if len(content) > MOST_BYTES:
        raise CheckpointError(f"{path / INDEX_NAME} would have {len(content)} bytes, at most {MOST_BYTES} are read")
    write_atomic(path / INDEX_NAME, content)
    return record_of(content)
