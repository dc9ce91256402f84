"""The header of a safetensors file, checked before anything is allocated: names, dtypes, shapes and places of tensors.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, offsets), then the
tensors' bytes, one after another. Free of torch.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.errors import ModelFileError
from shared.io.files.json_reader import open_regular, parse_json

MOST_HEADER_BYTES = 8 << 20
"""A tensor takes about 100: a model of 80,000 fits."""
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
FLOATS = frozenset(("F64", "F32", "BF16", "F16"))
"""Of weights."""

_Size = Annotated[int, Field(ge=0, le=1 << 48, strict=True)]


class TensorEntry(BaseModel):
    """What a header says of one tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    shape: tuple[_Size, ...] = Field(max_length=8)
    data_offsets: tuple[_Size, _Size]


def made_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[list[str], bytes]:
    """Names in the order of safetensors' own writer, so that equal tensors give equal bytes, and what precedes them.

    Args:
        tensors: dtype and shape by name.
        metadata: strings for the header.
    """
    assert sys.byteorder == "little", "the format is little-endian"
    names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        dtype, shape = tensors[name]
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return names, len(encoded).to_bytes(8, "little") + encoded


_HEADER: TypeAdapter[dict[str, TensorEntry]] = TypeAdapter(dict[str, TensorEntry])


def file_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors that a safetensors file holds. Raises ModelFileError, naming the file, unless it is whole and sane;
    OSError when it cannot be read.
    """
    with open_regular(path) as file:
        return read_header(file, str(path))


def read_header(file: IO[bytes], where: str) -> dict[str, TensorEntry]:
    """The same from an open file."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ModelFileError(f"{where} is not a whole safetensors file: it ends within its header")
    if length > MOST_HEADER_BYTES:
        raise ModelFileError(f"{where}: a header of {length:,} bytes, at most {MOST_HEADER_BYTES:,} are read")
    try:
        values = parse_json(file.read(length))
        if isinstance(values, dict):
            values.pop("__metadata__", None)
        entries = _HEADER.validate_python(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))[:200]
        raise ModelFileError(f"{where}: header: {key}: {problem['msg']}") from None
    except ValueError as error:
        raise ModelFileError(f"{where} is not a whole safetensors file: its header is not JSON: {error}") from None
    _check_places(entries, size - 8 - length, where)
    return entries


def check_shapes(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    error: type[ModelFileError],
    where: str = "",
) -> None:
    """Raise an error at the first tensor that is missing, has another shape, or is left over; it begins ``where``."""
    for name, shape in wanted.items():
        if name not in found:
            raise error(f"{where}tensor {name} {list(shape)} is missing")
        if found[name] != shape:
            raise error(f"{where}tensor {name} has shape {list(found[name])}, the settings want {list(shape)}")
    if extra := sorted(found.keys() - wanted.keys()):
        raise error(f"{where}tensor {extra[0]} is not part of this model")


def _check_places(entries: Mapping[str, TensorEntry], size: int, where: str) -> None:
    """Raise ModelFileError unless tensors fill the file, each as long as its shape says, none over another."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        if entry.dtype not in ITEM_BYTES:
            raise ModelFileError(f"{where}: tensor {name} has dtype {entry.dtype}, which is not supported")
        if stop - start != math.prod(entry.shape) * ITEM_BYTES[entry.dtype]:
            raise ModelFileError(
                f"{where}: tensor {name} of {entry.dtype} {list(entry.shape)} has {stop - start} bytes in the header"
            )
        if start != end:
            what = "lies over the tensor before it" if start < end else "leaves a gap before it"
            raise ModelFileError(f"{where}: tensor {name} {what}: it begins at {start}, {end} is expected")
        end = stop
    if end != size:
        raise ModelFileError(f"{where} is not a whole safetensors file: {size} bytes of tensors, {end} in the header")
