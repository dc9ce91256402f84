"""Paths, globs and URLs as inputs; subsets by directory or option; bombs refused; changed files noticed."""

import bz2
import gzip
import lzma
import os
import re
import time
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import _registry
from helpers.input_trees import one_by_one
from helpers.pipeline_helpers import STATIC, compressed, counts, letters, preprocess, shard_hashes, stored
from helpers.shard_examples import document, make_dataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inputs.foreign_folders import current_snapshot, is_our_run
from pipeline.inputs.globs import Glob, split_glob
from pipeline.inputs.listing import NAMED_BEFORE, list_inputs
from pipeline.read import read_split, storage, streams
from pipeline.read.forward import Forward
from pipeline.read.source import check_unchanged
from pipeline.read.streams import DamagedStream
from pipeline.run.driver import make_plan
from pipeline.settings import PipelineError, ReadSettings
from shared.errors import DatasetError

LINES = b"".join(b'{"text": "line %d", "lang": "en"}\n' % i for i in range(3000))


def parquet(texts: list[str], **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink, row_group_size=100, **options)
    return sink.getvalue().to_pybytes()


FILES = {
    "a.jsonl": LINES,
    "deep/b.jsonl.gz": gzip.compress(LINES, mtime=0),
    "deep/c.parquet": parquet([f"row {i}" for i in range(1000)]),
    "deep/er/d.txt": b"a text",
    "deep/er/e.jsonl.bz2": bz2.compress(b'{"text": "bz2"}'),
    "e.txt.xz": lzma.compress(b"xz") + lzma.compress(b" and more"),
    ".hidden/f.txt": b"hidden",
    "g.png": b"no text",
}


