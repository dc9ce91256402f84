"""The plan follows from the input alone, and every byte of it is in exactly one split."""

import os
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.pipeline_helpers import compressed
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.inputs import listing
from pipeline.inputs.listing import list_inputs
from pipeline.plan import Plan, SourceFile, byte_pieces, group, row_pieces, split_size
from pipeline.read.source import check_unchanged
from pipeline.run.driver import make_plan
from pipeline.settings import PipelineError, ReadSettings


@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_byte_pieces_cover_a_file_without_gap_or_overlap(size, cut):
    pieces = byte_pieces(size, cut, list(range(size // cut + 1)))
    assert [p.begin for p in pieces] == [0, *(p.end for p in pieces[:-1])]
    assert pieces[-1].end == size
    assert sum(p.bytes for p in pieces) == size


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 3)), max_size=30), st.integers(1, 100))
def test_row_pieces_begin_at_documents_and_cover_the_rows(documents, cut):
    sizes, starts = [], []
    for size, parts in documents:
        starts.append(len(sizes))
        sizes += [size] * parts
    pieces = row_pieces(sizes, starts, cut)
    assert [p.begin for p in pieces] == [0, *(p.end for p in pieces[:-1])][: len(pieces)]
    assert not sizes or pieces[-1].end == len(sizes)
    assert {p.begin for p in pieces} <= set(starts)
    assert sum(p.bytes for p in pieces) == sum(sizes)


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def paths(folder: Path, **options) -> list[str]:
    return [file.path for file in list_inputs([folder], ReadSettings(**options)).files]


def test_splits_hold_consecutive_pieces_each_once_and_none_larger_than_wanted(tmp_path):
    tree(tmp_path, {f"f{i:02d}.txt": b"x" * (i * 37 % 500) for i in range(40)} | {"z.jsonl": b'{"text":1}\n' * 300})
    found = list_inputs([tmp_path], ReadSettings(split_bytes=600))
    splits = group(found.files, found.split_bytes)
    assert [p for s in splits for p in s.pieces] == [
        (f, p) for f, x in enumerate(found.files) for p in range(len(x.pieces))
    ]
    assert max(split.bytes for split in splits) <= 600
    assert sum(split.bytes for split in splits) == sum(file.size for file in found.files)


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


def test_what_was_hashed_is_not_read_again_unless_size_or_time_differ(tmp_path, monkeypatch):
    tree(tmp_path, {"a.txt": b"one", "b.jsonl": b'{"text": "x"}\n'})
    first = list_inputs([tmp_path], ReadSettings())
    surveyed = []
    real = listing.survey_file
    monkeypatch.setattr(listing, "survey_file", lambda found, *rest: surveyed.append(found.path) or real(found, *rest))
    assert list_inputs([tmp_path], ReadSettings(), first.files) == first
    assert surveyed == []
    (tmp_path / "a.txt").write_bytes(b"two")
    os.utime(tmp_path / "a.txt", ns=(1, first.files[0].mtime_ns + 1))
    changed = list_inputs([tmp_path], ReadSettings(), first.files)
    assert surveyed == ["a.txt"]
    assert changed.files[0].sha256 != first.files[0].sha256


def test_the_identity_of_the_input_is_its_content_not_its_place(tmp_path):
    files = {"a.txt": b"one", "d/b.jsonl": b'{"text": "x"}\n'}
    here, there = tree(tmp_path / "here", files), tree(tmp_path / "there", files)
    plans = [make_plan([folder], ReadSettings()) for folder in (here, there)]
    assert plans[0].source_digest(ReadSettings()) == plans[1].source_digest(ReadSettings())
    assert plans[0].source_digest(ReadSettings()) != plans[0].source_digest(ReadSettings(seed=1))
    (there / "a.txt").write_bytes(b"0ne")
    assert make_plan([there], ReadSettings()).source_digest(ReadSettings()) != plans[0].source_digest(ReadSettings())


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


def test_a_compressed_file_has_a_bounded_number_of_pieces_in_its_decompressed_bytes(tmp_path):
    text = b'{"text": "a"}\n' * 10_000
    tree(tmp_path, {"a.jsonl.zst": compressed(text)})
    file = list_inputs([tmp_path], ReadSettings(split_bytes=1000)).files[0]
    assert len(file.pieces) <= 16
    assert file.pieces[-1].end == len(text)
    assert file.pieces[3].first_line == 1 + text.count(b"\n", 0, file.pieces[3].begin)


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


def test_a_plan_takes_little_memory_for_each_file_piece_and_split():
    count = 2000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        files = [
            SourceFile(
                root="/data",
                path=f"folder/file-{number:06d}.jsonl",
                kind="jsonl",
                size=1000 + number,
                mtime_ns=10**18 + number,
                changed_ns=10**18 + number,
                inode=10**6 + number,
                sha256=f"{number:064x}",
                pieces=byte_pieces(1000 + number, 10**6, []),
                cut_bytes=10**6,
            )
            for number in range(count)
        ]
        of_files, _ = tracemalloc.get_traced_memory()
        cut = byte_pieces(1000 * count, 1000, range(count))
        splits = group([replace(files[0], pieces=cut)], 1000)
        of_pieces, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cut) == len(splits) == count
    assert (of_files - before) / count < 800
    assert (of_pieces - of_files) / count < 500


def test_a_plan_is_read_as_it_was_written_and_unknown_keys_are_errors(tmp_path):
    tree(tmp_path, {"a.jsonl": b'{"text":1}\n' * 300, "b.txt": b"x"})
    plan = make_plan([tmp_path], ReadSettings(split_bytes=600))
    text = plan.model_dump_json()
    assert Plan.model_validate_json(text) == pickle.loads(pickle.dumps(plan)) == plan
    for key in ("begin", "path", "number"):
        with pytest.raises(ValidationError):
            Plan.model_validate_json(text.replace(f'"{key}":', f'"other":1,"{key}":', 1))


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
    assert Plan.model_validate_json(found.model_dump_json()) == found
    chosen = make_plan([f"{tmp_path}/a*"], ReadSettings())
    assert not chosen.skipped, "a pattern that such a name does not match"


def test_an_input_whose_path_is_not_utf8_is_named(tmp_path):
    file = named_in_latin_1(tmp_path, "d\xe9/caf\xe9.txt", b"x")
    for text in (file, os.path.dirname(file), os.path.dirname(file) + "/*.txt"):
        with pytest.raises(PipelineError, match=r"d\\udce9.*not UTF-8"):
            list_inputs([text], ReadSettings())
