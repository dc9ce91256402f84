"""The plan follows from the input alone, and every byte of it is in exactly one split."""

import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import files as plan_files
from pipeline.executors.retry import Queue
from pipeline.files import Files, SourceFile
from pipeline.inputs.listing import list_inputs
from pipeline.plan import Plan, Splits, split_size
from pipeline.read.source import check_unchanged
from pipeline.run.driver import make_plan, source_digest
from pipeline.settings import PipelineError, ReadSettings
from pipeline.splits.run_file import RunFile, read_run
from pipeline.stamp import Stamp


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def paths(folder: Path, **options) -> list[str]:
    return [file.path for file in list_inputs([folder], ReadSettings(**options)).files]


def listed(spans: list[tuple[str, int]]) -> Files:
    """Files of these kinds and sizes."""
    return Files.of(
        SourceFile(root="/in", path=f"{number}", kind=kind, stamp=Stamp(span), span=span)
        for number, (kind, span) in enumerate(spans)
    )


@given(
    st.lists(st.tuples(st.sampled_from(["text", "jsonl", "parquet"]), st.integers(0, 100)), max_size=20),
    st.integers(1, 60),
)
def test_each_byte_is_in_one_split_and_none_is_larger_than_wanted(spans, size):
    splits = Splits(listed(spans), size)
    covered = dict.fromkeys(range(len(spans)), 0)
    for number, split in enumerate(splits):
        assert split.number == number
        assert splits.name(number) == split.name
        assert splits.bytes[number] == split.bytes
        if split.parts == 1:
            for offset, file in enumerate(split.files):
                assert covered[split.file + offset] == 0
                covered[split.file + offset] = file.span
            assert split.bytes <= size or len(split.files) == 1
        else:
            assert (split.piece.begin, split.piece.first) == (covered[split.file], split.part == 0)
            assert split.piece.last == (split.piece.end == split.files[0].span and split.part == split.parts - 1)
            assert split.bytes == split.piece.end - split.piece.begin <= size
            covered[split.file] = split.piece.end
    assert covered == {number: span for number, (_, span) in enumerate(spans)}
    assert [split.name for split in splits] == sorted(split.name for split in splits)
    assert splits.bytes.sum() == sum(span for _, span in spans)


@given(st.integers(1, 300), st.integers(1, 90), st.integers(-5, 600), st.integers(-5, 600))
def test_whatever_a_table_says_of_a_row_group_it_is_in_one_piece(span, size, begin, end):
    splits = Splits(listed([("parquet", span)]), size)
    assert sum(split.piece.has(begin, end, span) for split in splits) == 1


def test_small_files_that_follow_one_another_share_a_split_up_to_a_number_of_files():
    splits = Splits(listed([("text", 0)] * 10_000 + [("jsonl", 900), ("text", 1), ("text", 1)]), 300)
    assert [len(split.files) for split in splits] == [4096, 4096, 1808, 1, 1, 1, 2]
    assert [split.name for split in splits[3:]] == [f"0010000-0000{n}" for n in range(3)] + ["0010001-00000"]


