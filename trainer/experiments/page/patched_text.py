"""One text of the validation split as each system of an experiment cuts it; from its datasets, no model is run.

FOLDER/patches.json keeps it, so that a page can be made where the datasets are not.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shared.errors import DatasetError
from shared.io.files.json_reader import read_json
from shared.settings import Settings
from shared.shards.dataset import Dataset, columns_row
from shared.shards.document import Row
from shared.shards.open import open_dataset
from trainer.data.splits import VALIDATION_SPLIT
from trainer.experiments.results.results import Results
from trainer.provenance.identity import RESOLVED_NAME
from trainer.provenance.json_records import keep, kept

PICTURE_NAME = "patches.json"
LENGTH = 288
"""Bytes of text that are shown."""


class Cut(Settings):
    """How one system cuts the text."""

    system: str
    starts: tuple[int, ...]
    """Places of bytes at which patches begin, ascending."""


class Picture(Settings):
    """A text and its cuts."""

    document: str
    subset: str
    text: str
    """A character stands for the byte of the same number (Latin-1)."""
    cuts: tuple[Cut, ...]

    @property
    def bytes(self) -> bytes:
        return self.text.encode("latin-1")


def picture_of(datasets: Mapping[str, Dataset]) -> Picture | None:
    """A text of the largest subset that all datasets cut into patches have; None when there is none.

    Raises DatasetError.
    """
    patched = {name: dataset for name, dataset in datasets.items() if dataset.manifest.identity.patching.rule != "none"}
    if not patched:
        return None
    row = _chosen(next(iter(patched.values())))
    if row is None:
        return None
    cuts = []
    for name, dataset in patched.items():
        same = next((one for one in dataset.rows() if (one.id, one.text) == (row.id, row.text)), None)
        if same is not None and same.patch_lengths is not None:
            # The first patch is that of BOS, and the token after it is byte 0.
            starts = np.cumsum(same.patch_lengths[:-1], dtype=np.int64) - 1
            cuts.append(Cut(system=name, starts=tuple(starts[starts < min(len(row.text), LENGTH)].tolist())))
    return Picture(document=row.id, subset=row.subset, text=row.text[:LENGTH].decode("latin-1"), cuts=tuple(cuts))


def _chosen(dataset: Dataset) -> Row | None:
    """The first whole plain document of the largest subset that is long enough; of shorter ones the longest."""
    if not dataset.subsets:
        return None
    largest = max(dataset.subsets, key=lambda name: dataset.subsets[name].bytes)
    runs = dataset.runs(dataset.subset_names.index(largest))
    longest, place = 0, None
    for shard, row, rows in zip(runs.shard.tolist(), runs.row.tolist(), runs.rows.tolist()):
        index, own = dataset.shard_index(shard), slice(row, row + rows)
        whole = (index.part[own] == 0) & index.last[own] & (index.tokens[own] == index.bytes[own])
        sizes = np.where(whole, np.minimum(index.bytes[own], LENGTH), 0)
        if sizes.max() > longest:
            found = int(sizes.argmax())
            longest, place = int(sizes[found]), (shard, int(index.batch[row + found]), int(index.row[row + found]))
        if longest == LENGTH:
            break
    if place is None:
        return None
    shard, batch, number = place
    return columns_row(dataset.batch(shard, batch), number)


def datasets_of(results: Results, folder: Path) -> dict[str, Dataset]:
    """The validation split of each system's first run, as far as it is there."""
    found: dict[str, Dataset] = {}
    for run in results.runs:
        if run.system not in found and (path := _data_path(folder / run.folder)) is not None:
            found[run.system] = open_dataset(path / VALIDATION_SPLIT)
    return found


def _data_path(run: Path) -> Path | None:
    """Where the data of a run lie, also when the experiment was moved as a whole; None when they are not there."""
    try:
        config = read_json(run / RESOLVED_NAME)
        data, out = Path(config["data"]["path"]), config["run"]["out"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for path in (run / os.path.relpath(data, out), data):
        if (path / VALIDATION_SPLIT).exists():
            return path
    return None


def kept_picture(results: Results, folder: Path) -> Picture | None:
    """The picture of an experiment: made of its datasets if they are there, else the one that was kept.

    Raises ConfigError when what was kept cannot be read, OSError.
    """
    try:
        picture = picture_of(datasets_of(results, folder))
    except DatasetError:
        picture = None
    if picture is not None:
        keep(picture, folder / PICTURE_NAME)
        return picture
    return kept(folder / PICTURE_NAME, Picture)
