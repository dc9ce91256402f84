"""merge makes one dataset of several, file by file, when they were made alike."""

from pathlib import Path

import pytest
from helpers.dataset_examples import BYTE, ENTROPY, STATIC, document, documents, save_dataset
from helpers.rewriting_examples import make_place, run, scored

from shared.io.files.digests import file_sha256
from shared.shards.content import add_content_hashes
from shared.shards.manifest import ShardEntry, summed
from shared.shards.open import open_dataset


def two(folder: Path, format="arrow", sidecar="uint8") -> None:
    save_dataset(folder / "a", documents(ENTROPY), ENTROPY, format, sidecar)
    save_dataset(folder / "b", [[document("x", "new", b"another text " * 9, ENTROPY)]], ENTROPY, format, sidecar)


@pytest.fixture(scope="module", params=["arrow", "webdataset"])
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, a and b, and what was merged of them, out."""
    folder = tmp_path_factory.mktemp("merged")
    two(folder, request.param)
    assert run("merge", folder / "a", folder / "b", "--out", folder / "out", "--workers", 1) == 0
    return folder


def entries_of(merged: Path) -> tuple[list[ShardEntry], list[ShardEntry]]:
    """Shards of the result, and of the parts."""
    folders = (merged / "out", merged / "a", merged / "b")
    ours, *parts = ([dataset.entry(n) for n in range(dataset.shard_count)] for dataset in map(open_dataset, folders))
    return ours, [entry for part in parts for entry in part]


def test_rows_are_those_of_the_parts(merged: Path) -> None:
    texts = {name: [row.text for row in open_dataset(merged / name).rows()] for name in ("a", "b", "out")}
    assert texts["out"] == texts["a"] + texts["b"]


def test_files_are_those_of_the_parts_numbered_anew(merged: Path) -> None:
    found, parts = entries_of(merged)
    assert [entry.sha256 for entry in found] == [entry.sha256 for entry in parts]
    assert [Path(entry.name).stem for entry in found] == [f"shard-{n:05d}" for n in range(3)]


def test_indexes_and_sidecars_are_those_that_are_recorded(merged: Path) -> None:
    for entry in entries_of(merged)[0]:
        assert file_sha256(merged / "out" / f"{entry.name}.index") == entry.index_sha256
        assert file_sha256(merged / "out" / f"{entry.name}.entropy") == entry.sidecar_sha256


def test_content_is_that_of_the_parts(merged: Path) -> None:
    found, parts = (add_content_hashes(entry.content_hash for entry in entries) for entries in entries_of(merged))
    assert found == parts


def test_the_result_has_the_patching_of_the_parts_and_a_source_of_its_own(merged: Path) -> None:
    first, second, found = (open_dataset(merged / name).manifest.identity for name in ("a", "b", "out"))
    assert found.source not in {first.source, second.source}
    assert found.patching == ENTROPY


def test_verify_misses_nothing_but_the_entropy_model(merged: Path, capsys) -> None:
    run("verify", merged / "out")
    assert len([line for line in capsys.readouterr().out.splitlines() if "needs an entropy model" in line]) == 1


@pytest.fixture
def unlinked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The command without its last argument, where files cannot be linked."""

    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr("os.link", refuse)
    two(tmp_path)
    return ("merge", tmp_path / "a", tmp_path / "b", "--workers", 1, "--out")


def test_files_are_copied_where_they_cannot_be_linked(unlinked: tuple[object, ...], tmp_path: Path) -> None:
    assert run(*unlinked, tmp_path / "out") == 0
    copy = tmp_path / "out" / "shard-00002.arrow"
    assert copy.stat().st_nlink == 1
    assert file_sha256(copy) == file_sha256(tmp_path / "b" / "shard-00000.arrow")


def test_copies_are_checked(unlinked: tuple[object, ...], tmp_path: Path, capsys) -> None:
    path = tmp_path / "b" / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run(*unlinked, tmp_path / "out") == 2
    assert f"{path} is damaged" in capsys.readouterr().err


def test_a_file_that_is_gone_is_named(unlinked: tuple[object, ...], tmp_path: Path, capsys) -> None:
    path = tmp_path / "b" / "shard-00000.arrow"
    path.unlink()
    assert run(*unlinked, tmp_path / "out") == 2
    assert f"{path} is missing" in capsys.readouterr().err


def test_links_are_checked_too(tmp_path: Path, capsys) -> None:
    two(tmp_path)
    path = tmp_path / "b" / "shard-00000.arrow.entropy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--workers", 1) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_are_merged_side_by_side_with_their_entropy_model(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place")
    first = scored(place, tmp_path / "first", "--rule", "entropy", "--theta", 2)
    lines = (place / "a.jsonl").read_text().splitlines(keepends=True)
    (place / "a.jsonl").write_text("".join(lines[:20]))
    second = scored(place, tmp_path / "second", "--rule", "entropy", "--theta", 2)
    assert run("merge", first, second, "--out", tmp_path / "out", "--workers", 2) == 0
    for name in ("train", "validation"):
        totals = [open_dataset(folder / name).manifest.totals for folder in (first, second, tmp_path / "out")]
        assert summed(totals[:2]) == totals[2]
        assert open_dataset(tmp_path / "out" / name).manifest.identity.split == name
    train, validation = (open_dataset(tmp_path / "out" / name).manifest.identity for name in ("train", "validation"))
    assert train.source == validation.source, "the trainer refuses splits that were not made together"
    assert run("verify", tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a", "two datasets or more"),
        ("a other-rule", "patching.rule: 'static' and 'byte'; patching.stride: 4 and None"),
        ("a other-format", "format: 'arrow' and 'webdataset'"),
        ("a other-split", "split: 'train' and 'validation'"),
        ("a a", "the same dataset 2 times"),
        ("a run", "the same splits"),
        ("a nothing", "nothing does not exist"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path: Path, capsys, names: str, message: str) -> None:
    save_dataset(tmp_path / "a", documents(STATIC), STATIC)
    save_dataset(tmp_path / "other-rule", documents(BYTE), BYTE)
    save_dataset(tmp_path / "other-format", documents(STATIC), STATIC, "webdataset")
    save_dataset(tmp_path / "other-split", documents(STATIC), STATIC, split="validation")
    save_dataset(tmp_path / "run" / "train", documents(STATIC), STATIC)
    assert run("merge", *(tmp_path / name for name in names.split()), "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
