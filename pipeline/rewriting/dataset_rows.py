"""What finished datasets hold, shard by shard, in memory for one record batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.read.formats.datasets import shard_records
from pipeline.records import Record
from shared.errors import DatasetError, IdentityError
from shared.io.files.digests import differences, in_short
from shared.randomness import Permutation, stream_key
from shared.shards.content import ShardContent, with_last
from shared.shards.dataset import Dataset, columns_row
from shared.shards.document import Row
from shared.shards.formats.sidecar import sidecar_name
from shared.shards.manifest import ShardFiles, summed
from shared.shards.open import find_datasets, open_dataset


@dataclass(frozen=True)
class Side:
    """One dataset of those at a path."""

    folder: str
    """Its folder below the path: train or validation, or empty when the path is the dataset itself."""
    dataset: Dataset


S = TypeVar("S", bound=Side)


@dataclass(frozen=True)
class ShardByShard(Generic[S]):
    """Work on some datasets whose units are their shards."""

    sides: tuple[S, ...]

    @cached_property
    def units(self) -> list[tuple[S, int]]:
        """Each shard by its dataset and its number there."""
        return [(side, shard) for side in self.sides for shard in range(side.dataset.shard_count)]

    @property
    def sizes(self) -> list[int]:
        """Bytes of text of each."""
        return [size for side in self.sides for size in side.dataset.text_bytes()]


def sides_at(path: Path) -> list[Side]:
    """The dataset at a path, or those in its train/ and validation/. Raises DatasetError when there is none."""
    return [Side("" if folder == path else folder.name, open_dataset(folder)) for folder in find_datasets(path)]


def require_alike(datasets: Sequence[Dataset], *ignored: str) -> None:
    """Raises IdentityError that lists how the identities of datasets differ, but for the ignored keys."""
    first = datasets[0]
    for dataset in datasets[1:]:
        ours, theirs = (d.manifest.identity.model_dump(exclude=set(ignored)) for d in (first, dataset))
        if lines := differences(ours, theirs):
            lines = [line.replace("recorded ", "").replace(", now ", " and ") for line in lines]
            raise IdentityError(f"{first.folder} and {dataset.folder} were not made alike: {in_short(lines)}")


def sampled_shards(dataset: Dataset, most_bytes: int) -> list[int]:
    """Shards in a seeded order until they have so many bytes of text; at least one, if there are any."""
    order, chosen, held = Permutation(dataset.shard_count, stream_key(0, "recut")), list[int](), 0
    for turn in range(dataset.shard_count):
        if held >= most_bytes:
            break
        chosen.append(int(order(np.array([turn]))[0]))
        held += dataset.shard(chosen[-1]).totals.bytes
    return chosen


def recorded_figures(dataset: Dataset, number: int) -> dict[str, Any]:
    """What the tables say that the rows of a shard add up to."""
    shard, histograms = dataset.shard(number), dataset.histograms(number)
    if shard.sidecar_sha256 is None:
        del histograms["entropy_histogram"]  # counted when the entropies were there, and they are no longer
    return {"content_hash": shard.content_hash, "totals": shard.totals, **histograms}


def found_figures(content: ShardContent) -> dict[str, Any]:
    """The same of rows that have been read."""
    figures = content.figures()
    return figures | {"totals": summed(figures.pop("subsets").values())}


def require_kept(dataset: Dataset, number: int, found: Mapping[str, Any]) -> None:
    """Raises DatasetError unless these figures of a shard are what they were: nothing is lost on the way (law 4)."""
    for key, old in recorded_figures(dataset, number).items():
        if key in found and found[key] != old:
            raise DatasetError(
                f"{dataset.shard_path(number)}: {key} is {found[key]} after it was read, its table says {old}; "
                f"verify {dataset.folder}"
            )


def stem(shard: ShardFiles) -> str:
    """The name of a shard without what its format adds."""
    return shard.name.rpartition(".")[0]


def shard_batches(dataset: Dataset, shard: int) -> Iterator[list[Row]]:
    """The rows of each record batch of a shard, with entropies in nats where the dataset keeps them.

    The index is not asked, so that a damaged one can be made anew. Raises DatasetError for a shard or a sidecar that is
    missing or damaged.
    """
    dataset = _anew(dataset)
    for batch in range(dataset.batch_count(shard)):
        rows = stored_rows(dataset, shard, batch)
        if not all(map(_has_its_entropies, rows)):
            name = sidecar_name(dataset.shard(shard).name)
            raise DatasetError(f"{dataset.folder / name}: batch {batch} is not that of the shard")
        yield rows


def stored_rows(dataset: Dataset, shard: int, batch: int) -> list[Row]:
    """The rows of a record batch, whatever the index says, with entropies in nats where the dataset keeps them.

    Raises DatasetError, also where shard and sidecar have not as many.
    """
    columns, entry = dataset.stored_batch(shard, batch), dataset.shard(shard)
    if entry.sidecar_sha256 is None:
        return [columns_row(columns, row) for row in range(len(columns))]
    values = dataset.stored_entropies(shard, batch)
    if len(values) != len(columns):
        name = dataset.folder / sidecar_name(entry.name)
        raise DatasetError(f"{name}: batch {batch} has {len(values)} rows, the shard {len(columns)}")
    return [columns_row(columns, row, own) for row, own in enumerate(values)]


def _has_its_entropies(row: Row) -> bool:
    return row.entropies is None or len(row.entropies) == row.size + (row.part == 0)


def shard_rows(dataset: Dataset, shard: int) -> Iterator[tuple[Row, bool]]:
    """The rows of a shard in order, each with whether its document ends there."""
    return _rows(_anew(dataset), shard)


def shard_documents(dataset: Dataset, shard: int) -> Iterator[tuple[Record, Iterator[tuple[Row, bool]]]]:
    """Each document of a shard as a record and as its rows, which must be used up before the next document."""
    dataset = _anew(dataset)
    rows = _rows(dataset, shard)
    for record in shard_records(dataset, shard, 0, len(dataset.shard_index(shard)), meta=True):
        yield record, _document(rows)


def _anew(dataset: Dataset) -> Dataset:
    """The dataset without what it remembers of the shards that it has read, so that memory does not grow with them."""
    return Dataset(dataset.folder, dataset.manifest)


def _rows(dataset: Dataset, shard: int) -> Iterator[tuple[Row, bool]]:
    scored, batches = dataset.shard(shard).sidecar_sha256 is not None, range(dataset.batch_count(shard))
    yield from with_last(row for batch in batches for row in dataset.batch_rows(shard, batch, scored))


def _document(rows: Iterator[tuple[Row, bool]]) -> Iterator[tuple[Row, bool]]:
    for row, last in rows:
        yield row, last
        if last:
            return
