"""convert keeps everything: there and back again gives the same bytes."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.dataset_examples import ENTROPY, EXACT, MONOTONIC, NONE, STATIC, documents, save_dataset
from helpers.rewriting_examples import files, make_place, run, scored, sides

from shared.errors import DatasetError
from shared.shards.open import find_datasets, open_dataset


@pytest.mark.parametrize("through", ["webdataset", "parquet"])
@pytest.mark.parametrize(
    ("patching", "sidecar"),
    [(NONE, "none"), (NONE, "float32"), (STATIC, "none"), (ENTROPY, "uint8"), (EXACT, "none"), (MONOTONIC, "float32")],
)
def test_there_and_back_gives_the_same_bytes(tmp_path: Path, through: str, patching, sidecar) -> None:
    save_dataset(tmp_path / "in", documents(patching), patching, "arrow", sidecar)
    assert run("convert", tmp_path / "in", "--to", through, "--out", tmp_path / "there", "--workers", 1) == 0
    assert run("convert", tmp_path / "there", "--to", "arrow", "--out", tmp_path / "back", "--workers", 1) == 0
    assert files(tmp_path / "back") == files(tmp_path / "in")
    assert run("convert", tmp_path / "back", "--to", "arrow", "--out", tmp_path / "again") == 2


def test_a_run_keeps_both_sides_its_entropy_model_and_other_columns(tmp_path: Path, capsys) -> None:
    place = make_place(tmp_path / "place")
    source = scored(place, tmp_path / "run", "--rule", "entropy", "--theta", 2, "--format", "webdataset")
    for format, workers in (("parquet", 2), ("arrow", 1)):
        assert run("convert", source, "--to", format, "--out", tmp_path / format, "--workers", workers) == 0
        assert run("verify", tmp_path / format) == 0
    assert run("convert", tmp_path / "parquet", "--to", "webdataset", "--out", tmp_path / "back") == 0
    assert sides(tmp_path / "back") == sides(source)
    for name in ("train", "validation"):
        ours, theirs = (open_dataset(folder / name).manifest.identity for folder in (tmp_path / "arrow", source))
        assert ours == theirs.model_copy(update={"format": "arrow"})
        texts = [[row.text for row in open_dataset(folder / name).rows()] for folder in (tmp_path / "arrow", source)]
        assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with entropies, in, and its export, out."""
    folder = tmp_path_factory.mktemp("exported")
    save_dataset(folder / "in", documents(ENTROPY), ENTROPY, "arrow", "float32")
    assert run("convert", folder / "in", "--to", "parquet", "--out", folder / "out") == 0
    return folder


def test_anyone_can_read_the_parquet_files(exported: Path) -> None:
    table = pa.concat_tables(pq.read_table(path) for path in sorted((exported / "out").glob("*.parquet")))
    wanted = [
        {
            "id": row.id,
            "subset": row.subset,
            "part": row.part,
            "text": row.text,
            "patch_lengths": row.patch_lengths.tolist(),
            "entropies": row.entropies.tolist(),
            "meta": None,
        }
        for row in open_dataset(exported / "in").rows(entropies=True)
    ]
    assert table.select(list(wanted[0])).to_pylist() == wanted


def test_row_groups_are_batches_in_zstd(exported: Path) -> None:
    file = pq.ParquetFile(exported / "out" / "shard-00000.parquet")
    assert file.num_row_groups == open_dataset(exported / "in").batch_count(0)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_an_export_is_no_dataset_to_train_on_by_mistake(exported: Path) -> None:
    with pytest.raises(DatasetError):
        find_datasets(exported / "out")


@pytest.fixture(scope="module")
def whole_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    save_dataset(folder / "in", documents(STATIC), STATIC)
    assert run("convert", folder / "in", "--to", "parquet", "--out", folder / "out") == 0
    return folder / "out"


@pytest.fixture
def second_file(whole_export: Path, tmp_path: Path) -> Path:
    """The second file of a copy of the export."""
    return shutil.copytree(whole_export, tmp_path / "out") / "shard-00001.parquet"


@pytest.fixture
def damaged(second_file: Path) -> Path:
    """The same with a flipped bit in a text."""
    content = bytearray(second_file.read_bytes())
    text = pq.ParquetFile(second_file).metadata.row_group(0).column(3)
    content[text.data_page_offset + text.total_compressed_size - 5] ^= 1
    second_file.write_bytes(content)
    return second_file


def test_verify_counts_what_an_export_holds(whole_export: Path, capsys) -> None:
    assert run("verify", whole_export) == 0
    assert capsys.readouterr().out.endswith("2 Parquet files, 5 documents, 695 bytes; no problem\n")


def test_a_reader_that_asks_for_it_is_told_of_damage(damaged: Path) -> None:
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(damaged, page_checksum_verification=True).read()


def test_verify_finds_damage_to_an_export(damaged: Path, capsys) -> None:
    assert run("verify", damaged.parent) == 1
    assert f"{damaged} is damaged: sha256" in capsys.readouterr().out


def test_a_damaged_export_is_not_converted(damaged: Path, tmp_path: Path, capsys) -> None:
    assert run("convert", damaged.parent, "--to", "arrow", "--out", tmp_path / "back") == 2
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_verify_names_a_file_of_an_export_that_is_gone(second_file: Path, capsys) -> None:
    second_file.unlink()
    assert run("verify", second_file.parent) == 1
    assert f"{second_file} is missing" in capsys.readouterr().out
