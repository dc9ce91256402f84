"""What a run does with files that were touched since: content decides, and workers look at it."""

import json
import os
from pathlib import Path

import pytest
from helpers.pipeline_helpers import STATIC, preprocess, shard_hashes, write_jsonl
from helpers.store_runs import remote_hashes

from pipeline.commands.status import status
from pipeline.splits import worker
from pipeline.splits.marker import MARKERS
from shared.io.stores.store import open_store


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        write_jsonl(folder / f"{number}.jsonl", [{"text": f"{number} {line} " * 30} for line in range(30)])
    return folder


def options(tmp_path: Path) -> tuple[object, ...]:
    return ("--out", tmp_path / "out", *STATIC, "--split-bytes", 3000, "--workers", 1)


def later(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("unfinished", [False, True])
def test_equal_content_is_read_again_once_and_what_was_made_of_it_stays(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfinished: bool
) -> None:
    assert preprocess(corpus, *options(tmp_path)) == 0
    made, out = shard_hashes(tmp_path / "out"), tmp_path / "out"
    parts = len(list((out / MARKERS).glob("0000001-*.json")))
    assert parts > 1
    if unfinished:
        (out / MARKERS / "0000001-00000.json").unlink()
    later(corpus / "1.jsonl")
    read, real = [], worker.content_now
    monkeypatch.setattr(
        worker, "content_now", lambda job, split, tell: read.append(split.name) or real(job, split, tell)
    )
    for again in (parts - unfinished, 0):
        assert preprocess(corpus, *options(tmp_path)) == 0
        assert len(read) == again
        read.clear()
    assert shard_hashes(out) == made


def test_on_a_store_equal_content_is_read_again_once(
    corpus: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, store = list[str](), open_store(bucket)
    real = worker.content_now
    monkeypatch.setattr(
        worker, "content_now", lambda job, split, tell: read.append(split.name) or real(job, split, tell)
    )
    command = (corpus, "--out", bucket, *STATIC, "--split-bytes", 3000, "--workers", 1)
    assert preprocess(*command) == 0
    made = remote_hashes(bucket)
    for touched in ([1], [], [2, 0], []):
        for number in touched:
            later(corpus / f"{number}.jsonl")
        assert preprocess(*command) == 0
        assert {name.partition("-")[0] for name in read} == {f"{number:07d}" for number in touched}
        assert len(store.list("listings/")) == 1
        read.clear()
    assert remote_hashes(bucket) == made


def test_a_listing_on_a_store_that_is_damaged_does_no_harm(corpus: Path, bucket: str) -> None:
    store, command = open_store(bucket), (corpus, "--out", bucket, *STATIC, "--workers", 1)
    assert preprocess(*command) == 0
    for key, content in ((f"files-{'0' * 64}.arrow", b"x"), ("mine", b"y")):
        store.put(f"listings/{key}", content)
        later(corpus / "1.jsonl")
        assert preprocess(*command) == 0
    assert len(store.list("listings/")) == 1


def test_other_content_of_equal_size_is_another_run(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(corpus, *options(tmp_path)) == 0
    before = shard_hashes(tmp_path / "out")
    path = corpus / "1.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1 29", b"1 92"))
    for _ in range(2):
        assert preprocess(corpus, *options(tmp_path)) == 2
        assert "1.jsonl" in capsys.readouterr().err
    assert shard_hashes(tmp_path / "out") == before


def test_of_many_files_in_a_split_the_one_that_changed_is_named_and_the_run_stays_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}.txt").write_text(f"a text {number}")
    command = (tmp_path / "in", "--out", tmp_path / "out", *STATIC, "--workers", 1)
    assert preprocess(*command) == 0
    (tmp_path / "in" / "4.txt").write_text("a text x")
    capsys.readouterr()
    assert preprocess(*command) == 2
    said = capsys.readouterr().err
    assert [number for number in range(6) if f"{number}.txt" in said] == [4]
    (log,) = (tmp_path / "out" / "logs").iterdir()
    assert "4.txt: not the content" in log.read_text()
    lines, fine = status(tmp_path / "out")
    assert fine
    assert not [line for line in lines if "failed" in line]


@pytest.mark.parametrize(("change", "named"), [("grow", "1.jsonl"), ("remove", "0.jsonl"), ("add", "11.jsonl")])
def test_the_first_file_is_named_that_is_not_what_it_was(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, named: str
) -> None:
    assert preprocess(corpus, *options(tmp_path)) == 0
    capsys.readouterr()
    if change == "remove":
        (corpus / named).unlink()
    else:
        with open(corpus / named, "a") as file:
            file.write('{"text": "more"}\n')
    assert preprocess(corpus, *options(tmp_path)) == 2
    said = capsys.readouterr().err
    assert f"{corpus / named} " in said
    assert "--out" in said


def test_lines_that_are_listed_are_those_of_the_whole_file_also_after_a_second_start(tmp_path: Path) -> None:
    content = b"".join(b'{"text": "some text"}\n' * 40 + b"bad\n" for _ in range(20))
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    wanted = [number for number, line in enumerate(content.splitlines(), 1) if line == b"bad"]

    def listed() -> list[int]:
        letters = sorted((tmp_path / "out" / "dead-letters").iterdir())
        return [json.loads(line)["line"] for letter in letters for line in letter.read_text().splitlines()]

    assert preprocess(path, *options(tmp_path)) == 3
    assert listed() == wanted
    (tmp_path / "out" / MARKERS / "0000000-00002.json").unlink()
    assert preprocess(path, *options(tmp_path)) == 3
    assert listed() == wanted
