"""The format of a file is seen in its content; what is not read is said; names of splits, links and lists count."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from helpers.input_trees import TEXTS, read, tar, tree
from helpers.pipeline_helpers import STATIC, compressed, counts, letters, preprocess, stored

from pipeline.inputs.listing import list_inputs
from pipeline.records import DeadLetter, Record
from pipeline.settings import PipelineError, ReadSettings
from shared.shards.open import open_dataset

OBJECTS = [{"text": text, "n": [1, {"a": "]"}]} for text in TEXTS]
LINES = "".join(json.dumps(o) + "\n" for o in OBJECTS).encode()
ARRAY = json.dumps(OBJECTS).encode()
PRETTY = json.dumps(OBJECTS, indent=2).encode()
OBJECT_AFTER_OBJECT = "\n".join(json.dumps(o, indent=1) for o in OBJECTS).encode()


def table(texts: list[str] = TEXTS) -> pa.Table:
    return pa.table({"text": texts})


def parquet(rows: pa.Table | None = None, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table() if rows is None else rows, sink, **options)
    return sink.getvalue().to_pybytes()


def stream() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table().schema) as writer:
        writer.write_table(table())
    return sink.getvalue().to_pybytes()


def texts_of(*inputs: object, **options: object) -> list[str]:
    found = read(*inputs, **options)
    assert not any(isinstance(f, DeadLetter) for f in found), found
    return sorted(f.text.decode() for f in found)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.pq", parquet()),
        ("x.parq", parquet()),
        ("without-suffix", parquet()),
        ("x.txt", parquet()),
        ("x.jsonl", parquet()),
        ("part-00000", LINES),
        ("part-00000.gz", gzip.compress(LINES)),
        ("a.jsonl.zstd", compressed(LINES)),
        ("a.jsonl", gzip.compress(LINES)),
        ("a.jsonl.gz", LINES),
        ("a.jsonl.gz", compressed(LINES)),
        ("a", bz2.compress(LINES)),
        ("a.json.xz", lzma.compress(LINES)),
        ("c4-train.00000-of-00001.json.gz", gzip.compress(LINES)),
        ("00.json.zst", compressed(LINES)),
        ("skippable.zst", b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + compressed(LINES)),
        ("lines.json", LINES),
        ("a.jl", LINES),
        ("lines.txt", LINES),
        ("array.json", ARRAY),
        ("array.json.gz", gzip.compress(PRETTY)),
        ("array.jsonl", PRETTY),
        ("array", ARRAY),
        ("pretty.json", PRETTY),
        ("mark.json", b"\xef\xbb\xbf" + PRETTY),
        ("objects.json", OBJECT_AFTER_OBJECT),
        ("stream", stream()),
        ("archive", tar()),
        ("archive.tgz", gzip.compress(tar())),
    ],
)
def test_the_content_says_the_format_whatever_the_name_is(tmp_path, name, content):
    tree(tmp_path, {name: content})
    assert texts_of(tmp_path / name) == sorted(TEXTS)
    assert texts_of(tmp_path) == sorted(TEXTS)


@pytest.mark.parametrize("kind", ["array.json", "a.json.gz", "part-0", "x.pq"])
def test_a_remote_file_is_looked_at_when_it_is_read_or_where_its_name_is_unclear(request, kind):
    store, name = fsspec.filesystem("memory"), f"content-{kind}"
    content = {"array.json": PRETTY, "a.json.gz": gzip.compress(LINES), "part-0": LINES, "x.pq": parquet()}[kind]
    store.pipe(f"/{name}/{kind}", content)
    assert texts_of(f"memory://{name}") == sorted(TEXTS)


def test_a_remote_file_that_is_not_what_its_name_says_is_read_as_what_it_is():
    fsspec.filesystem("memory").pipe("/mistaken/x.txt", parquet())
    assert texts_of("memory://mistaken") == sorted(TEXTS)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (".DS_Store", b"\0\0\0\1Bud1", "hidden"),
        (".a.jsonl.swp", b"b0VIM 9.0\0", "hidden"),
        (".part-0.crc", b"crc\0", "hidden"),
        ("a.jsonl~", LINES, "copies"),
        ("a.jsonl.bak", LINES, "copies"),
        ("a.txt.swp", b"b0VIM 9.0\0", "copies"),
        ("x.crc", b"crc\0", "copies"),
        ("_SUCCESS", b"", "copies"),
        ("b.lock", b"", "copies"),
        ("a.csv", b"text,lang\na,en\n", "tables"),
        ("picture", b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
        ("state", bytes(range(256)) * 9, "no text by their content"),
        ("table.gz", gzip.compress(parquet()), "compressed as a whole"),
    ],
)
def test_what_is_binary_hidden_or_a_copy_is_left_out_and_named(tmp_path, name, content, reason):
    tree(tmp_path, {name: content})
    with pytest.raises(PipelineError, match=r"nothing to read; 1 left out as ") as nothing:
        list_inputs([tmp_path], ReadSettings())
    assert reason in str(nothing.value)
    assert name in str(nothing.value)
    tree(tmp_path, {"a.txt": b"a text"})
    found = list_inputs([tmp_path], ReadSettings())
    assert [file.path for file in found.files] == ["a.txt"]
    assert sum(found.skipped.values()) == 1
    assert [*found.examples.values()] == [(name,)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("picture.txt", b"\x89PNG\r\n\x1a\n\0\0", "PNG"), ("lines.jsonl", b"PK\x03\x04\x14\0\0\0", "zip")],
)
def test_what_its_name_alone_says_to_be_text_is_one_dead_letter(tmp_path, name, content, reason):
    tree(tmp_path, {name: content, "a.txt": b"a text"})
    letters = [found for found in read(tmp_path, split_bytes=3) if isinstance(found, DeadLetter)]
    assert [letter.place.path for letter in letters] == [name]
    assert reason in letters[0].reason


def test_the_summary_names_what_was_left_out(tmp_path, capsys):
    tree(tmp_path / "in", {"a.jsonl": LINES, "a.jsonl~": LINES, ".x\x1b[31m": b"x"})
    assert preprocess(tmp_path / "in", "--out", tmp_path / "out", *STATIC) == 0
    said = capsys.readouterr().out
    assert "a.jsonl~" in said
    assert ".x" in said
    assert "\x1b" not in said


def test_texts_in_any_encoding_and_code_that_begins_with_a_bracket_are_texts(tmp_path):
    files = {
        "latin-1.txt": "café".encode("latin-1"),
        "utf-16": "a text in UTF-16".encode("utf-16"),
        "utf-16-le": "without a mark".encode("utf-16-le"),
        "shift-jis": "日本語の文章".encode("shift_jis"),
        "code.js": b"[1, 2].map(f)\n",
        "page.css": b"{ color: red }\n",
        "tex": b"{\\it text} of a page\n",
        "log": b"\x1b[31mred\x1b[0m\n" * 9,
        "nul.txt": b"one\0two",
        "MZ": b"MZ begins this text",
    }
    tree(tmp_path, files)
    assert {r.place.path: r.text for r in read(tmp_path)} == files


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_another_encoding_is_named_with_it(tmp_path, encoding):
    content = LINES.decode().encode(encoding)
    name = encoding[:6].upper()
    tree(tmp_path, {"a.jsonl": content, "b.json.gz": gzip.compress(content), "c.jsonl": LINES})
    with pytest.raises(PipelineError, match=rf"a\.jsonl: JSON in {name}: convert it to UTF-8"):
        read(tmp_path / "a.jsonl")
    letters = [found.reason for found in read(tmp_path) if isinstance(found, DeadLetter)]
    assert [name in reason for reason in letters] == [True, True]
    found = read(tmp_path / "a.jsonl", input_format="jsonl")
    assert isinstance(found[0], DeadLetter)
    assert name in found[0].reason


def test_a_format_that_is_given_is_believed_of_every_file(tmp_path):
    tree(tmp_path, {"x.pq": parquet(), "a.jsonl": LINES})
    found = read(tmp_path, input_format="text")
    assert {r.place.path: r.text for r in found} == {"x.pq": parquet(), "a.jsonl": LINES}


@pytest.mark.parametrize(
    ("content", "good", "reason"),
    [
        (b'[{"text": "a"}, {"text": "b"', 1, "ends inside a value"),
        (b'[{"text": "a"}, {"text": "b"}', 2, "without its"),
        (b'[{"text": "a"}, 5, {"text": "b"}]', 2, "a number"),
        (b'[{"text": "a"}, {"text": }, {"text": "b"}]', 2, "not JSON"),
        (b'[{"text": "a"}] {"text": "b"}', 1, "follows the end"),
        (b'[\n{"text": "a"},\n' + b"[" * 100_000 + b"]" * 100_000 + b"]", 1, "not JSON"),
    ],
)
def test_what_is_wrong_in_an_array_costs_no_more_than_that(tmp_path, content, good, reason):
    tree(tmp_path, {"a.json": content})
    found = read(tmp_path)
    assert sum(isinstance(f, Record) for f in found) == good
    (letter,) = [f for f in found if isinstance(f, DeadLetter)]
    assert reason in letter.reason
    assert letter.place.row is not None


def test_an_array_is_split_in_bounded_memory(tmp_path, monkeypatch):
    from pipeline.read.formats.json_values import json_values

    long = b'[{"text": "' + b"x" * 5000 + b'"}, {"text": "b"}]'
    found = list(json_values((long[i : i + 7] for i in range(0, len(long), 7)), longest=1000))
    assert [(v.size, v.sha256 is not None) for v in found] == [(5012, True), (13, False)]
    assert len(found[0].data) <= 1010


def test_a_window_beyond_the_limit_is_said_to_be_that_never_damaged(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    pack = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    tree(tmp_path, {"a.jsonl.zst": pack.compress(LINES) + pack.flush()})
    assert texts_of(tmp_path) == sorted(TEXTS)
    (letter,) = read(tmp_path, max_window=2**27)
    assert isinstance(letter, DeadLetter)
    assert "--max-window" in letter.reason
    assert "damaged" not in letter.reason
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**26}]
    tree(tmp_path / "x", {"a.jsonl.xz": lzma.compress(LINES, filters=filters)})
    (letter,) = read(tmp_path / "x", max_window=2**20)
    assert "--max-window" in letter.reason


def test_a_snapshot_of_the_hub_is_its_links_and_a_cache_is_read_once(tmp_path):
    repository = tree(tmp_path / "hub" / "datasets--me--x", {"blobs/01": LINES, "blobs/02": parquet(table(["old"]))})
    tree(repository, {"refs/main": b"new"})
    for revision, blob, name in (("new", "01", "a.jsonl"), ("old", "02", "a.parquet")):
        folder = repository / "snapshots" / revision / "data"
        folder.mkdir(parents=True)
        (folder / name).symlink_to(f"../../../blobs/{blob}")
    for where in ("datasets--me--x/snapshots/new", "datasets--me--x/snapshots/new/data", "", "datasets--me--x"):
        assert texts_of(tmp_path / "hub" / where) == sorted(TEXTS), where
    assert texts_of(f"{repository}/snapshots/*/data/*.jsonl") == sorted(TEXTS)
    secret = tree(tmp_path / "outside", {"secret.txt": b"secret"}) / "secret.txt"
    (repository / "snapshots" / "new" / "s.txt").symlink_to(secret)
    found = list_inputs([repository], ReadSettings())
    assert [file.path for file in found.files] == ["snapshots/new/data/a.jsonl"]
    assert found.skipped["symbolic links"] == 1


def test_of_a_saved_dataset_the_listed_files_are_read_and_none_may_be_missing(tmp_path):
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    tree(tmp_path, {names[0]: stream(), "data-00000-of-00001.arrow": stream(), "dataset_info.json": b"{}"})
    tree(tmp_path, {"state.json": json.dumps({"_data_files": [{"filename": name} for name in names]}).encode()})
    with pytest.raises(PipelineError, match=names[1]):
        list_inputs([tmp_path], ReadSettings())
    tree(tmp_path, {names[1]: stream()})
    assert [file.path for file in list_inputs([tmp_path], ReadSettings()).files] == names
    for bad in (b"[]", b'{"_data_files": [{"filename": "../x"}]}', b"{" * 9, b'{"_data_files": 5}'):
        tree(tmp_path, {"state.json": bad})
        with pytest.raises(PipelineError, match=r"state\.json"):
            list_inputs([tmp_path], ReadSettings())


def test_data_named_test_is_left_out_beside_train_and_validation_goes_there(tmp_path):
    files = {f"data/{side}-00000-of-00001.parquet": parquet(table([side])) for side in ("train", "test", "validation")}
    tree(tmp_path / "in", {**files, "README.md": b"# card", "LICENSE": b"free", ".gitattributes": b"x"})
    assert preprocess(tmp_path / "in", "--out", tmp_path / "out", *STATIC) == 0
    sides = {s: [r.text for r in open_dataset(tmp_path / "out" / s).rows()] for s in ("train", "validation")}
    assert sides == {"train": [b"train"], "validation": [b"validation"]}
    assert texts_of(tmp_path / "in", named_splits="ignore") == ["test", "train", "validation"]
    # Without train beside it, test data is what is wanted.
    assert texts_of(tmp_path / "in" / "data" / "test-*.parquet") == ["test"]
    # Texts are told by folders of these very names, never by the names of files.
    tree(tmp_path / "code", {"train.py": b"a = 1", "test_train.py": b"b = 2", "tests/test_x.py": b"c = 3"})
    assert len(read(tmp_path / "code")) == 3
    tree(tmp_path / "texts", {"train/a.txt": b"a", "test/b.txt": b"b"})
    assert texts_of(tmp_path / "texts") == ["a"]


def test_unfinished_runs_and_our_datasets_are_no_documents(tmp_path):
    tree(tmp_path / "in", {"a.txt": b"a text", "notes.md": b"notes"})
    assert preprocess(tmp_path / "in" / "a.txt", "--out", tmp_path / "in" / "run", *STATIC) == 0
    assert texts_of(tmp_path / "in", include=["*.md"]) == ["notes"]
    (tmp_path / "in" / "run" / "validation" / "manifest.json").unlink()
    found = list_inputs([tmp_path / "in"], ReadSettings())
    assert [file.path for file in found.files] == ["a.txt", "notes.md"]
    assert found.skipped == {"runs of preprocess that are not finished": 1}


def test_a_refused_folder_is_left_as_it_was(tmp_path):
    tree(tmp_path, {"mine/a.txt": b"mine", "empty/x": b""})
    (tmp_path / "empty" / "x").unlink()
    assert preprocess(tmp_path / "mine", "--out", tmp_path / "mine", *STATIC) == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a.txt"]
    assert preprocess(tmp_path / "nowhere", "--out", tmp_path / "empty", *STATIC) == 2
    assert [*(tmp_path / "empty").iterdir()] == []
    assert preprocess(tmp_path / "nowhere", "--out", tmp_path / "new", *STATIC) == 2
    assert not (tmp_path / "new").exists()


def awkward() -> dict[str, pa.Array]:
    import uuid

    return {
        "duration": pa.array([1, 2], pa.duration("ns")),
        "clock": pa.array([1, 2], pa.time64("ns")),
        "uuid": pa.array([uuid.UUID(int=1).bytes] * 2, pa.uuid()),
        "far": pa.array([2**22, 1], pa.date32()),
        "far_time": pa.array([2**40, 1], pa.timestamp("s")),
        "nan_in_list": pa.array([[float("nan")]] * 2),
        "infinite": pa.array([float("inf")] * 2),
        "clocks": pa.array([[1], [2]], pa.list_(pa.time64("ns"))),
        "struct": pa.array([{"a": 1}, {"a": 2}], pa.struct([("a", pa.duration("ns"))])),
    }


@pytest.mark.parametrize("name", list(awkward()))
def test_a_column_that_is_not_the_text_never_costs_it(tmp_path, name):
    pq.write_table(pa.table({"text": ["a", "b"], "x": awkward()[name]}), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet", meta=True)
    assert [record.text for record in found] == [b"a", b"b"]
    assert all(set(json.loads(record.meta)) == {"x"} for record in found)


@pytest.mark.parametrize(
    ("line", "meta", "replaced"),
    [
        (b'{"text": "a", "x": NaN}', {"x": None}, 1),
        (b'{"text": "a", "x": [Infinity]}', {"x": ["Infinity"]}, 1),
        (b'{"text": "a", "x": "\\ud800", "y": 1}', {"x": "\\xed\\xa0\\x80", "y": 1}, 1),
        (b'{"text": "a", "x": ' + b"[" * 700 + b"]" * 700 + b', "y": 1}', {"x": None, "y": 1}, 1),
        (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", {"x": "9" * 5000}, 0),
        (b'{"text": "a", "id": "\\udc00", "lang": "\\u0000"}', None, 1),
    ],
)
def test_values_without_a_form_are_replaced_and_counted(tmp_path, line, meta, replaced):
    tree(tmp_path, {"a.jsonl": line})
    (record,) = read(tmp_path, meta=True)
    assert isinstance(record, Record)
    assert record.text == b"a"
    assert (json.loads(record.meta) if record.meta else None) == meta
    assert record.replaced == replaced


def test_an_option_that_names_a_column_no_record_has_is_reported(tmp_path, capsys):
    tree(tmp_path, {"a.jsonl": LINES + b'{"text": "last", "doc": "d"}\n', "b.txt": b"x"})
    for option in ("--split-key", "--subset-column", "--id-column"):
        assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / option, *STATIC, option, "nope") == 4
        assert f"warning: {option} nope" in capsys.readouterr().out
        assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / option, *STATIC, option, "nope") == 4
        capsys.readouterr()
    assert preprocess(tmp_path / "b.txt", "--out", tmp_path / "text", *STATIC, "--split-key", "doc") == 4
    capsys.readouterr()
    assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / "some", *STATIC, "--split-key", "doc") == 0
    assert "5 without the column 'doc' of --split-key" in capsys.readouterr().out


def test_the_columns_that_there_are_are_listed_for_one_that_is_not(tmp_path, capsys):
    tree(tmp_path, {"a.jsonl": b'{"text": "x", "lang": "de", "title": "t", "id": "1"}\n'})
    assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / "out", *STATIC, "--subset-column", "lnag") == 4
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if "warning: --subset-column lnag" in line)
    assert warning.endswith("has id, lang, title")


def test_folders_that_are_the_inputs_are_no_subsets_which_is_said_before_the_work(tmp_path, capsys):
    tree(tmp_path / "in", {"de/a.txt": b"x", "fr/b.txt": b"y"})
    line = (tmp_path / "in" / "de", tmp_path / "in" / "fr", "--out", tmp_path / "out", *STATIC)
    assert preprocess(*line, "--subset-from", "directory", "--dry-run") == 0
    assert "warning: --subset-from directory" in capsys.readouterr().out
    assert preprocess(*line, "--subset-from", "directory") == 0
    assert "--subset-from directory" in capsys.readouterr().err  # the summary is on standard output


def test_the_most_frequent_reason_of_dead_letters_is_said_with_the_columns_that_there_are(tmp_path, capsys):
    lines = b'{"body": "x", "lang": "de"}\n' * 7 + b"no JSON\n" * 2
    tree(tmp_path, {"a.jsonl": lines})
    assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / "out", *STATIC, "--text-column", "txt") == 4
    assert "7 of 9 looked at: no column 'txt'; it has body, lang" in capsys.readouterr().out


def test_options_that_do_nothing_with_the_files_that_there_are_are_named(tmp_path, capsys):
    tree(tmp_path / "in", {"a.jsonl": LINES})
    idle = ("--exclude", "*.tmp", "--document-bytes", 100, "--subset-from", "directory")
    assert preprocess(tmp_path / "in", "--out", tmp_path / "out", *STATIC, *idle) == 0
    said = capsys.readouterr().out
    for option in ("--exclude *.tmp", "--document-bytes", "--subset-from directory"):
        assert f"warning: {option}:" in said
    tree(tmp_path / "in", {"b/b.txt": b"x", "c.tmp": b"x"})
    assert preprocess(tmp_path / "in", "--out", tmp_path / "all", *STATIC, *idle) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_table_without_the_text_counts_its_rows_and_no_documents_are_said(tmp_path, capsys):
    pq.write_table(pa.table({"body": ["x"] * 2285}), tmp_path / "x.parquet")
    assert preprocess(tmp_path / "x.parquet", "--out", tmp_path / "out", *STATIC) == 4
    assert counts(tmp_path / "out")["records"] == counts(tmp_path / "out")["dead"] == 2285
    assert "warning: no documents: all 2,285 records are dead letters" in capsys.readouterr().out
    (letter,) = letters(tmp_path / "out")
    assert letter["records"] == 2285
    tree(tmp_path, {"a.jsonl": b'{"body": "x"}\n' * 9})
    assert preprocess(tmp_path / "a.jsonl", "--out", tmp_path / "lines", *STATIC) == 4


def test_little_is_read_to_know_a_format_and_nothing_where_the_name_says_it(tmp_path, monkeypatch):
    from pipeline.inputs import finding

    tree(tmp_path, {"a": b"x" * 10_000_000, "b.jsonl": LINES})
    seen: Counter[str] = Counter()
    real = finding.open_binary

    def counted(location):
        file = real(location)
        read = file.read

        class Counting:
            def read(self, size):
                seen[Path(location).name] += size
                return read(size)

            seek = file.seek

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

        return Counting()

    monkeypatch.setattr(finding, "open_binary", counted)
    list_inputs([tmp_path], ReadSettings())
    assert set(seen) == {"a"}, "the name of the other says enough"
    assert max(seen.values()) <= 2**16


def test_one_text_is_stored_whatever_the_number_of_workers(tmp_path):
    tree(tmp_path / "in", {"a.json": PRETTY, "b.json.gz": gzip.compress(LINES), "c.pq": parquet(), "d": tar()})
    for number in (1, 2):
        options = ("--rule", "static", "--stride", "5", "--executor", "inline", "--workers", number)
        assert preprocess(tmp_path / "in", "--out", tmp_path / str(number), *options, "--split-bytes", 300) == 0
    assert stored(tmp_path / "1") == stored(tmp_path / "2")
    assert len(stored(tmp_path / "1")) == 4 * len(TEXTS)
