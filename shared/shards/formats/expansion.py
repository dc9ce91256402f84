"""How many bytes the rows of a table come to: a value that is held once may stand in every row."""

from typing import Any

import numpy as np
import pyarrow as pa

_VIEWS = (pa.string_view(), pa.binary_view())


def expanded(array: pa.Array) -> int:
    """Bytes of the values of an array, each as often as it stands there. The array is sound."""
    return int(sizes(array).sum()) if shares(array.type) else array.nbytes


def shares(kind: pa.DataType) -> bool:
    """Whether a value that is held once may stand in several rows of this type."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) or kind in _VIEWS:
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return shares(kind.storage_type)
    return any(shares(kind.field(i).type) for i in range(kind.num_fields)) or _is_list_view(kind) or _is_dense(kind)


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _is_dense(kind: pa.DataType) -> bool:
    """Whether values are unions whose members are found by offsets."""
    return bool(pa.types.is_union(kind) and kind.mode == "dense")


def sizes(array: pa.Array) -> np.ndarray:
    """int64 [N]: bytes of each value."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return sizes(array.storage)
    if pa.types.is_dictionary(kind):
        there = np.asarray(array.indices.is_valid())
        found = np.zeros(len(array), np.int64)
        found[there] = sizes(array.dictionary)[np.asarray(array.indices.drop_null()).astype(np.int64)]
        return found
    if pa.types.is_run_end_encoded(kind):
        ends = array.run_ends.to_numpy().astype(np.int64)
        runs = np.searchsorted(ends, np.arange(array.offset, array.offset + len(array)), side="right")
        return sizes(array.values)[runs]
    if kind in _VIEWS:
        return _views(array)
    if _is_list_view(kind):
        return _of_lists(array, np.asarray(array.offsets), np.asarray(array.sizes))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        offsets = np.asarray(array.offsets).astype(np.int64)
        return _of_lists(array, offsets[:-1], np.diff(offsets))
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
        return _of_lists(array, (array.offset + np.arange(len(array))) * width, np.full(len(array), width))
    if pa.types.is_union(kind):
        return _unions(array)
    if pa.types.is_struct(kind):
        return sum((sizes(child) for child in array.flatten()), np.zeros(len(array), np.int64))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return np.diff(_buffer(array, np.int32)).astype(np.int64)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return np.diff(_buffer(array, np.int64))
    return np.full(len(array), -(-array.nbytes // max(len(array), 1)), np.int64)


def _of_lists(array: Any, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    values = (
        array.values
        if not pa.types.is_map(array.type)
        else pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
    )
    ends = np.append(0, np.cumsum(sizes(values)))
    begins, counts = begins.astype(np.int64), counts.astype(np.int64)
    inside: np.ndarray = ends[begins + counts] - ends[begins]
    return inside


def _unions(array: pa.Array) -> np.ndarray:
    kind, place = array.type, slice(array.offset, array.offset + len(array))
    codes = np.frombuffer(array.buffers()[1], np.int8)[place]
    at = np.frombuffer(array.buffers()[2], np.int32)[place] if kind.mode == "dense" else np.arange(len(array))
    found = np.zeros(len(array), np.int64)
    for number, code in enumerate(kind.type_codes):
        chosen = codes == code
        if chosen.any():
            found[chosen] = sizes(array.field(number))[at[chosen]]
    return found


def _buffer(array: pa.Array, dtype: Any) -> np.ndarray:
    """Offsets of the values, N + 1 of them."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array) + 1, dtype)
    return np.frombuffer(buffer, dtype)[array.offset : array.offset + len(array) + 1]


def _views(array: pa.Array) -> np.ndarray:
    """A view is 16 bytes, of which the first four are its length."""
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), np.int64)
    lengths = np.frombuffer(buffer, np.int32)[4 * array.offset : 4 * (array.offset + len(array)) : 4]
    return np.where(np.asarray(array.is_valid()), lengths, 0).astype(np.int64)
