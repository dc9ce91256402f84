"""merge makes one dataset of several, file by file, when they were made alike."""

from pathlib import Path

import pytest
from helpers.dataset_examples import BYTE, ENTROPY, STATIC, document, documents, save_dataset
from helpers.rewriting_examples import make_place, run, scored

from shared.io.identity import file_sha256
from shared.shards.content import add_content_hashes
from shared.shards.open import open_dataset


def two(folder: Path, format="arrow", sidecar="uint8") -> None:
    save_dataset(folder / "a", documents(ENTROPY), ENTROPY, format, sidecar)
    save_dataset(folder / "b", [[document("x", "new", b"another text " * 9, ENTROPY)]], ENTROPY, format, sidecar)


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_rows_and_files_are_those_of_the_parts(tmp_path: Path, capsys, format) -> None:
    two(tmp_path, format)
    assert run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--workers", 1) == 0
    parts, merged = [open_dataset(tmp_path / name) for name in "ab"], open_dataset(tmp_path / "out")
    assert [row.text for row in merged.rows()] == [row.text for part in parts for row in part.rows()]
    entries = [entry for part in parts for entry in part.manifest.shards]
    assert [entry.sha256 for entry in merged.manifest.shards] == [entry.sha256 for entry in entries]
    assert [Path(entry.name).stem for entry in merged.manifest.shards] == [f"shard-{n:05d}" for n in range(3)]
    for entry in merged.manifest.shards:
        assert file_sha256(tmp_path / "out" / f"{entry.name}.index") == entry.index_sha256
        assert file_sha256(tmp_path / "out" / f"{entry.name}.entropy") == entry.sidecar_sha256
    hashes = [entry.content_hash for entry in merged.manifest.shards]
    assert add_content_hashes(hashes) == add_content_hashes(entry.content_hash for entry in entries)
    assert merged.manifest.identity.source not in {part.manifest.identity.source for part in parts}
    assert merged.manifest.identity.patching == ENTROPY
    run("verify", tmp_path / "out")
    (problem,) = [line for line in capsys.readouterr().out.splitlines() if "needs an entropy model" in line]
    assert problem  # these examples have none; nothing else is wrong


def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr("os.link", refuse)
    two(tmp_path)
    line = ("merge", tmp_path / "a", tmp_path / "b", "--workers", 1, "--out")
    assert run(*line, tmp_path / "out") == 0
    assert (tmp_path / "out" / "shard-00002.arrow").stat().st_nlink == 1
    path = tmp_path / "b" / "shard-00000.arrow"
    assert file_sha256(tmp_path / "out" / "shard-00002.arrow") == file_sha256(path)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert run(*line, tmp_path / "second") == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    path.unlink()
    assert run(*line, tmp_path / "third") == 2
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
    assert run("merge", first, second, "--out", tmp_path / "out") == 0
    for name in ("train", "validation"):
        totals = [open_dataset(folder / name).manifest.totals for folder in (first, second, tmp_path / "out")]
        assert totals[0] + totals[1] == totals[2]
        assert open_dataset(tmp_path / "out" / name).manifest.identity.split == name
    train, validation = (open_dataset(tmp_path / "out" / name).manifest.identity for name in ("train", "validation"))
    assert train.source == validation.source, "the trainer refuses splits that were not made together"
    assert run("verify", tmp_path / "out") == 0


def test_what_does_not_belong_together_is_refused(tmp_path: Path, capsys) -> None:
    save_dataset(tmp_path / "a", documents(STATIC), STATIC)
    save_dataset(tmp_path / "other-rule", documents(BYTE), BYTE)
    save_dataset(tmp_path / "other-format", documents(STATIC), STATIC, "webdataset")
    save_dataset(tmp_path / "other-split", documents(STATIC), STATIC, split="validation")
    save_dataset(tmp_path / "run" / "train", documents(STATIC), STATIC)
    for names, message in (
        ("a", "merge needs two datasets or more"),
        ("a other-rule", "not made alike: patching.rule: 'static' and 'byte'; patching.stride: 4 and None"),
        ("a other-format", "format: 'arrow' and 'webdataset'"),
        ("a other-split", "split: 'train' and 'validation'"),
        ("a a", "the same dataset 2 times"),
        ("a run", "must hold the same splits"),
        ("a nothing", "nothing does not exist"),
    ):
        assert run("merge", *(tmp_path / name for name in names.split()), "--out", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
