"""Law 9: what a rank or a loader worker holds does not grow with documents or shards."""

import os
import pickle
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.pack_examples import in_parts, make_dataset, pack_digest, random_documents
from helpers.shard_examples import STATIC, document

from shared.shards.index import index_name
from shared.shards.manifest import DatasetIdentity
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from trainer.data.documents import Document
from trainer.data.loader import PackLoader
from trainer.data.packing import slices
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.slices import SliceReader

FEW, MANY = 70, 7000
"""Shards: a group has 64."""
IDENTITY = DatasetIdentity(
    split="train", format="arrow", sidecar="none", patching=STATIC, entropy_model=None, source="a test"
)


def linked_dataset(folder: Path, shards: int, subsets: int = 2) -> Path:
    """A dataset of so many shards, all links to one, with documents of all subsets."""
    rows = [document(f"{n}", f"{n % subsets:04d}", b"some text " * (1 + n % 3)) for n in range(max(40, subsets))]
    entry = write_shard(folder, "base", rows, "arrow")
    entries = []
    for number in range(shards):
        name = f"shard-{number:05d}.arrow"
        os.link(folder / entry.name, folder / name)
        os.link(folder / index_name(entry.name), folder / index_name(name))
        entries.append(entry.model_copy(update={"name": name}))
    commit_dataset(folder, IDENTITY, entries)
    return folder


def held_bytes(folder: Path) -> int:
    """The most that a loader of this process holds from opening the dataset until it has built some packs."""
    np.zeros(1).sum()
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    packs = iter(PackLoader(open_dataset(folder), PackLimits(256, 128), 4, streams=4))
    for _ in range(40):
        next(packs)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most + pa.total_allocated_bytes() - before


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("linked")
    return {shards: linked_dataset(folder / str(shards), shards) for shards in (FEW, MANY)}


@pytest.mark.drill
def test_a_loader_holds_no_more_of_a_hundred_times_as_many_shards(folders: dict[int, Path]) -> None:
    held_bytes(folders[FEW])  # what is imported and cached by the first use
    assert held_bytes(folders[MANY]) < 1.2 * held_bytes(folders[FEW])


def test_rows_of_documents_that_have_several_are_forgotten_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one document of three rows at a time here, though 16 streams go on with as many documents."""
    stored = [part for row in random_documents(3, 40) for part in in_parts(row)]
    dataset = make_dataset(tmp_path, [stored])

    rows, held = SliceReader.rows, list[int]()

    def counted(reader: SliceReader, document: Document) -> list[slices.DocumentRow]:
        found = rows(reader, document)
        held.append(sum(map(len, reader._rows.values())))
        return found

    def digests() -> list[str]:
        return [pack_digest(pack) for pack in islice(PackLoader(dataset, PackLimits(64, 64), 2, streams=16), 60)]

    wanted = digests()
    monkeypatch.setattr(SliceReader, "rows", counted)
    monkeypatch.setattr(slices, "ROWS_HELD", 5)
    assert digests() == wanted
    assert 3 <= max(held) <= 5


def test_what_is_sent_to_a_loader_worker_does_not_grow_with_shards(folders: dict[int, Path]) -> None:
    sizes = {}
    for shards, folder in folders.items():
        dataset = open_dataset(folder)
        dataset.runs(0)
        dataset.shard_index(shards - 1)
        sizes[shards] = len(pickle.dumps(dataset))
    assert sizes[MANY] < sizes[FEW] + 200


def test_a_cursor_does_not_grow_with_shards(folders: dict[int, Path]) -> None:
    sizes = {}
    for shards, folder in folders.items():
        loader = PackLoader(open_dataset(folder), PackLimits(256, 128), 4, streams=4)
        packs = iter(loader)
        for _ in range(8):
            next(packs)
        sizes[shards] = len(loader.cursor.model_dump_json())
    assert sizes[MANY] < sizes[FEW] + 100


def test_a_subset_costs_a_loader_a_few_kilobytes(tmp_path: Path) -> None:
    few, many = 50, 250
    held = [held_bytes(linked_dataset(tmp_path / str(subsets), 4, subsets)) for subsets in (few, many)]
    assert (held[1] - held[0]) / (many - few) < 3000