@pytest.fixture
def corpus(tmp_path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    return tmp_path / "in"


@pytest.fixture
def bucket(request) -> str:
    """The same files in a remote store."""
    store, name = fsspec.filesystem("memory"), f"bucket-{request.node.name}"
    for path, content in FILES.items():
        store.pipe(f"/{name}/in/{path}", content)
    return f"memory://{name}/in"


def test_a_file_that_two_inputs_have_is_read_once(tmp_path: Path) -> None:
    """Its place is that of the first input; other files of the same name or content are others."""
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("a.txt", "x/a.txt", "x/b.txt", "x/y/a.txt"):
        (tmp_path / name).write_text("some text")
    given = [tmp_path / "x/b.txt", tmp_path / "x", tmp_path / "x" / "y" / "..", tmp_path / "x/y", tmp_path / "a.txt"]
    plan = list_inputs([*given, tmp_path / "x/*.txt"], ReadSettings())
    assert [file.shown for file in plan.files] == [
        f"{tmp_path}/{name}" for name in ("x/b.txt", "x/a.txt", "x/y/a.txt", "a.txt")
    ]
    assert plan.skipped[NAMED_BEFORE] == 7
    assert plan.examples[NAMED_BEFORE] == ("a.txt", "a.txt", "a.txt")


def test_an_object_that_two_inputs_have_is_read_once(bucket: str) -> None:
    once = paths(bucket)
    assert sorted(paths(f"{bucket}/a.jsonl", bucket, f"{bucket}/*.jsonl")) == sorted(once)


def test_a_dataset_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    make_dataset(tmp_path / "d", [[document("a", "x", b"text")]])
    plan = list_inputs([tmp_path / "d", tmp_path / "d"], ReadSettings())
    assert len(plan.files) == 1


def texts_of(*inputs: object, **options: object) -> Counter:
    """Whatever the inputs hold."""
    reading = ReadSettings(**options)
    plan = make_plan(inputs, reading)
    return Counter(record.text for split in plan.splits for record in one_by_one(read_split(split, reading)))


def paths(*inputs: object) -> list[str]:
    return [file.path for file in list_inputs(inputs, ReadSettings()).files]


def test_a_remote_directory_holds_what_a_local_one_does(corpus, bucket, tmp_path):
    for number, where in enumerate((corpus, bucket, f"file://{corpus}")):
        assert preprocess(where, "--out", tmp_path / str(number), *STATIC, "--split-bytes", 5000) == 0
    # A remote file of lines is cut without reading it, so its ids are offsets in place of lines.
    remote, local = (stored(tmp_path / name) for name in ("1", "0"))
    assert Counter(text for _, _, text in remote) == Counter(text for _, _, text in local)
    assert {i for i, _, _ in remote if i.startswith("a.jsonl")} == {
        f"a.jsonl:@{i}" for i in range(len(LINES)) if i == 0 or LINES[i - 1 : i] == b"\n"
    }
    assert shard_hashes(tmp_path / "2") == shard_hashes(tmp_path / "0")
    assert preprocess(bucket, "--out", tmp_path / "1", *STATIC, "--split-bytes", 5000) == 0


def test_of_remote_files_nothing_is_read_before_the_work(bucket, monkeypatch):
    opened = []
    real = storage.open_binary
    monkeypatch.setattr(storage, "open_binary", lambda location: opened.append(location) or real(location))
    listing = list_inputs([bucket], ReadSettings(split_bytes=2000))
    assert opened == []
    parts = {split.files[0].path: split.parts for split in listing.splits}
    assert parts["a.jsonl"] == -(-len(LINES) // 2000)
    assert parts["deep/c.parquet"] > 3
    assert parts["deep/b.jsonl.gz"] == 1
    assert listing.skipped == {"hidden directories and caches": 1, "no text by their suffix": 1}


def test_a_remote_file_that_changed_after_planning_is_refused(bucket):
    store = fsspec.filesystem("memory")
    file = next(f for f in list_inputs([bucket], ReadSettings()).files if f.path == "deep/er/d.txt")
    check_unchanged(file)
    time.sleep(0.002)
    store.pipe(file.full_path.removeprefix("memory:/"), b"A text")
    with pytest.raises(PipelineError, match=r"d\.txt has changed"):
        check_unchanged(file)
    store.rm(file.full_path.removeprefix("memory:/"))
    with pytest.raises(PipelineError, match=r"d\.txt was there"):
        check_unchanged(file)


def test_a_remote_file_of_unknown_size_is_refused_not_taken_for_empty(bucket, monkeypatch):
    real = fsspec.filesystem("memory").info
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", lambda fs, path, **k: real(path) | {"size": None})
    with pytest.raises(PipelineError, match=r"a\.jsonl: its server does not tell how large it is"):
        list_inputs([f"{bucket}/a.jsonl"], ReadSettings())


def test_a_file_that_changes_while_it_is_read_is_an_error_of_its_split(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    reading = ReadSettings()
    plan = make_plan([tmp_path / "a.jsonl"], reading)
    records = one_by_one(read_split(plan.splits[0], reading))
    next(records)
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"text": "late"}\n')
    with pytest.raises(PipelineError, match="has changed"):
        list(records)


def test_globs_find_files_and_whole_folders_locally_and_remotely(corpus, bucket):
    for where in (corpus, bucket):
        assert paths(f"{where}/*.jsonl") == ["a.jsonl"]
        assert paths(f"{where}/**/*.jsonl*") == ["a.jsonl", "deep/b.jsonl.gz", "deep/er/e.jsonl.bz2"]
        assert paths(f"{where}/de*/*.parquet") == ["deep/c.parquet"]
        assert paths(f"{where}/d?ep/*") == ["deep/b.jsonl.gz", "deep/c.parquet", "deep/er/d.txt", "deep/er/e.jsonl.bz2"]
        with pytest.raises(PipelineError, match="matches no file"):
            paths(f"{where}/**/*.arrow")


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a[1].txt").write_bytes(b"x")
    assert paths(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_a_file_that_is_missing_in_a_folder_whose_name_looks_like_a_glob_is_one_line(tmp_path):
    (tmp_path / "a[1]").mkdir()
    with pytest.raises(PipelineError, match="matches no file"):
        paths(tmp_path / "a[1]" / "missing.txt")


def test_folders_may_lie_deep_inside_each_other(tmp_path):
    folder, folders = os.open(tmp_path, os.O_RDONLY), [str(tmp_path / "in")]
    for name in ["in", *"d" * 1000]:
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
        folders.append(f"{folders[-1]}/d")
    os.close(os.open("a.txt", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    try:
        assert len(paths(tmp_path / "in")) == 1
    finally:
        os.unlink(f"{folders[-2]}/a.txt")
        for name in reversed(folders[:-1]):  # a removal by recursion would fail
            os.rmdir(name)


def test_a_fifo_in_place_of_a_note_of_other_programs_is_not_waited_for(tmp_path):
    (tmp_path / "refs").mkdir()
    (tmp_path / "snapshots" / "abc").mkdir(parents=True)
    opened = []
    for name, content in (("run.json", '{"identity": 1}'), ("refs/main", "abc")):
        os.mkfifo(tmp_path / name)
        opened.append(os.open(tmp_path / name, os.O_RDWR))
        os.write(opened[-1], content.ljust(1000).encode())  # who reads it anyway is not kept waiting here
    try:
        assert not is_our_run(tmp_path)
        assert current_snapshot(tmp_path) is None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_where_a_glob_begins():
    assert split_glob("data/x/**/*.jsonl") == ("data/x", "**/*.jsonl")
    assert split_glob("/*.txt") == ("/", "*.txt")
    assert split_glob("*.txt") == (".", "*.txt")
    assert split_glob("s3://bucket/a*/b") == ("s3://bucket", "a*/b")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.txt", ["a.txt", "a.txt/b/c"], ["a/b.txt", "a.txt2"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a"]),
        ("**/x.txt", ["x.txt", "a/x.txt", "a/b/x.txt", "a/x.txt/b"], ["a/y.txt"]),
        ("a/**/b/*.txt", ["a/b/x.txt", "a/c/d/b/x.txt", "a/b/b/x.txt"], ["a/b", "a/x.txt"]),
        ("x[abc", ["x[abc"], ["xa", "y/x[abc"]),
        ("[!a]?", ["bc"], ["ab", "b"]),
        ("**/a/**/a", ["a/a", "b/a/c/a"], ["a", "a/b"]),
        ("./a*//b", ["ax/b"], ["ax", "b"]),
    ],
)
def test_a_pattern_chooses_paths_name_by_name(pattern, yes, no):
    assert [path for path in yes + no if Glob(pattern).chooses(path)] == yes


@pytest.mark.parametrize(
    ("pattern", "entered"),
    [
        ("x[abc", 1),
        ("*.txt", 1),
        ("a?/*.txt", 11),
        ("a1/*/*.txt", 1 + 10),
        ("a1/**/*.txt", 1 + 10),
        ("**/*.nothing", 1 + 10 + 100),
        ("[q]/**", 1),
    ],
)
def test_a_pattern_enters_only_the_folders_in_which_it_can_match(tmp_path, monkeypatch, pattern, entered):
    for number in range(100):
        (tmp_path / f"a{number % 10}" / f"b{number // 10}").mkdir(parents=True)
    (tmp_path / "a1" / "b1" / "x.txt").write_text("x")
    scanned = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: scanned.append(folder) or real(folder))
    with suppress(PipelineError):
        list_inputs([tmp_path / pattern], ReadSettings())
    assert len(scanned) == entered


