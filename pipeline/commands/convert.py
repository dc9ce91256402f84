"""The same shards in another format, and back again.

Example:
  python -m pipeline convert runs/stdlib/patched --to webdataset --out runs/tar

Rows, patches, entropies, parts of huge documents, other columns and the entropy model are all kept: from arrow to
another format and back gives the same bytes. The trainer reads arrow and webdataset. parquet is for others (pandas,
DuckDB, polars); it can only be converted back.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline.rewriting.dataset_rows import ShardByShard, require_kept, stem
from pipeline.rewriting.parquet import SUFFIX, Export, read_parquet, write_parquet
from pipeline.rewriting.parquet_export import Format, Source, figures, sources_at
from pipeline.rewriting.rewrite import (
    Written,
    add_output_arguments,
    copy_models,
    link,
    rewrite,
    save_dataset,
    show_result,
    workers_of,
)
from pipeline.settings import PipelineError
from shared.shards.tables import table_file
from shared.shards.writer import write_shard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="a dataset or export, or the folder above train/ and validation/"
    )
    parser.add_argument("--to", choices=["arrow", "webdataset", "parquet"], required=True, help="format of the result")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    sources = sources_at(arguments.dataset)
    for source in sources:
        if source.format == arguments.to:
            raise PipelineError(f"{source.dataset.folder} is {arguments.to} already")
    request = {
        "command": "convert",
        "to": arguments.to,
        "from": sources[0].format,
        "sources": {source.folder: source.dataset.fingerprint for source in sources},
    }
    chosen = ToParquet if arguments.to == "parquet" else ToShards
    done = rewrite(arguments.out, request, lambda: chosen(tuple(sources), arguments.to), workers_of(arguments))
    held = sources_at(arguments.out) if isinstance(arguments.out, Path) else None
    show_result(arguments.out, done, held)
    return 0


@dataclass(frozen=True)
class _Convert(ShardByShard[Source]):
    """Each shard in another format."""

    to: Format
    title = "Converting"


class ToShards(_Convert):
    """To a format that the trainer reads."""

    def write(self, unit: int, out: Path) -> Written:
        source, shard = self.units[unit]
        manifest = source.dataset.manifest
        entry, rows = source.dataset.shard(shard), (row for batch in source.batches(shard) for row in batch)
        assert self.to != "parquet"
        written = write_shard(out / source.folder, stem(entry), rows, self.to, manifest.identity.sidecar)
        require_kept(source.dataset, shard, {key: getattr(written, key) for key in figures(())})
        if entry.sidecar_sha256 is None:  # what was counted before the entropies were dropped cannot be counted again
            histogram = source.dataset.histograms(shard)["entropy_histogram"]
            written = written.model_copy(update={"entropy_histogram": histogram})
        return Written(shards={source.folder: [written]})

    def finish(self, out: Path, written: Iterable[Written]) -> None:
        for source in self.sides:
            identity = source.dataset.manifest.identity.model_copy(update={"format": self.to})
            entries = (entry for unit in written for entry in unit.shards.get(source.folder, []))
            save_dataset(out / source.folder, identity, entries, source.dataset)


class ToParquet(_Convert):
    """To files for others; each is read back and compared."""

    def write(self, unit: int, out: Path) -> Written:
        source, shard = self.units[unit]
        manifest = source.dataset.manifest
        path = out / source.folder / (stem(source.dataset.shard(shard)) + SUFFIX)
        sha256 = write_parquet(path, source.batches(shard), manifest.identity.sidecar)
        require_kept(source.dataset, shard, figures(chain.from_iterable(read_parquet(path, sha256))))
        return Written(files={path.relative_to(out).as_posix(): sha256})

    def finish(self, out: Path, written: Iterable[Written]) -> None:
        files = [sha256 for unit in written for sha256 in unit.files.values()]
        for source in self.sides:
            count = source.dataset.shard_count
            folder = out / source.folder
            copy_models(source.dataset, source.dataset.manifest.identity, folder)
            for name, table in source.dataset.manifest.tables.items():  # with them the files can be verified, and read
                own = table_file(name)
                link(source.dataset.folder / own, folder / own, table.sha256, table.bytes)
            Export(dataset=source.dataset.manifest, files=files[:count]).save(folder)
            files = files[count:]
