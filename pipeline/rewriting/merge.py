"""Datasets that were made alike become one: shards get new numbers, their files are linked or copied."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.executors.units import Workers
from pipeline.rewriting.dataset_rows import require_alike, sides_at
from pipeline.rewriting.rewrite import Written, link, rewrite, save_dataset
from pipeline.settings import PipelineError
from pipeline.splits.marker import shard_stem
from shared.io.files.digests import digest
from shared.shards.dataset import Dataset, files_of
from shared.shards.writer import SUFFIXES


def merge(datasets: Sequence[Path], out: Path | str, workers: Workers = 1) -> bool:
    """Merge datasets, or folders above train/ and validation/, into ``out``; False if it holds the result already.

    Raises PipelineError when they do not fit together, IdentityError when they were not made alike, DatasetError.
    """
    parts = parts_of(datasets)
    request = {
        "command": "merge",
        "sources": {folder: [dataset.fingerprint for dataset in found] for folder, found in parts.items()},
    }
    return rewrite(out, request, lambda: Merge(parts), workers)


def parts_of(paths: Sequence[Path]) -> dict[str, list[Dataset]]:
    """By folder of the result, the datasets to be merged there.

    Raises PipelineError when they do not fit together, IdentityError when they were not made alike.
    """
    if len(paths) < 2:
        raise PipelineError("merge needs two datasets or more")
    parts: dict[str, list[Dataset]] = {}
    folders = set()
    for path in paths:
        sides = sides_at(path)
        folders.add(tuple(side.folder for side in sides))
        for side in sides:
            parts.setdefault(side.folder, []).append(side.dataset)
    if len(folders) > 1:
        found = "; ".join(" and ".join(name or "a dataset itself" for name in names) for names in sorted(folders))
        raise PipelineError(f"all must hold the same splits, but they hold: {found}")
    for datasets in parts.values():
        _require_mergeable(datasets)
    return parts


def _require_mergeable(datasets: Sequence[Dataset]) -> None:
    require_alike(datasets, "source")
    for fingerprint, count in Counter(dataset.fingerprint for dataset in datasets).items():
        if count > 1:
            same = ", ".join(str(dataset.folder) for dataset in datasets if dataset.fingerprint == fingerprint)
            raise PipelineError(f"{same}: the same dataset {count} times; its documents would be doubled")


@dataclass(frozen=True)
class Merge:
    """Each shard under its new number, one a unit."""

    parts: dict[str, list[Dataset]]
    title = "Merging"

    @cached_property
    def _units(self) -> list[tuple[str, int, Dataset, int]]:
        """Folder and number in the result, dataset and number there."""
        return [
            (folder, number, dataset, shard)
            for folder, datasets in self.parts.items()
            for number, (dataset, shard) in enumerate(
                (dataset, shard) for dataset in datasets for shard in range(dataset.shard_count)
            )
        ]

    @property
    def sizes(self) -> list[int]:
        return [size for datasets in self.parts.values() for dataset in datasets for size in dataset.text_bytes()]

    def write(self, unit: int, out: Path) -> Written:
        folder, number, dataset, shard = self._units[unit]
        entry = dataset.entry(shard)
        renamed = entry.model_copy(
            update={"name": shard_stem(f"{number:05d}", 0) + SUFFIXES[dataset.manifest.identity.format]}
        )
        for (old, sha256, size), (new, *_) in zip(files_of(entry), files_of(renamed)):
            link(dataset.folder / old, out / folder / new, sha256, size)
        return Written(shards={folder: [renamed]})

    def finish(self, out: Path, written: Iterable[Written]) -> None:
        for folder, datasets in self.parts.items():
            # Of what the datasets were made from, not of their fingerprints: both splits must say the same.
            source = digest({"merge": [dataset.manifest.identity.source for dataset in datasets]})
            identity = datasets[0].manifest.identity.model_copy(update={"source": source})
            entries = (entry for unit in written for entry in unit.shards.get(folder, []))
            save_dataset(out / folder, identity, entries, datasets[0])
