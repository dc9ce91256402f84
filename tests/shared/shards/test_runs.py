"""Runs say what each subset has in each record batch, and where."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from shared.shards import writer
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.in_memory import InMemoryDataset
from tests.helpers.pack_examples import NONE, SPACE, in_parts, make_dataset, random_documents, with_spans
from trainer.data.mixture import Mixture


def shards(count: int = 3) -> list[list[Row]]:
    """Documents of three subsets, some with spans and some in several rows."""
    rng = np.random.default_rng(0)
    documents = random_documents(1, 90)
    documents[::7] = [with_spans(row, rng) for row in documents[::7]]
    rows = [in_parts(row) if number % 5 == 0 else [row] for number, row in enumerate(documents)]
    return [[row for parts in rows[n::count] for row in parts] for n in range(count)]


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(writer, "BATCH_BYTES", 200)  # some batches a shard; documents go on into the next
    return make_dataset(tmp_path, shards(), specials=("user", "assistant", "end"))


def test_runs_are_the_rows_of_a_subset_that_begin_in_a_batch(dataset: Dataset) -> None:
    """Row by row: each lies in the run of its subset and of the batch in which its document begins."""
    found = defaultdict(list)
    for code, name in enumerate(dataset.subset_names):
        runs = dataset.runs(code)
        for shard, batch, row, rows in zip(runs.shard, runs.batch, runs.row, runs.rows):
            found[int(shard)] += [(number, name, int(batch)) for number in range(row, row + rows)]
    for shard in range(dataset.shard_count):
        index = dataset.shard_index(shard)
        begun, expected = 0, []
        for row in range(len(index)):
            begun = begun if index.part[row] else int(index.batch[row])
            expected.append((row, index.subset_names[index.subset[row]], begun))
        assert sorted(found[shard]) == expected


def test_neighbouring_runs_differ_in_subset_or_batch(dataset: Dataset) -> None:
    for code in range(len(dataset.subset_names)):
        runs = dataset.runs(code)
        ends = runs.row + runs.rows
        follows = (ends[:-1] == runs.row[1:]) & (runs.shard[:-1] == runs.shard[1:])
        assert (runs.batch[1:][follows] != runs.batch[:-1][follows]).all()


def test_runs_add_up_to_the_totals_of_their_subset(dataset: Dataset) -> None:
    for code, totals in enumerate(dataset.subsets.values()):
        runs = dataset.runs(code)
        assert len(np.unique(runs.shard)) == 3
        for key in ("documents", "rows", "tokens", "patches", "targets"):
            assert getattr(runs, key).sum() == getattr(totals, key), key
        assert (runs.documents >= 1).all()


@pytest.mark.parametrize("patching", [SPACE, NONE], ids=["patched", "unpatched"])
def test_documents_in_memory_have_the_runs_of_a_dataset_of_them(tmp_path: Path, patching) -> None:
    rows = sorted(random_documents(2, 50, patching=patching), key=lambda row: row.subset)  # as a writer groups them
    held, stored = InMemoryDataset(rows, patching), make_dataset(tmp_path, [rows], patching=patching)
    for code in range(3):
        ours, theirs = held.runs(code), stored.runs(code)
        assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in vars(ours))


def test_a_mixture_shares_the_runs_of_its_datasets(tmp_path: Path) -> None:
    datasets = {name: make_dataset(tmp_path / name, shards(count)) for name, count in (("x", 3), ("y", 2))}
    mixture = Mixture(datasets)
    assert mixture.shard_count == 5
    for code, name in enumerate(mixture.subset_names):
        dataset, subset = name.split("/")
        runs, stored = mixture.runs(code), datasets[dataset].runs("abc".index(subset))
        assert np.shares_memory(runs.targets, stored.targets)
        assert (runs.first_shard, runs.shards) == {"x": (0, 3), "y": (3, 2)}[dataset]
    for shard in range(5):
        index = datasets["y"].shard_index(shard - 3) if shard > 2 else datasets["x"].shard_index(shard)
        assert np.array_equal(mixture.shard_index(shard).bytes, index.bytes)