def test_a_pattern_without_a_match_is_one_line_that_names_it(tmp_path):
    (tmp_path / "a").mkdir()
    for text in ("x[abc", "*.txt", "a/**", "no/such*/x"):
        with pytest.raises(PipelineError, match=re.escape(str(tmp_path / text))):
            list_inputs([tmp_path / text], ReadSettings())


def test_a_folder_whose_name_looks_like_a_glob_is_that_folder_above_a_pattern(tmp_path):
    for name in ("x[1]", "x1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text("x")
    (found,) = list_inputs([tmp_path / "x[1]" / "*.txt"], ReadSettings()).files
    assert found.path == "x[1].txt"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("pipe:touch owned", "commands and chained URLs"),
        ("pipe://touch owned", "commands and chained URLs"),
        ("simplecache::s3://bucket/x", "commands and chained URLs"),
        ("s3://key:secret@bucket/x.jsonl", "password into the environment"),
        ("nosuch://bucket/x.jsonl", "Protocol not known: nosuch"),
        ("memory://nowhere/at/all", "no such file or directory"),
        ("memory://nowhere/*.txt", "no such file or directory"),
    ],
)
def test_a_url_that_may_or_can_not_be_read_is_named(tmp_path, monkeypatch, url, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=said) as error:
        list_inputs([url], ReadSettings())
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_the_input_that_cannot_be_read_is_named_itself(tmp_path, monkeypatch):
    (tmp_path / "in" / "noperm").mkdir(parents=True)
    real = Path.is_file

    def denied(path: Path) -> bool:
        if path.parent.name == "noperm":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", denied)  # whom the system denies nothing, as root, it does not deny this
    with pytest.raises(DatasetError, match="noperm cannot be read: Permission denied"):
        list_inputs([tmp_path / "in"], ReadSettings())


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_driver_is_named_with_what_installs_it(monkeypatch, scheme, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.delitem(_registry, scheme, raising=False)  # where an earlier test has used it
    with pytest.raises(PipelineError, match=rf"needs the package {package}; pip install -e '\.\["):
        list_inputs([f"{scheme}://bucket/x.jsonl"], ReadSettings())


def subsets(out: Path) -> set[str]:
    return {subset for _, subset, _ in stored(out)}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), {"en", "default"}),
        (("--subset-from", "directory"), {"deep", "default"}),
        (("--subset", "mine"), {"mine"}),
    ],
    ids=["column", "directory", "option"],
)
def test_subsets_by_directory_by_option_or_by_column(corpus, tmp_path, options, wanted):
    assert preprocess(corpus, "--out", tmp_path / "out", *STATIC, *options) == 0
    assert subsets(tmp_path / "out") == wanted


