"""Tensors in safetensors files, read and written one at a time: a model larger than memory passes through (law 8).

A file is the length of a header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, offsets), then the
tensors' bytes. A folder has one, or several shards and an index that says which holds what.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import safetensors
import torch
from torch import Tensor

from shared.errors import ModelFileError
from shared.io.files.atomic import atomic_file, write_atomic
from shared.io.files.json_reader import read_json
from shared.model_folder.identity import WEIGHTS_FILE
from shared.model_folder.tensor_header import MOST_HEADER_BYTES, file_header, made_header

INDEX_FILE = WEIGHTS_FILE + ".index.json"
PICKLED_FILE = "pytorch_model.bin"
"""What folders of before safetensors have."""
BLOCK_BYTES = 1 << 24
"""Bytes of a tensor that are in memory at a time when one is written: safetensors' own writer takes whole models."""

Entry = tuple[str, Sequence[int], torch.dtype]
"""Name, shape and dtype of a tensor that will be written."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Of tensors that are plain ones in torch, by the names that safetensors gives them."""
CODES = {dtype: code for code, dtype in DTYPES.items()}


class TensorSource(Protocol):
    """Tensors by name, read when they are asked for."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, rows: slice | None = None) -> Tensor: ...


class TensorFolder:
    """The tensors of a folder's safetensors files, or of one such file.

    What is read is mapped, not copied: pages come from the file as they are touched, and the system may drop them.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises ModelFileError, naming the file, when there is none or one is damaged."""
        self.path = Path(path)
        self._files: dict[Path, Any] = {}
        self._places = self._indexed() if self._is_indexed() else self._single()

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._places)

    def files(self) -> list[Path]:
        """The files that hold the tensors, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Raises ModelFileError for a dtype that torch has no plain tensors of."""
        code = self._slice(name).get_dtype()
        if code not in DTYPES:
            raise ModelFileError(f"{self._places[name]}: tensor {name} has dtype {code}, which is not supported")
        return DTYPES[code]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor, or a range of its rows; ModelFileError when there is none of that name."""
        self.dtype(name)
        whole: Tensor = self._file(name).get_tensor(name)
        return whole if rows is None else whole[rows]

    def _is_indexed(self) -> bool:
        return self.path.is_dir() and not (self.path / WEIGHTS_FILE).exists() and (self.path / INDEX_FILE).exists()

    def _single(self) -> dict[str, Path]:
        path = self.path / WEIGHTS_FILE if self.path.is_dir() else self.path
        if not path.is_file():
            either = f"neither {WEIGHTS_FILE} nor {INDEX_FILE} is there"
            if (self.path / PICKLED_FILE).exists():
                either += f"; {PICKLED_FILE} is not read, as it may run code: let transformers save the model anew"
            wanted = either if self.path.is_dir() else "there is no such file"
            raise ModelFileError(f"{self.path}: {wanted}")
        return dict.fromkeys(self._open(path).keys(), path)

    def _indexed(self) -> dict[str, Path]:
        index = self.path / INDEX_FILE
        try:
            places = read_json(index, MOST_HEADER_BYTES)["weight_map"]
            if not all(isinstance(part, str) and Path(part).name == part for part in places.values()):
                raise ValueError
        except OSError as error:
            raise ModelFileError(f"{index} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ModelFileError(f"{index} is not an index of safetensors shards beside it") from None
        held = {part: set(self._open(self.path / part).keys()) for part in sorted(set(places.values()))}
        for name, part in places.items():
            if name not in held[part]:
                raise ModelFileError(f"{index} says that tensor {name} is in {part}, but it is not")
        return {name: self.path / part for name, part in places.items()}

    def _open(self, path: Path) -> Any:
        try:
            file_header(path)
            self._files[path] = safetensors.safe_open(path, framework="pt")
        except FileNotFoundError:
            raise ModelFileError(f"{path} is missing") from None
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read ({error.strerror})") from None
        except safetensors.SafetensorError as error:
            raise ModelFileError(f"{path} is not a whole safetensors file: {error}") from None
        return self._files[path]

    def _file(self, name: str) -> Any:
        if name not in self._places:
            raise ModelFileError(f"{self.path}: tensor {name} is missing")
        return self._files[self._places[name]]

    def _slice(self, name: str) -> Any:
        return self._file(name).get_slice(name)


def write_tensors(
    path: str | Path,
    plan: Sequence[Entry],
    produce: Callable[[str], Tensor | Iterable[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file, tensor by tensor; it appears under its name once it is whole and synced.

    Args:
        plan: what to write. The order in the file is safetensors' own, so that equal tensors give equal bytes.
        produce: makes a tensor when its turn comes: whole, or as consecutive blocks of rows. It is converted to the
            planned dtype in small blocks, and dropped before the next one is made.
        metadata: strings for the header.
    """
    with atomic_file(Path(path)) as file:
        write_to(file, plan, produce, metadata)


def write_to(
    file: IO[bytes],
    plan: Sequence[Entry],
    produce: Callable[[str], Tensor | Iterable[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write what a safetensors file holds; arguments as those of `write_tensors`."""
    planned = {name: (shape, dtype) for name, shape, dtype in plan}
    assert len(planned) == len(plan), "every tensor has its own name"
    names, header = made_header({name: (CODES[dtype], shape) for name, shape, dtype in plan}, metadata)
    file.write(header)
    for name in names:
        shape, dtype = planned[name]
        made = produce(name)
        written = sum(_write(file, part, dtype) for part in ([made] if isinstance(made, Tensor) else made))
        assert written == math.prod(shape), f"tensor {name} has {written} elements, planned were {list(shape)}"


def write_sharded(
    folder: Path,
    plan: Sequence[Entry],
    produce: Callable[[str], Tensor | Iterable[Tensor]],
    shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a folder's tensors in the order of the plan, a new file before one would pass ``shard_bytes``.

    One file is named model.safetensors; several are numbered and have an index. Returns the files. A tensor is never
    divided: one that is larger than a shard has a file to itself.
    """
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in plan:
        size = math.prod(entry[1]) * entry[2].itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    stem = WEIGHTS_FILE.removesuffix(".safetensors")
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [WEIGHTS_FILE]
    for name, shard in zip(names, shards):
        write_tensors(folder / name, shard, produce, metadata)
    if len(shards) > 1:
        places = {entry[0]: name for name, shard in zip(names, shards) for entry in shard}
        total = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in plan)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_atomic(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    return [folder / name for name in names]


def _write(file: IO[bytes], tensor: Tensor, dtype: torch.dtype) -> int:
    """Append a tensor's elements; returns how many."""
    for block in _blocks(tensor.detach(), max(dtype.itemsize, tensor.element_size())):
        file.write(block.to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)
    return tensor.numel()


def _blocks(tensor: Tensor, itemsize: int) -> Iterator[Tensor]:
    """Flat pieces of at most BLOCK_BYTES, by rows where the tensor is not contiguous."""
    limit = BLOCK_BYTES // itemsize
    if tensor.is_contiguous() or tensor.ndim == 0:
        yield from tensor.reshape(-1).split(limit)
    elif tensor.numel() <= limit:
        yield tensor.reshape(-1)
    else:
        for rows in tensor.split(max(1, limit * tensor.shape[0] // tensor.numel())):
            yield rows.reshape(-1)
