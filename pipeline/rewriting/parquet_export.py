"""What can be converted: datasets, and folders of Parquet files that were exported from one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.rewriting.dataset_rows import Side, found_figures, shard_batches, sides_at, stem
from pipeline.rewriting.parquet import EXPORT_NAME, SUFFIX, Export, load_export, read_parquet
from pipeline.settings import SPLIT_NAMES
from shared.errors import DatasetError
from shared.shards.content import ShardContent, check_rows, with_last
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.rows import collected

Format = Literal["arrow", "webdataset", "parquet"]


@dataclass(frozen=True)
class Source(Side):
    """A dataset, or what was exported from one: then only what its manifest said is there, not its own files."""

    export: Export | None = None

    @property
    def format(self) -> Format:
        return self.dataset.manifest.identity.format if self.export is None else "parquet"

    def batches(self, shard: int) -> Iterator[list[Row]]:
        """The rows of each record batch of a shard. Raises DatasetError."""
        if self.export is None:
            return shard_batches(self.dataset, shard)
        path = self.dataset.folder / (stem(self.dataset.shard(shard)) + SUFFIX)
        return read_parquet(path, self.export.files[shard])


def sources_at(path: Path) -> list[Source]:
    """What can be converted at a path. Raises DatasetError when there is nothing."""
    return exports_at(path) or [Source(side.folder, side.dataset) for side in sides_at(path)]


def exports_at(path: Path) -> list[Source]:
    """The export at a path, or those in its train/ and validation/. Raises DatasetError for one that is damaged."""
    found = []
    for name in ("", *SPLIT_NAMES):
        folder = path / name
        if (folder / EXPORT_NAME).is_file():
            export = load_export(folder)
            if len(export.files) != export.dataset.shard_count:
                raise DatasetError(f"{folder / EXPORT_NAME} is damaged: {len(export.files)} files for its shards")
            found.append(Source(name, Dataset(folder, export.dataset), export))
    return found


def figures(rows: Iterable[Row]) -> dict[str, Any]:
    """What the rows of a shard add up to, as the tables say it. Raises ValueError for a row out of place."""
    content = ShardContent()
    previous: Row | None = None
    for some in collected(with_last(rows)):
        check_rows(previous, some)
        content.add(some)
        previous = some.row(len(some) - 1)
    return found_figures(content)