def test_a_dataset_that_is_read_again_may_be_given_another_subset(corpus, tmp_path):
    assert preprocess(corpus, "--out", tmp_path / "out", *STATIC) == 0
    assert preprocess(tmp_path / "out", "--out", tmp_path / "again", *STATIC, "--subset", "ours") == 0
    assert subsets(tmp_path / "again") == {"ours"}


@pytest.mark.parametrize(
    "options", [("--subset", "a", "--subset-from", "directory"), ("--subset", "a\0b")], ids=["both", "nul"]
)
def test_subsets_given_twice_or_with_nul_are_refused(corpus, tmp_path, options):
    assert preprocess(corpus, "--out", tmp_path / "out", *STATIC, *options) == 2


def arrow_bomb(size: int) -> bytes:
    sink = pa.BufferOutputStream()
    rows = pa.table({"text": pa.array([b"\0" * size, b"after"], pa.binary())})
    with pa.ipc.new_file(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def test_decompression_bombs_are_refused_early(tmp_path, monkeypatch):
    judged_from = 2**23
    monkeypatch.setattr(streams, "JUDGED_FROM", judged_from)
    zeros = bytes(judged_from + 16 * 2**20)
    (tmp_path / "in").mkdir()
    part = zeros[: len(zeros) // 5]
    bombs = {
        "a.jsonl.gz": gzip.compress(part) * 5,
        "b.jsonl.zst": compressed(zeros),
        "c.txt.bz2": bz2.compress(part) * 5,
        "d.txt.xz": lzma.compress(part, preset=0) * 5,
        "e.tar.zst": compressed(zeros),
        "f.warc.wet.zst": compressed(zeros),
        "g.parquet": parquet(["\0" * len(zeros)], compression="zstd", use_dictionary=False),
        "h.arrow": arrow_bomb(len(zeros)),
    }
    for name, content in bombs.items():
        (tmp_path / "in" / name).write_bytes(content)
    assert preprocess(tmp_path / "in", "--out", tmp_path / "out", *STATIC) == 4  # no documents
    dead = letters(tmp_path / "out")
    # A tar of zeros is an empty tar, and is refused for its length all the same.
    assert [letter["path"] for letter in dead] == list(bombs)
    for letter in dead:
        assert "--max-ratio" in letter["reason"]
        assert letter["bytes"] <= judged_from + 2**20
    assert counts(tmp_path / "out")["documents"] == 0


def test_the_limit_of_a_bomb_is_an_option_and_small_files_are_none(tmp_path, monkeypatch):
    judged_from = 2**23
    monkeypatch.setattr(streams, "JUDGED_FROM", judged_from)
    (tmp_path / "a.txt.zst").write_bytes(compressed(bytes(judged_from - 1)))
    (tmp_path / "b.txt.zst").write_bytes(compressed(bytes(judged_from + 2**20)))
    assert preprocess(tmp_path / "a.txt.zst", "--out", tmp_path / "a", "--rule", "none", "--executor", "inline") == 0
    options = ("--rule", "none", "--executor", "inline", "--max-ratio", 100_000)
    assert preprocess(tmp_path / "b.txt.zst", "--out", tmp_path / "b", *options) == 0
    assert counts(tmp_path / "b")["document_bytes"] == judged_from + 2**20


def test_a_compressed_file_that_is_no_text_inside_is_said_to_be(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w"):
        pass
    (tmp_path / "x.parquet.gz").write_bytes(gzip.compress(parquet(["a"])))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(gzip.compress(LINES)))
    for name, said in (("x.zip", "no text"), ("x.parquet.gz", "compressed"), ("x.jsonl.gz", "inside another")):
        with pytest.raises(PipelineError, match=rf"{name}: .*{said}.*--input-format"):
            list_inputs([tmp_path / name], ReadSettings())


@given(st.binary(max_size=60), st.integers(1, 9), st.lists(st.tuples(st.sampled_from("rsl"), st.integers(0, 20))))
def test_reading_forward_takes_every_byte_once_and_tells_damage(content, size, steps):
    def chunks():
        for begin in range(0, len(content), size):
            yield content[begin : begin + size]
        raise DamagedStream("cut")

    stream, at = Forward(chunks()), 0
    for how, length in steps:
        if how == "r":
            taken = stream.read(length)
            assert taken == content[at : at + length]
            at += len(taken)
        elif how == "s":
            at += stream.skip(length)
        else:
            line = stream.line(length)
            assert line == content[at : at + length].split(b"\n")[0] + b"\n" * (b"\n" in content[at : at + length])
            stream.put_back(line)
            assert stream.line(length) == line
            at += len(line)
        assert stream.offset == at
    assert stream.read(100) == content[at:]
    assert stream.damage == "cut"


def test_dead_letters_have_offsets_and_lines_of_the_whole_file(bucket, tmp_path):
    fsspec.filesystem("memory").pipe(f"{bucket.removeprefix('memory:/')}/bad.jsonl", LINES + b"bad\n" + LINES)
    assert preprocess(f"{bucket}/bad.jsonl", "--out", tmp_path / "out", *STATIC, "--split-bytes", 3000) == 3
    (letter,) = letters(tmp_path / "out")
    assert letter["offset"] == len(LINES)
    assert letter["line"] == 1 + LINES.count(b"\n")
