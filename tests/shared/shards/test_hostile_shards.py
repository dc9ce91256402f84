"""Datasets whose checksums fit and whose content does not: readers refuse them in one line, before they allocate."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.refitted import Values, change_manifest, change_table, fit
from helpers.shard_examples import FORMATS, cut, document, make_dataset

from shared.errors import DatasetError
from shared.io.files.atomic import write_atomic
from shared.shards.cache import FileCache
from shared.shards.dataset import check_file
from shared.shards.formats import arrow, tar
from shared.shards.formats.arrow import ArrowReader, new_file
from shared.shards.formats.arrow_messages import footer, message_at
from shared.shards.formats.sidecar import SidecarWriter
from shared.shards.open import open_dataset
from shared.shards.tables import table_file
from trainer.data.documents import gather_documents
from trainer.data.sampling.streams import documents_of


def valid(folder: Path, format: Any = "arrow", sidecar: Any = "none") -> None:
    rows = [
        document("a", "x", b"some text " * 9),
        *cut(document("b", "y", b"in parts " * 9), [3]),
        document("c", "x", b""),
    ]
    make_dataset(folder, [rows, [document("d", "y", b"another shard")]], format, sidecar)
    list(open_dataset(folder).rows(entropies=sidecar != "none"))


def change_column(path: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    """Replace the values of a column of an Arrow file."""
    table = pa.ipc.open_file(path.read_bytes()).read_all().combine_chunks()
    field = table.schema.field(column)
    values = change(table.column(column).to_pylist())
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    array = pa.array(values, kind)
    if pa.types.is_dictionary(field.type):
        array = array.dictionary_encode().cast(field.type)
    table = table.set_column(table.schema.get_field_index(column), field, array)
    with new_file(str(path), table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)


def refused(folder: Path, entropies: bool = False) -> str:
    """The one line in which reading a dataset whole ends."""
    with pytest.raises(DatasetError) as error:
        list(open_dataset(folder).rows(entropies=entropies))
    assert "\n" not in str(error.value)
    return str(error.value)


def total(key: str, value: Any) -> Callable[[Values], object]:
    return lambda values: values["subsets"]["x"].update({key: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *((total("bytes", value), r"subsets\.x\.bytes") for value in (10**400, -5, 1e30, 2.0, 2**63, "9", True)),
        (lambda values: values.update(content_hash="x" * 64), "content_hash"),
        (lambda values: values.update(patch_length_histogram=[1]), "patch_length_histogram has 1 entries"),
        (lambda values: values.update(entropy_histogram=[-1] * 256), r"entropy_histogram\.0"),
        (lambda values: values["tables"]["runs"].update(sha256="0"), r"tables\.runs\.sha256"),
        (lambda values: values["tables"].pop("shards"), "shards missing"),
        (lambda values: [one.update(bytes=2**62) for one in values["subsets"].values()], "subsets: their counts"),
        (lambda values: values["tables"].update({"../up": values["tables"]["runs"]}), "tables"),
        (lambda values: values["subsets"].update({"": {}}), "subsets"),
        (lambda values: values.update(subsets=dict(reversed(values["subsets"].items()))), "sorted order"),
        (lambda values: values.pop("format_version"), "format version 1.*preprocess the corpus again"),
        (lambda values: values.update(format_version=99), "format version 99.*use the Patchwork that wrote it"),
    ],
)
def test_a_manifest_with_absurd_values_is_refused(tmp_path: Path, change: Any, named: str) -> None:
    valid(tmp_path)
    change_manifest(tmp_path, change)
    with pytest.raises(DatasetError, match=named) as error:
        open_dataset(tmp_path)
    assert "manifest.json" in str(error.value)


def read_tables(folder: Path) -> None:
    dataset = open_dataset(folder)
    for shard in range(dataset.shard_count):
        dataset.entry(shard)
    dataset.runs(0)


def first(key: str, value: Any) -> Callable[[list[Values]], object]:
    return lambda rows: rows[0].update({key: value})


@pytest.mark.parametrize(
    ("table", "change", "named"),
    [
        *(
            ("shards", first("name", name), "not a plain file name")
            for name in ("", "..", "a/b", "a\\b", "a\x1b[2J", "x" * 300)
        ),
        ("shards", lambda rows: rows[1].update(name=rows[0]["name"]), "listed more than once"),
        ("shards", first("bytes", -5), r"totals\.bytes|bytes"),
        ("shards", first("bytes", 2**40), "the manifest says"),
        ("shards", first("bytes_on_disk", 2**62), "bytes on disk of all shards"),
        ("shards", first("index_bytes", -1), "index_bytes"),
        ("shards", first("sidecar_bytes", 2**63 - 1), "sidecar_bytes"),
        ("shards", first("documents", 9), "documents is 9, more than rows"),
        ("shards", first("rows", 2**30), "rows is"),
        ("shards", first("content_hash", bytes(32)), "content hash of all shards"),
        ("shards", list.pop, "rows, manifest says"),
        ("runs", list.pop, "rows, manifest says"),
        ("runs", list.reverse, "order of subset, shard and row"),
        ("runs", first("subset", 9), "'subset' is 9"),
        ("runs", first("shard", 9), "'shard' is 9"),
        ("runs", first("shard", -1), "'shard' is -1"),
        ("runs", first("batch", -1), "'batch' is -1"),
        ("runs", first("row", -1), "'batch' is 0|'row' is -1"),
        ("runs", first("rows", 2**25), "'rows' is"),
        ("runs", first("documents", 0), "'documents' is 0"),
        ("runs", first("documents", 3), "'rows' is|documents of subset"),
        ("runs", first("targets", 3), "targets of subset"),
        ("runs", first("tokens", 2**60), "'tokens' is"),
        ("histograms", first("patch_length_histogram", [1]), "patch_length_histogram"),
        ("histograms", first("patch_length_histogram", [-1] * 65), "below 0"),
        ("histograms", first("patch_length_histogram", [7] * 65), "not the manifest's"),
    ],
)
def test_a_table_with_absurd_values_is_refused(tmp_path: Path, table: Any, change: Any, named: str) -> None:
    valid(tmp_path)
    change_table(tmp_path, table, change)
    with pytest.raises(DatasetError, match=named) as error:
        read_tables(tmp_path)
    assert f"tables/{table}.arrow" in str(error.value) or "shard-0000" in str(error.value)


@pytest.mark.parametrize("table", ["shards", "runs", "histograms"])
def test_a_table_that_should_have_countless_rows_is_refused_at_once(tmp_path: Path, table: Any) -> None:
    valid(tmp_path)
    change_manifest(tmp_path, lambda values: values["tables"][table].update(rows=2**62))
    with pytest.raises(DatasetError, match=rf"tables/{table}\.arrow does not fit the manifest: \d rows"):
        read_tables(tmp_path)


def test_a_manifest_that_changed_since_its_tables_were_checked_is_compared_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shared.shards.cache.SMALLEST_MARKED", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    valid(tmp_path / "data")
    read_tables(tmp_path / "data")
    change_manifest(tmp_path / "data", total("bytes", 7))
    with pytest.raises(DatasetError, match=r"shards\.arrow is damaged: bytes of all shards"):
        read_tables(tmp_path / "data")


@pytest.mark.parametrize("table", ["shards", "runs", "histograms"])
def test_a_dataset_with_another_table_is_another_dataset(tmp_path: Path, table: Any) -> None:
    valid(tmp_path)
    before = open_dataset(tmp_path).fingerprint
    change_manifest(tmp_path, lambda values: values["tables"][table].update(sha256="0" * 64))
    assert open_dataset(tmp_path).fingerprint != before


def test_a_subset_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    valid(tmp_path)
    change_manifest(tmp_path, lambda values: values["subsets"].update(z=values["subsets"].pop("y")))
    assert "does not fit the manifest, which has no subset 'y'" in refused(tmp_path)


def test_a_run_that_begins_inside_a_document_is_refused(tmp_path: Path) -> None:
    rows = [document("a", "x", b"one"), document("b", "x", b"two"), *cut(document("c", "y", b"in parts " * 9), [3])]
    make_dataset(tmp_path, [rows])
    change_table(tmp_path, "runs", first("row", 2))
    dataset = open_dataset(tmp_path)
    references = documents_of(dataset, dataset.runs(0), np.arange(1))
    with pytest.raises(DatasetError, match=r"shard-00000\.arrow: row 3 continues a document"):
        gather_documents(dataset, references, np.zeros(2, np.int64))


@pytest.mark.parametrize("table", ["shards", "runs", "histograms"])
def test_a_flipped_byte_of_a_table_is_found(tmp_path: Path, table: Any) -> None:
    valid(tmp_path)
    path = tmp_path / table_file(table)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is damaged: sha256"):
        read_tables(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "\xff", '{"identity": NaN}', "1" + "0" * 5000])
def test_a_manifest_that_no_parser_should_choke_on_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("bytes", -1000),
        ("bytes", 2**31 - 1),
        ("bytes", 95),
        ("patches", -1),
        ("patches", 1),
        ("patches", 2**30),
        ("last_patch", 9),
        ("last_patch", 0),
        ("part", 1),
        ("part", -1),
        ("last", 0),
        ("last", 2),
        ("subset", "y"),
        ("subset", "\x1b[31m"),
        ("batch", 1),
        ("row", 10**6),
        ("row", -1),
    ],
)
def test_an_index_that_lies_is_refused_by_whoever_reads_it(
    tmp_path: Path, format: Any, column: str, value: Any
) -> None:
    valid(tmp_path, format)
    for path in tmp_path.glob("*00000*.index"):
        change_column(path, column, lambda values: [value, *values[1:]])
    fit(tmp_path)
    assert "shard-00000" in refused(tmp_path)


@pytest.mark.parametrize("offset", [-512, 2**62, 1, 1 << 20])
def test_an_index_that_places_rows_outside_a_tar_is_refused(tmp_path: Path, offset: int) -> None:
    valid(tmp_path, "webdataset")
    change_column(tmp_path / "shard-00000.tar.index", "offset", lambda values: [offset, *values[1:]])
    fit(tmp_path)
    assert "shard-00000.tar" in refused(tmp_path)


def lengths(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


@pytest.mark.parametrize(
    ("column", "change", "named"),
    [
        ("patch_lengths", lambda value: bytes(len(value)), "patches of 0 tokens"),
        ("patch_lengths", lambda value: value[:2] + lengths(0, 8) + value[6:], "length 0"),
        ("patch_lengths", lambda value: lengths(*[9] * (len(value) // 2)), "patches of"),
        ("patch_lengths", lambda value: value + lengths(1), "patches, the index says"),
        ("text", lambda value: value + b"!", "bytes of text, the index says"),
        ("part", lambda value: -1, "part number -1"),
        ("part", lambda value: 1, "part number, the index says"),
        ("subset", lambda value: "y", "the subset 'y', the index says 'x'"),
        ("subset", lambda value: None, "'subset' is null in row 0"),
    ],
)
def test_a_shard_that_is_not_what_its_index_says_is_refused(
    tmp_path: Path, column: str, change: Any, named: str
) -> None:
    valid(tmp_path)
    path = tmp_path / "shard-00000.arrow"
    change_column(path, column, lambda values: [change(values[0]), *values[1:]])
    fit(tmp_path)
    said = refused(tmp_path)
    assert "shard-00000.arrow" in said
    assert named in said


def test_an_id_that_is_null_is_refused(tmp_path: Path) -> None:
    valid(tmp_path)
    change_column(tmp_path / "shard-00000.arrow", "id", lambda values: [*values[:2], None, *values[3:]])
    fit(tmp_path)
    assert "column 'id' is null in row 2" in refused(tmp_path)


def test_a_shard_in_a_dictionary_encoding_of_its_text_is_refused(tmp_path: Path) -> None:
    valid(tmp_path)
    path = tmp_path / "shard-00000.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all().combine_chunks()
    table = table.set_column(3, "text", table.column("text").dictionary_encode())
    with new_file(str(path), table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)
    fit(tmp_path)
    assert "its columns differ" in refused(tmp_path)


def test_what_a_record_batch_expands_to_is_known_before_it_is_decoded(tmp_path: Path, monkeypatch) -> None:
    valid(tmp_path)
    monkeypatch.setattr(arrow, "MOST_BATCH_BYTES", 2**25)
    path = tmp_path / "shard-00000.arrow"
    change_column(path, "text", lambda values: [bytes(arrow.MOST_BATCH_BYTES), *values[1:]])
    assert path.stat().st_size < 2**17
    fit(tmp_path)
    before = pa.system_memory_pool().bytes_allocated()
    with pytest.raises(DatasetError, match="expands to") as error:
        open_dataset(tmp_path).batch(0, 0)
    assert pa.system_memory_pool().bytes_allocated() - before < 2**20
    assert "shard-00000.arrow" in str(error.value)


def test_a_message_is_measured_as_it_is_decoded(tmp_path: Path) -> None:
    valid(tmp_path)
    source = pa.memory_map(str(tmp_path / "shard-00000.arrow"))
    found = footer(source)
    batch = pa.ipc.open_file(source).get_batch(0)
    buffers = sum(buffer.size for column in batch.columns for buffer in column.buffers() if buffer is not None)
    assert message_at(source, found.batches[0]).rows == len(batch)
    assert abs(message_at(source, found.batches[0]).made - buffers) <= 64 * len(batch.columns)


def test_the_footer_of_an_arrow_file_cannot_point_elsewhere(tmp_path: Path) -> None:
    valid(tmp_path)
    path = tmp_path / "shard-00000.arrow"
    whole = path.read_bytes()
    for at in range(len(whole) - 200, len(whole), 9):
        path.write_bytes(whole[:at] + b"\x7f" + whole[at + 1 :])
        with suppress(DatasetError):
            list(ArrowReader(path).batch(0).ids)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("fewer rows", "rows, the shard 4"),
        ("no batches", "no batch 0"),
        ("short", "entropies for"),
        ("long", "entropies for"),
    ],
)
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_a_sidecar_of_another_shard_is_refused(tmp_path: Path, what: str, named: str, kind: Any) -> None:
    valid(tmp_path, sidecar=kind)
    values = open_dataset(tmp_path).entropies(0, 0)
    batches = {
        "fewer rows": [values[:-1]],
        "no batches": [],
        "short": [[values[0][:-3], *values[1:]]],
        "long": [[np.concatenate([values[0]] * 3), *values[1:]]],
    }
    path = tmp_path / "shard-00000.arrow.entropy"
    with path.open("wb") as file:
        writer = SidecarWriter(file, kind)
        for batch in batches[what]:
            writer.write(batch)
        writer.close()
    fit(tmp_path)
    said = refused(tmp_path, entropies=True)
    assert path.name in said
    assert named in said


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"part":0', '"part":99999999999'),
        lambda text: text.replace('"part":0', '"part":-1'),
        lambda text: text.replace('"part":0', '"part":0.0'),
        lambda text: text.replace('"part":0', '"part":true'),
        lambda text: text.replace('"part":0', '"part":1' + "0" * 400),
        lambda text: text.replace('"id":"a"', '"id":null'),
        lambda text: text.replace('"id":"a"', '"id":"\\ud800"'),
        lambda text: text.replace('"subset":"x"', '"subset":null'),
        lambda text: text[:-1] + ',"spans":null}',
        lambda text: text[:-1] + ',"spans":' + "[" * 100_000 + "]" * 100_000 + "}",
        lambda text: text[:-1] + ',"spans":[{"end":1e400,"special":null,"loss":true}]}',
        lambda text: text[:-1] + ',"spans":[{"end":90,"special":1,"loss":true}]}',
        lambda text: "[]",
        lambda text: "\xff",
    ],
)
def test_a_record_of_a_tar_that_is_none_is_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    make_dataset(tmp_path, [[document("a", "x", b"some text " * 9)]], "webdataset")
    path = tmp_path / "shard-00000.tar"
    whole = memoryview(path.read_bytes())
    members = [(name, bytes(whole[start:end])) for _, name, start, end in tar.members(whole, 0)]
    content = b"".join(
        tar.member(name, change(data.decode()).encode("latin-1") if name.endswith(".json") else data)
        for name, data in members
    )
    path.write_bytes(content + tar.end_of_archive(len(content)))
    fit(tmp_path)
    assert "row 0 does not hold id, subset, part, meta" in refused(tmp_path)


def test_what_is_no_regular_file_is_never_waited_for(tmp_path: Path) -> None:
    valid(tmp_path)
    path = tmp_path / "shard-00000.arrow"
    path.unlink()
    path.mkdir()
    assert "is not a regular file" in refused(tmp_path)
    with pytest.raises(DatasetError, match="not a regular file"):
        check_file(Path("/dev/zero"), "0" * 64)


def test_more_than_was_announced_is_not_fetched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shared.io.stores.locations.PAUSE_SECONDS", 0.0)
    write_atomic(tmp_path / "file", b"x" * 5000)
    cache = FileCache(tmp_path / "cache")
    with pytest.raises(DatasetError, match="larger than 100 bytes"):
        cache.fetch(f"file://{tmp_path / 'file'}", "0" * 64, 100)
    assert not list((tmp_path / "cache").glob("*/*"))
