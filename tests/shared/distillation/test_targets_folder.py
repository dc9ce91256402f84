"""Targets in a folder: found again by row, tied to the text and to nothing else, and never read from a damaged file."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers.dataset_examples import SPACE, document, documents, in_two_parts, save_dataset
from helpers.refitted import fit_targets
from helpers.target_examples import document_texts, targets_of, write_targets

from shared.distillation.stored_targets import StoredTargets, TargetFormat
from shared.distillation.targets_folder import open_targets
from shared.distillation.targets_writer import TargetsWriter
from shared.errors import DatasetError, IdentityError
from shared.io.files.digests import file_sha256
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset

FORM = TargetFormat(top=4)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    save_dataset(tmp_path / "data", documents(SPACE), SPACE)
    return open_dataset(tmp_path / "data")


def files(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", [FORM, TargetFormat(top=2, dtype="float32")])
def test_each_row_has_the_targets_of_its_text(dataset: Dataset, tmp_path: Path, form: TargetFormat) -> None:
    """Of a document in parts each row has its own, and the last one that of EOS."""
    targets = pickle.loads(pickle.dumps(write_targets(tmp_path / "targets", dataset, form)))
    assert targets.top == form.top
    for shard in range(dataset.shard_count):
        index, row, count = dataset.shard_index(shard), 0, 0
        for text in document_texts(dataset, shard):
            wanted, at = targets_of(text, form), 0
            while not at or not index.last[row - 1]:
                symbols, logs, end, rest = targets.row(shard, row)
                stop = at + int(index.bytes[row]) + int(index.last[row])
                np.testing.assert_array_equal(symbols, wanted.symbols[at:stop])
                np.testing.assert_array_equal(logs, wanted.logs[at:stop])
                np.testing.assert_array_equal(end, wanted.end[at:stop])
                np.testing.assert_array_equal(rest, wanted.rest[at:stop])
                assert not symbols.flags.owndata
                part = slice(min(1, len(symbols)), len(symbols))
                _, kept = targets.next_bytes(shard, row, part.start, part.stop)
                own = StoredTargets(symbols[part], logs[part], end[part], rest[part]).next_bytes()
                np.testing.assert_array_equal(kept, own)
                row, at = row + 1, stop
            assert at == len(text) + 1
            count += at
        assert row == len(index)
        assert targets.shard(shard).targets == count
    assert targets.manifest.targets == dataset.totals.bytes + dataset.totals.documents
    assert 0 < targets.manifest.largest_rest < 1


def test_the_same_targets_give_the_same_bytes_however_they_arrive(dataset: Dataset, tmp_path: Path) -> None:
    write_targets(tmp_path / "one", dataset)
    with TargetsWriter(tmp_path / "two", dataset, 0, FORM) as writer:
        for text in document_texts(dataset, 0):
            found = targets_of(text, FORM)
            for begin in range(0, len(found.symbols), 7):
                part = slice(begin, begin + 7)
                writer.add(StoredTargets(found.symbols[part], found.logs[part], found.end[part], found.rest[part]))
    assert writer.entry.sha256 == file_sha256(tmp_path / "one" / writer.entry.name)
    held = safetensors.numpy.load_file(tmp_path / "one" / writer.entry.name)
    assert held["symbols"].shape == (writer.entry.targets, 4), "as any program reads them"


def test_a_shard_with_too_few_or_too_many_targets_leaves_no_file(dataset: Dataset, tmp_path: Path) -> None:
    found = targets_of(next(document_texts(dataset, 0)), FORM)

    def write(times: int) -> None:
        with TargetsWriter(tmp_path / "out", dataset, 0, FORM) as writer:
            for _ in range(times):
                writer.add(found)

    for times in (1, 40):
        with pytest.raises(ValueError, match="targets"):
            write(times)
        assert not list((tmp_path / "out").iterdir())


def test_other_boundaries_and_other_parts_have_the_same_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What recut changes of a shard: patches, where a long document is divided, and the batches of its subsets."""
    rows = [
        document("a", "prose", b"in the first place " * 9, SPACE),
        document("b", "code", b"return an int", SPACE),
        document("c", "prose", b"and in another " * 8, SPACE),
    ]
    save_dataset(tmp_path / "data", [[rows[0], rows[1], *in_two_parts(rows[2])]], SPACE)
    write_targets(tmp_path / "targets", open_dataset(tmp_path / "data"))
    monkeypatch.setattr("shared.shards.writer.BATCH_BYTES", 100)
    save_dataset(tmp_path / "other", [[*in_two_parts(rows[0]), rows[1], rows[2]]], SPACE)
    other = open_dataset(tmp_path / "other")
    orders = [[*document_texts(open_dataset(tmp_path / name), 0)] for name in ("data", "other")]
    assert orders[0] != orders[1], "the batches of subsets have another order"
    targets, row = open_targets(tmp_path / "targets", other), 0
    for text in orders[1]:
        found = [targets.row(0, row)[0]]
        while not other.shard_index(0).last[row]:
            row += 1
            found.append(targets.row(0, row)[0])
        np.testing.assert_array_equal(np.concatenate(found), targets_of(text, FORM).symbols)
        row += 1