@pytest.mark.parametrize(
    ("total", "wanted", "size"),
    [
        (0, None, 2**18),
        (10, None, 2**18),
        (600_000, None, 2**18),  # three: two workers have something to do
        (2**21, None, 2**19),
        (4_000_000, None, 2**20),
        (2**23, None, 2**20),
        (100 * 2**20, None, 100 * 2**20 // 8),
        (2**40, None, 64 * 2**20),
        (2**40, 5, 5),
    ],
)
def test_the_size_of_a_split_depends_on_the_input_only(total, wanted, size):
    assert split_size(total, wanted) == size


def test_a_directory_is_listed_sorted_without_links_hidden_folders_and_binaries(tmp_path):
    outside = tree(tmp_path / "outside", {"secret.txt": b"s"})
    corpus = tree(
        tmp_path / "c", {"b.txt": b"b", "a/z.py": b"z", "a.txt": b"a", ".git/x": b"x", "i.png": b"p", "t.zip": b"t"}
    )
    (corpus / "link").symlink_to(outside)
    (corpus / "link.txt").symlink_to(outside / "secret.txt")
    found = list_inputs([corpus], ReadSettings())
    assert [file.path for file in found.files] == ["a.txt", "a/z.py", "b.txt"]
    assert found.skipped == {"symbolic links": 2, "hidden directories and caches": 1, "no text by their suffix": 2}


def test_globs_choose_files_and_leave_out_whole_folders(tmp_path):
    tree(tmp_path, {"a/x.py": b"1", "a/test/y.py": b"2", "a/b.txt": b"3", "test.py": b"4"})
    assert sorted(paths(tmp_path, include=["*.py"])) == ["a/test/y.py", "a/x.py", "test.py"]
    assert paths(tmp_path, include=["*.py"], exclude=["test"]) == ["a/x.py", "test.py"]
    assert paths(tmp_path, exclude=["a"]) == ["test.py"]


def test_the_identity_of_a_listing_is_neither_its_place_nor_its_times(tmp_path):
    files = {"a.txt": b"one", "d/b.jsonl": b'{"text": "x"}\n'}
    here, there = tree(tmp_path / "here", files), tree(tmp_path / "there", files)
    os.utime(there / "a.txt", ns=(5, 5))
    plans = [make_plan([folder], ReadSettings()) for folder in (here, there)]
    assert plans[0].inputs_identity() == plans[1].inputs_identity()
    assert plans[0].splits[0].stamps != plans[1].splits[0].stamps
    (there / "a.txt").write_bytes(b"three")
    assert make_plan([there], ReadSettings()).inputs_identity() != plans[0].inputs_identity()


def test_a_source_is_made_of_listing_content_and_options(tmp_path):
    tree(tmp_path, {"a.txt": b"one"})
    plan, reading = make_plan([tmp_path], ReadSettings()), ReadSettings()
    sources = [
        source_digest(plan, "c", reading),
        source_digest(plan, "d", reading),
        source_digest(plan, "c", ReadSettings(seed=1)),
    ]
    assert len(set(sources)) == 3


def test_a_file_that_changed_after_planning_is_refused(tmp_path):
    tree(tmp_path, {"a.txt": b"one"})
    file = list_inputs([tmp_path], ReadSettings()).files[0]
    check_unchanged(file)
    (tmp_path / "a.txt").write_bytes(b"longer")
    with pytest.raises(PipelineError, match=r"a\.txt has changed"):
        check_unchanged(file)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(PipelineError, match=r"a\.txt was there"):
        check_unchanged(file)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f / "nowhere", "no such file"),
        (lambda f: tree(f, {"x.png": b"p"}) / "x.png", r"x\.png: no text by their suffix.*--input-format"),
        (lambda f: tree(f / "d", {"x.png": b"p"}), r"nothing to read; 1 left out as no text by their suffix: x\.png"),
    ],
)
def test_an_input_that_cannot_be_used_is_named(tmp_path, make, said):
    with pytest.raises(PipelineError, match=said):
        list_inputs([make(tmp_path)], ReadSettings())


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_plan_takes_less_than_300_bytes_for_each_file_and_split(kind, monkeypatch):
    monkeypatch.setattr(plan_files, "_ROWS_AT_ONCE", 2**9)  # of which there is a fixed number

    def taken(count: int) -> int:
        tracemalloc.start()
        allocated = pa.total_allocated_bytes()
        files = Files.of(
            SourceFile(
                root="/data",
                path=f"a/folder/of/some/length/file-{number:09d}.jsonl",
                kind=kind,
                stamp=Stamp(1000, 10**18 + number, f"ETag={number:040x}", 10**18),
                span=1000,
            )
            for number in range(count)
        )
        plan = Plan(files, 1000)
        queue = Queue(np.arange(len(plan.splits)), plan.splits.bytes)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert queue.unfinished == len(plan.splits) == count
        return peak + pa.total_allocated_bytes() - allocated

    taken(1000)
    assert (taken(6_000) - taken(2_000)) / 4_000 < 300


def test_a_plan_is_read_as_it_was_written(tmp_path):
    tree(
        tmp_path / "in", {"a.jsonl": b'{"text":1}\n' * 300, "b.txt": b"x", "validation/c.txt": b"", "train/d.txt": b"y"}
    )
    plan = make_plan([tmp_path / "in"], ReadSettings(split_bytes=600))
    RunFile({}, plan).save(tmp_path)
    found = read_run(tmp_path / "run.json").plan
    assert found.files == plan.files
    assert list(found.splits) == list(plan.splits)
    assert (found.skipped, found.examples, found.idle) == (plan.skipped, plan.examples, plan.idle)


@pytest.mark.parametrize("at", [0, 0.1, 0.5, 0.9, 1])
def test_a_table_of_files_that_is_damaged_is_named(tmp_path, at):
    tree(tmp_path / "in", {"a.jsonl": b'{"text":1}\n' * 300})
    RunFile({}, make_plan([tmp_path / "in"], ReadSettings())).save(tmp_path)
    (path,) = tmp_path.glob("files-*.arrow")
    content = bytearray(path.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 1
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=re.escape(path.name)):
        read_run(tmp_path / "run.json")


def named_in_latin_1(folder: Path, name: str, content: bytes) -> str:
    """Write a file whose name is not UTF-8; its path as it is typed."""
    path = os.path.join(os.fsencode(folder), name.encode("latin-1"))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        Path(os.fsdecode(path)).write_bytes(content)
    except OSError:
        pytest.skip("a file system that takes names in UTF-8 only")
    return path.decode("utf-8", "surrogateescape")


def test_a_name_that_is_not_utf8_is_left_out_and_counted_and_the_run_goes_on(tmp_path):
    tree(tmp_path, {"a.txt": b"read"})
    for name in ("caf\xe9.txt", "stra\xdfe/b.txt", "left\xe9.png", "hidden/.\xe9"):
        named_in_latin_1(tmp_path, name, b"x")
    found = make_plan([tmp_path], ReadSettings(exclude=("left*",)))
    assert [file.path for file in found.files] == ["a.txt"]
    reason = next(reason for reason in found.skipped if "UTF-8" in reason)
    assert (found.skipped[reason], sum(found.skipped.values())) == (2, 4)
    assert found.examples[reason] == (r"caf\udce9.txt", r"stra\udcdfe")
    chosen = make_plan([f"{tmp_path}/a*"], ReadSettings())
    assert not chosen.skipped, "a pattern that such a name does not match"


def test_an_input_whose_path_is_not_utf8_is_named(tmp_path):
    file = named_in_latin_1(tmp_path, "d\xe9/caf\xe9.txt", b"x")
    for text in (file, os.path.dirname(file), os.path.dirname(file) + "/*.txt"):
        with pytest.raises(PipelineError, match=r"d\\udce9.*not UTF-8"):
            list_inputs([text], ReadSettings())
