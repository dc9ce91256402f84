"""Datasets whose content was changed, with sizes and checksums that fit again: what readers must refuse otherwise."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from shared.io.files.digests import file_sha256
from shared.shards.formats.arrow import mapped_file
from shared.shards.tables import table_file

Values = dict[str, Any]
FILES = {"": ("bytes_on_disk", "sha256"), ".index": ("index_bytes", "index_sha256")}
SIDECAR = {".entropy": ("sidecar_bytes", "sidecar_sha256")}


def change_manifest(folder: Path, change: Callable[[Values], object]) -> None:
    """Change the values of a manifest."""
    values = json.loads((folder / "manifest.json").read_bytes())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def change_table(folder: Path, name: Any, change: Callable[[list[Values]], object]) -> None:
    """Change the rows of a table of a dataset; the manifest fits."""
    path = folder / table_file(name)
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    rows = table.to_pylist()
    change(rows)
    with mapped_file(str(path), table.schema) as writer:
        for batch in pa.Table.from_pylist(rows, table.schema).combine_chunks().to_batches():
            writer.write_batch(batch)
    fit_tables(folder)


def fit_tables(folder: Path) -> None:
    """Make what the manifest says of the tables' files fit."""

    def change(values: Values) -> None:
        for name, table in values["tables"].items():
            path = folder / table_file(name)
            table["bytes"], table["sha256"] = path.stat().st_size, file_sha256(path)

    change_manifest(folder, change)


def fit(folder: Path, most: int = 2**30) -> None:
    """Make what table and manifest say of the shards' files fit, but for files that are larger than ``most``."""
    total = 0

    def change(rows: list[Values]) -> None:
        nonlocal total
        for row in rows:
            for ending, (size, sha256) in (FILES | (SIDECAR if row["sidecar_sha256"] else {})).items():
                path = folder / (row["name"] + ending)
                if path.is_file() and path.stat().st_size < most:
                    row[size], row[sha256] = path.stat().st_size, bytes.fromhex(file_sha256(path))
            total += row["bytes_on_disk"]

    change_table(folder, "shards", change)
    change_manifest(folder, lambda values: values.update(bytes_on_disk=total))


def fit_targets(folder: Path, most: int = 2**30, changes: Mapping[str, Values] | None = None) -> None:
    """Make what table and targets.json say of files of targets fit, but for those that are larger than ``most``.

    ``changes``: values of rows of the table that are to be others, by name.
    """
    path = folder / "shards.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    rows = table.to_pylist()
    for row in rows:
        file = folder / row["name"]
        if file.is_file() and file.stat().st_size < most:
            row["bytes"], row["sha256"] = file.stat().st_size, bytes.fromhex(file_sha256(file))
        row |= (changes or {}).get(row["name"], {})
    with mapped_file(str(path), table.schema) as writer:
        for batch in pa.Table.from_pylist(rows, table.schema).combine_chunks().to_batches():
            writer.write_batch(batch)
    fit_target_table(folder)


def fit_target_table(folder: Path) -> None:
    """Make what targets.json says of the table fit."""
    path = folder / "shards.arrow"
    values = json.loads((folder / "targets.json").read_bytes())
    values["shards"] |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / "targets.json").write_text(json.dumps(values))
