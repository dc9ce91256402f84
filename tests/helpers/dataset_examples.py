"""Small datasets with real patches and random entropies, and ways to spoil their content but not their hashes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from helpers.refitted import fit
from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.formats.arrow import new_file
from shared.shards.manifest import DatasetIdentity, ShardFormat, SidecarType
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens

STATIC = PatchingSettings(rule="static", stride=4)
SPACE = PatchingSettings(rule="space", max_length=16)
BYTE = PatchingSettings(rule="byte")
NONE = PatchingSettings(rule="none")
ENTROPY = PatchingSettings(rule="entropy", theta=3.0, thetas={"prose": 2.0}, max_length=16).on_grid()
EXACT = PatchingSettings(rule="entropy", theta=3.0)
RISE = PatchingSettings(rule="entropy_rise", theta=2.0, theta_rise=0.5, min_length=2)
MONOTONIC = PatchingSettings(rule="monotonic", theta=0.5, entropy_dtype="float16")


def document(id: str, subset: str, text: bytes, patching: PatchingSettings, level: float = 5.0) -> Row:
    """A document patched by a rule, with entropies spread over [0, level) nats."""
    seed = int.from_bytes(id.encode(), "little") % 2**32
    entropies = (np.random.default_rng(seed).random(len(text) + 1) * level).astype(np.float32)
    lengths = None
    if patching.patched:
        lengths = patch_lengths(document_tokens(text), patching.for_subset(subset), entropies)
    return Row(id, subset, text, 0, lengths, entropies)


def in_two_parts(row: Row) -> list[Row]:
    """The same document, cut at a patch in its middle."""
    lengths, entropies = row.patch_lengths, row.entropies
    assert lengths is not None
    assert entropies is not None
    half = len(lengths) // 2
    tokens = int(lengths[:half].sum())
    cut = tokens - 1  # bytes, without BOS
    return [
        Row(row.id, row.subset, row.text[:cut], 0, lengths[:half], entropies[:tokens]),
        Row(row.id, row.subset, row.text[cut:], 1, lengths[half:], entropies[tokens:]),
    ]


def documents(patching: PatchingSettings) -> list[list[Row]]:
    """Two shards of documents of two subsets, an empty one and one in parts among them."""
    rows = [
        document("a", "code", b"def f(x):\n    return x + 1\n" * 5, patching),
        document("b", "prose", "Größe, 大きさ, and so on. ".encode() * 4, patching),
        document("c", "prose", b"", patching),
        document("d", "code", bytes(range(256)), patching),
    ]
    parted = in_two_parts(document("e", "code", b"in parts " * 20, patching)) if patching.patched else []
    return [rows[:2], [*rows[2:], *parted]]


def save_dataset(
    folder: Path,
    shards: Sequence[Sequence[Row]],
    patching: PatchingSettings,
    format: ShardFormat = "arrow",
    sidecar: SidecarType = "none",
    split: Any = "train",
) -> None:
    """A finished dataset. Its manifest names no entropy model."""
    entries = [write_shard(folder, f"shard-{n:05d}", rows, format, sidecar) for n, rows in enumerate(shards)]
    identity = DatasetIdentity(
        split=split, format=format, sidecar=sidecar, patching=patching, entropy_model=None, source="a test"
    )
    commit_dataset(folder, identity, entries)


def rewrite(path: Path, change: Callable[[pa.Table], list[pa.RecordBatch]]) -> None:
    """Replace the batches of an Arrow file, and make its dataset's manifest agree with the new bytes."""
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    batches = change(table)
    with new_file(str(path), table.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    fit(path.parent)


def set_value(column: str, row: int, value: Any) -> Callable[[pa.Table], list[pa.RecordBatch]]:
    """A change of one value, everything else staying as it is."""

    def change(table: pa.Table) -> list[pa.RecordBatch]:
        values = table.column(column).to_pylist()
        values[row] = value
        field = table.schema.field(column)
        array = (
            pa.array(values, pa.string()).dictionary_encode() if column == "subset" else pa.array(values, field.type)
        )
        return table.set_column(table.schema.get_field_index(column), field, array).combine_chunks().to_batches()

    return change
