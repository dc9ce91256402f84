"""Set validation documents apart, by their hash.

Example:
  python -m pipeline split runs/stdlib/corpus/train --validation-fraction 0.02 --out runs/split

Without --seed a document falls on the side to which preprocess with the same fraction sends it: by the hash of its
text, or of its id (what preprocess does with --split-key and the id's column). Of a folder with train/ and validation/
both are taken together and split anew. Patches, sidecar and entropy model stay as they are.
"""

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.options import add_options, settings_of
from pipeline.records import Record, Records, sample_hash, splits_of
from pipeline.rewriting.dataset_rows import ShardByShard, Side, require_alike, shard_documents, sides_at, stem
from pipeline.rewriting.rewrite import Written, add_output_arguments, rewrite, save_dataset, show_result, workers_of
from pipeline.settings import SPLIT_NAMES, ReadSettings, SplitName
from pipeline.splits.marker import shard_stem
from shared.errors import DatasetError
from shared.io.files.digests import digest
from shared.settings import Settings
from shared.shards.content import add_content_hashes
from shared.shards.writer import ShardWriter


class HoldOutSettings(Settings):
    """Which documents are held out."""

    validation_fraction: float = Field(default=ReadSettings().validation_fraction, ge=0, le=1)
    key: Literal["content", "id"] = "content"
    seed: int | None = None
    """None: as preprocess draws; another number is another draw."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="a dataset, or the folder above its train/ and validation/"
    )
    add_options(
        parser,
        HoldOutSettings,
        {
            "validation_fraction": ("F", "share of documents that are held out"),
            "key": (None, "what is hashed"),
            "seed": ("N", "another draw than that of preprocess (default: the same)"),
        },
    )
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    settings = settings_of(arguments, HoldOutSettings)
    sides = sides_at(arguments.dataset)
    require_alike([side.dataset for side in sides], "split", "source")
    request = {
        "command": "split",
        "settings": settings.model_dump(),
        "sources": {side.folder: side.dataset.fingerprint for side in sides},
    }
    made = rewrite(arguments.out, request, lambda: HoldOut(tuple(sides), settings), workers_of(arguments))
    show_result(arguments.out, made)
    return 0


def side_of(record: Record, settings: HoldOutSettings) -> SplitName:
    """train or validation, wherever the document lies now."""
    reading = ReadSettings(validation_fraction=settings.validation_fraction)
    key = record.id.encode() if settings.key == "id" else None
    if settings.seed is not None:
        sampled = sample_hash(*((record.text, settings.seed, record.spans) if key is None else (key, settings.seed)))
        return "validation" if sampled < settings.validation_fraction * 2**64 else "train"
    return splits_of(Records.of([replace(record, split=None, key=key)]), reading)[0]


@dataclass(frozen=True)
class HoldOut(ShardByShard[Side]):
    """Each shard becomes one of train, one of validation, or both."""

    settings: HoldOutSettings
    title = "Splitting"

    def write(self, unit: int, out: Path) -> Written:
        side, shard = self.units[unit]
        manifest = side.dataset.manifest
        recorded = side.dataset.shard(shard)
        name = stem(recorded) if len(self.sides) == 1 else shard_stem(f"{unit:05d}", 0)
        writers: dict[SplitName, ShardWriter] = {}
        with ExitStack() as stack:
            for record, rows in shard_documents(side.dataset, shard):
                split = side_of(record, self.settings)
                if split not in writers:
                    writer = ShardWriter(out / split, name, manifest.identity.format, manifest.identity.sidecar)
                    writers[split] = stack.enter_context(writer)
                for row, last in rows:
                    writers[split].add_row(row, last)
        found = add_content_hashes(writer.entry.content_hash for writer in writers.values())
        if found != recorded.content_hash:
            path = side.dataset.folder / recorded.name
            raise DatasetError(f"{path}: its documents are not those that its manifest lists; verify {path.parent}")
        return Written(shards={split: [writer.entry] for split, writer in writers.items()})

    def finish(self, out: Path, written: Iterable[Written]) -> None:
        first = self.sides[0].dataset
        fingerprints = [side.dataset.fingerprint for side in self.sides]
        source = digest({"split": self.settings.model_dump(), "of": fingerprints})
        for name in SPLIT_NAMES:
            identity = first.manifest.identity.model_copy(update={"split": name, "source": source})
            entries = (entry for unit in written for entry in unit.shards.get(name, []))
            save_dataset(out / name, identity, entries, first)