def test_those_of_other_documents_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    write_targets(tmp_path / "targets", dataset)
    rows = documents(SPACE)
    save_dataset(tmp_path / "swapped", rows[::-1], SPACE)
    with pytest.raises(IdentityError, match="shard-00000"):
        open_targets(tmp_path / "targets", open_dataset(tmp_path / "swapped"))
    save_dataset(tmp_path / "fewer", rows[:1], SPACE)
    with pytest.raises(IdentityError, match="fewer"):
        open_targets(tmp_path / "targets", open_dataset(tmp_path / "fewer"))
    # The same documents in another order have the same content hash, and targets elsewhere.
    save_dataset(tmp_path / "turned", [rows[0], [*rows[1][2:], rows[1][1], *rows[1][:1]]], SPACE)
    targets = open_targets(tmp_path / "targets", open_dataset(tmp_path / "turned"))
    assert len(targets.row(0, 0)[0])
    with pytest.raises(IdentityError, match="shard-00001"):
        targets.row(1, 0)
    with pytest.raises(DatasetError, match="no targets of the split train"):
        open_targets(tmp_path / "data", dataset)


@pytest.mark.parametrize(
    ("name", "value", "problem"), [("symbols", 260, "symbol 260"), ("logs", np.nan, "logs"), ("rest", np.inf, "rest")]
)
def test_values_that_are_no_targets_are_refused_where_they_are_read(
    dataset: Dataset, tmp_path: Path, name: str, value: float, problem: str
) -> None:
    path = tmp_path / "targets" / "shard-00000.targets"
    write_targets(path.parent, dataset)
    arrays = safetensors.numpy.load_file(path)
    arrays[name][3] = value
    safetensors.numpy.save_file(arrays, path)
    fit_targets(path.parent)
    targets = open_targets(path.parent, dataset)
    with pytest.raises(DatasetError, match=f"shard-00000.*{problem}"):
        targets.next_bytes(0, 0, 3, 4)
    assert targets.next_bytes(0, 0, 0, 3)[0].shape == (3, 4)


def test_a_damaged_file_is_named(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    write_targets(folder, dataset)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for name in ("shard-00001.targets", "shards.arrow"):
        path = folder / name
        for damaged in (whole[path][:-1], whole[path][:-1] + b"\x55", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(DatasetError, match=name):
                open_targets(folder, dataset).row(1, 0)
        path.write_bytes(whole[path])
    manifest = json.loads(whole[folder / "targets.json"])
    (folder / "targets.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(DatasetError, match="format version 2"):
        open_targets(folder, dataset)
