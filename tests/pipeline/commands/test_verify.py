"""verify passes every dataset that the writer makes, and finds each kind of damage, naming the file."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_examples import (
    BYTE,
    ENTROPY,
    EXACT,
    MONOTONIC,
    NONE,
    RISE,
    SPACE,
    STATIC,
    document,
    documents,
    rewrite,
    save_dataset,
    set_value,
)
from helpers.refitted import change_manifest, change_table, fit
from safetensors.numpy import save_file

from pipeline.__main__ import main
from pipeline.commands.verify import LISTED, add_arguments, run, summary, verify, verify_export
from pipeline.rewriting.parquet_export import exports_at
from shared.model_folder.identity import model_sha256
from shared.model_settings import EntropyModelSettings
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.manifest import EntropyModelIdentity, NumericsClass
from shared.shards.open import open_dataset


def problems(folder: Path) -> list[str]:
    """What verify says; that entropy rules have no entropy model here is left out."""
    found = verify(open_dataset(folder)).problems
    return [line for line in found if "the manifest names none" not in line]


def command(folder: Path) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(folder)]))


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
@pytest.mark.parametrize(
    ("patching", "sidecar", "replayed"),
    [
        (NONE, "none", 0),
        (NONE, "float32", 0),
        (STATIC, "none", 5),
        (SPACE, "none", 5),
        (BYTE, "uint8", 5),
        (ENTROPY, "none", 0),
        (ENTROPY, "uint8", 5),
        (ENTROPY, "float32", 5),
        (EXACT, "uint8", 0),
        (EXACT, "float32", 5),
        (RISE, "uint8", 0),
        (RISE, "float32", 5),
        (MONOTONIC, "float32", 5),
    ],
)
def test_what_the_writer_makes_passes_and_boundaries_are_found_again(
    tmp_path: Path, format, patching: PatchingSettings, sidecar, replayed: int
) -> None:
    save_dataset(tmp_path, documents(patching), patching, format, sidecar)
    assert problems(tmp_path) == []
    found = verify(open_dataset(tmp_path))
    assert found.replayed == replayed
    assert found.documents == (5 if patching.patched else 4)
    assert found.text_bytes == open_dataset(tmp_path).manifest.totals.bytes


def test_documents_over_several_batches_are_verified_whole(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shared.shards.writer.BATCH_BYTES", 100)
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY, "arrow", "uint8")
    assert sum(map(open_dataset(tmp_path).batch_count, range(2))) > 4
    assert problems(tmp_path) == []


@pytest.mark.parametrize("at", [0, -2])
def test_a_boundary_moved_in_a_later_part_is_found(tmp_path: Path, at: int) -> None:
    rows = [row for shard in documents(STATIC) for row in shard]
    moved = rows[-1].patch_lengths.copy()
    moved[at], moved[at + 1] = moved[at] + 1, moved[at + 1] - 1
    rows[-1] = replace(rows[-1], patch_lengths=moved[moved > 0])
    save_dataset(tmp_path, [rows], STATIC)
    data = open_dataset(tmp_path)
    found = verify(data)
    assert sum("document 'e': stored boundaries are not those of the rule" in line for line in found.problems) == 1
    assert "boundaries of 4 documents found again" in summary(data, found)


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_every_damaged_or_missing_file_is_listed_in_one_run(tmp_path: Path, format, capsys) -> None:
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY, format, "uint8")
    ending = "arrow" if format == "arrow" else "tar"
    for name in (f"shard-00000.{ending}", f"shard-00000.{ending}.entropy"):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name).write_bytes(content)
    (tmp_path / f"shard-00001.{ending}").write_bytes(b"")
    (tmp_path / f"shard-00001.{ending}.index").unlink()
    (tmp_path / f"shard-00007.{ending}").write_bytes(b"a stranger")
    assert command(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    for name, problem in {
        f"shard-00000.{ending}": "damaged: sha256",
        f"shard-00000.{ending}.entropy": "damaged: sha256",
        f"shard-00001.{ending}": "damaged: 0 bytes",
        f"shard-00001.{ending}.index": "missing",
        f"shard-00007.{ending}": "does not list it",
    }.items():
        assert any(line.startswith(f"{tmp_path / name}") and problem in line for line in lines), name
    assert "PROBLEMS" in lines[-1]


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        ("bytes", 0, 60),
        ("patches", 0, 1),
        ("last_patch", 0, 2),
        ("part", 0, 1),
        ("last", 0, 0),
        ("subset", 0, "prose"),
    ],
)
def test_an_index_that_differs_from_the_rows_is_found(tmp_path: Path, column: str, row: int, value) -> None:
    save_dataset(tmp_path, documents(STATIC), STATIC)
    rewrite(tmp_path / "shard-00000.arrow.index", set_value(column, row, value))
    (line,) = problems(tmp_path)
    assert re.search(rf"shard-00000\.arrow\.index.*column '({column}|targets)' is .*row {row}", line), line


def test_an_index_of_other_batches_is_found(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(STATIC), STATIC)
    rewrite(tmp_path / "shard-00000.arrow.index", set_value("row", 1, 0))
    (line,) = problems(tmp_path)
    assert "shard-00000.arrow.index is damaged: its batch numbers" in line
    rewrite(tmp_path / "shard-00001.arrow.index", lambda table: table.slice(0, 2).combine_chunks().to_batches())
    assert "shard-00001.arrow.index does not fit the manifest" in problems(tmp_path)[1]


def lengths(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("patch_lengths", lengths(1, 60, 75), "'a' part 0: patch lengths sum to 136, its bytes and special ids to 137"),
        ("patch_lengths", lengths(2, 60, 75), "first patch holds BOS"),
        ("patch_lengths", lengths(1, 60, 0, 76), "length 0"),
        ("patch_lengths", lengths(1, 60, 76), "longer than max_length 16"),
        ("text", b"other text with as many bytes".ljust(135), "content_hash is"),
        ("part", 1, "cannot begin with part 1"),
        ("subset", "prose", "content_hash is"),
    ],
)
def test_rows_that_differ_from_index_and_manifest_are_found(tmp_path: Path, column: str, value, problem: str) -> None:
    save_dataset(tmp_path, documents(SPACE), SPACE)
    rewrite(tmp_path / "shard-00000.arrow", set_value(column, 0, value))
    lines = problems(tmp_path)
    assert any(line.startswith(str(tmp_path / "shard-00000.arrow")) for line in lines)
    assert any(re.search(problem, line) for line in lines), lines
    assert not any("shard-00001" in line for line in lines)


def test_boundaries_that_are_not_those_of_the_rule_are_found(tmp_path: Path) -> None:
    for patching, sidecar in ((STATIC, "none"), (ENTROPY, "uint8"), (RISE, "float32")):
        folder = tmp_path / patching.rule
        rows = [row for shard in documents(patching) for row in shard]
        moved = rows[3].patch_lengths.copy()
        moved[1], moved[2] = moved[1] + 1, moved[2] - 1
        if moved[2] == 0:
            moved = np.delete(moved, 2)
        rows[3] = Row(rows[3].id, rows[3].subset, rows[3].text, 0, moved, rows[3].entropies)
        save_dataset(folder, [rows], patching, "arrow", sidecar)
        lines = problems(folder)
        assert any(
            "document 'd': stored boundaries are not those of the rule, from token 1 on" in line for line in lines
        )
        assert not any("'e'" in line for line in lines)


def test_a_threshold_other_than_the_one_applied_is_found(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY, "webdataset", "uint8")

    def change(values) -> None:
        values["identity"]["patching"]["thetas"] = {}

    change_manifest(tmp_path, change)
    lines = problems(tmp_path)
    assert len(lines) == 1  # the only text of the subset with a theta of its own
    assert "document 'b'" in lines[0]


def test_lengths_outside_the_limits_are_found_even_without_entropies(tmp_path: Path) -> None:
    loose = RISE.model_copy(update={"min_length": 1, "max_length": 9})
    save_dataset(tmp_path, documents(loose), loose)

    def change(values) -> None:
        values["identity"]["patching"] |= {"min_length": 2, "max_length": 8}

    change_manifest(tmp_path, change)
    lines = problems(tmp_path)
    assert any("shorter than min_length 2" in line for line in lines)
    assert any("longer than max_length 8" in line for line in lines)


def test_patched_rows_in_an_unpatched_dataset_are_found(tmp_path: Path) -> None:
    save_dataset(tmp_path, [[document("a", "x", b"abc", STATIC)]], NONE)
    assert any("document 'a' is patched, the rule is 'none'" in line for line in problems(tmp_path))
    save_dataset(tmp_path, [[document("a", "x", b"abc", NONE)]], STATIC)
    assert any("document 'a' is unpatched, the rule is 'static'" in line for line in problems(tmp_path))


@pytest.mark.parametrize("sidecar", ["uint8", "float32"])
def test_a_sidecar_of_other_lengths_or_values_is_found(tmp_path: Path, sidecar) -> None:
    width = 1 if sidecar == "uint8" else 4
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY, "arrow", sidecar)
    path = tmp_path / "shard-00000.arrow.entropy"
    rewrite(path, set_value("entropies", 0, bytes(10 * width)))
    assert any("document 'a' part 0: 10 entropies for 136 input tokens" in line for line in problems(tmp_path))
    rewrite(path, set_value("entropies", 0, bytes(136 * width)))
    lines = problems(tmp_path)
    assert any("document 'a': stored boundaries are not those of the rule" in line for line in lines)
    assert any("entropy_histogram is" in line for line in lines)
    rewrite(path, lambda table: table.slice(1).combine_chunks().to_batches())
    assert any("shard-00000.arrow.entropy: batch 0 has 1 rows, the shard 2" in line for line in problems(tmp_path))


@pytest.mark.parametrize("key", ["patch_length_histogram", "entropy_histogram"])
def test_histograms_that_differ_from_the_rows_are_found(tmp_path: Path, key: str) -> None:
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY, "webdataset", "uint8")

    def swap(rows) -> None:
        rows[0][key], rows[1][key] = rows[1][key], rows[0][key]

    change_table(tmp_path, "histograms", swap)
    lines = problems(tmp_path)
    assert [f"shard-0000{shard}.tar: {key}" in line for shard, line in enumerate(lines)] == [True, True]


@pytest.mark.parametrize(("column", "named"), [("content_hash", "content_hash"), ("bytes", "bytes")])
def test_a_table_of_shards_that_differs_from_the_rows_is_found(tmp_path: Path, column: str, named: str) -> None:
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY, "webdataset", "uint8")

    def swap(rows) -> None:
        rows[0][column], rows[1][column] = rows[1][column], rows[0][column]

    change_table(tmp_path, "shards", swap)
    lines = problems(tmp_path)
    assert len(lines) == 2
    assert all(named in line for line in lines)


def test_a_table_of_runs_that_differs_from_the_rows_is_found(tmp_path: Path) -> None:
    rows = [document(f"{n}", "x", b"abc" * (1 + n), STATIC) for n in range(4)]
    save_dataset(tmp_path, [rows[:1], rows[1:]], STATIC)

    def swap(runs) -> None:
        runs[0]["tokens"], runs[1]["tokens"] = runs[1]["tokens"], runs[0]["tokens"]

    change_table(tmp_path, "runs", swap)
    lines = problems(tmp_path)
    assert ["tokens of subset 'x'" in line for line in lines] == [True, True]


def test_a_damaged_table_is_found(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(STATIC), STATIC)
    change_table(tmp_path, "runs", list.reverse)
    (line,) = problems(tmp_path)
    assert "tables/runs.arrow is damaged" in line


def test_the_entropy_model_in_the_dataset_must_be_the_recorded_one(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY)
    assert any("the manifest names none" in line for line in verify(open_dataset(tmp_path)).problems)
    entropy_model = tmp_path / "entropy_model"
    entropy_model.mkdir()
    (entropy_model / "config.json").write_text(EntropyModelSettings(width=8, layers=1, heads=2).model_dump_json())
    save_file({"weights": np.zeros(3, np.float32)}, entropy_model / "model.safetensors")
    numerics = NumericsClass(
        device="cpu", dtype="float32", torch="2", attention="banded", stream_length=64, threads=1, probe="0"
    )
    identity = EntropyModelIdentity(sha256=model_sha256(entropy_model), numerics=numerics)
    change_manifest(tmp_path, lambda values: values["identity"].update(entropy_model=identity.model_dump()))
    assert verify(open_dataset(tmp_path)).problems == []
    save_file({"weights": np.ones(3, np.float32)}, entropy_model / "model.safetensors")
    (line,) = verify(open_dataset(tmp_path)).problems
    assert "is not the model that was recorded" in line
    (entropy_model / "model.safetensors").unlink()
    (line,) = verify(open_dataset(tmp_path)).problems
    assert "model.safetensors cannot be read" in line


def test_many_problems_of_a_shard_are_counted_rather_than_all_listed(tmp_path: Path) -> None:
    save_dataset(tmp_path, [[document(f"{n:03d}", "x", b"abcdefgh", STATIC) for n in range(100)]], BYTE)
    lines = problems(tmp_path)
    assert len(lines) == LISTED + 1
    assert "80 more problems" in lines[-1]


@pytest.fixture
def both(tmp_path: Path) -> Path:
    for split in ("train", "validation"):
        save_dataset(tmp_path / split, documents(STATIC), STATIC, split=split)
    return tmp_path


def test_the_command_takes_both_splits(both: Path, capsys) -> None:
    assert command(both) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("2 shards, 5 documents" in line and line.endswith("no problem") for line in lines)


def test_the_exit_code_tells_of_a_shard_that_is_gone(both: Path, capsys) -> None:
    (both / "validation" / "shard-00001.arrow").unlink()
    assert command(both) == 1
    assert "shard-00001.arrow is missing" in capsys.readouterr().out


def test_the_exit_code_tells_of_a_damaged_manifest(both: Path, capsys) -> None:
    (both / "train" / "manifest.json").write_text("{}")
    assert command(both) == 1
    assert "train/manifest.json has format version 1" in capsys.readouterr().out


@pytest.mark.parametrize("meta", ["", "{", "[1]", '"text"', "null", '{"a":NaN}', "[" * 100_000])
def test_other_columns_that_are_not_a_json_object_are_found(tmp_path: Path, meta: str) -> None:
    rows = [[replace(row, meta='{"a":1}') for row in shard] for shard in documents(STATIC)]
    save_dataset(tmp_path / "in", rows, STATIC)
    assert not problems(tmp_path / "in")
    rewrite(tmp_path / "in" / "shard-00001.arrow", set_value("meta", 0, meta))
    (line,) = problems(tmp_path / "in")
    assert re.search(r"shard-00001\.arrow: row 0: document 'd' part 0: meta is not a JSON object", line), line
    export = tmp_path / "out"
    assert main(["convert", str(tmp_path / "in"), "--to", "parquet", "--out", str(export), "--workers", "1"]) == 0
    found = verify_export(exports_at(export)[0]).problems
    assert any("shard-00001.parquet: row 0: document 'd'" in line for line in found)


def test_offsets_that_the_format_does_not_have_are_found(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(STATIC), STATIC)
    save_dataset(tmp_path / "tar", documents(STATIC), STATIC, "webdataset")
    index = (tmp_path / "tar" / "shard-00000.tar.index").read_bytes()
    (tmp_path / "shard-00000.arrow.index").write_bytes(index)
    fit(tmp_path)
    (line,) = problems(tmp_path)
    assert re.search(r"shard-00000\.arrow\.index: row 0 has the offset 0; .* -1", line), line


def test_a_place_that_is_not_there_is_a_wrong_argument(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "nosuch")]) == 2
    assert "nosuch does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_what_is_no_dataset_is_a_wrong_argument(command: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text("a text")
    assert main([command, str(tmp_path)]) == 2
    assert "not a finished dataset" in capsys.readouterr().err
