"""convert keeps everything: there and back again gives the same bytes."""

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
    for format in ("parquet", "arrow"):
        assert run("convert", source, "--to", format, "--out", tmp_path / format) == 0
        assert run("verify", tmp_path / format) == 0
    assert run("convert", tmp_path / "parquet", "--to", "webdataset", "--out", tmp_path / "back") == 0
    assert sides(tmp_path / "back") == sides(source)
    for name in ("train", "validation"):
        ours, theirs = (open_dataset(folder / name).manifest.identity for folder in (tmp_path / "arrow", source))
        assert ours == theirs.model_copy(update={"format": "arrow"})
        texts = [[row.text for row in open_dataset(folder / name).rows()] for folder in (tmp_path / "arrow", source)]
        assert texts[0] == texts[1]


def test_anyone_can_read_the_parquet_files(tmp_path: Path) -> None:
    save_dataset(tmp_path / "in", documents(ENTROPY), ENTROPY, "arrow", "float32")
    assert run("convert", tmp_path / "in", "--to", "parquet", "--out", tmp_path / "out") == 0
    rows = list(open_dataset(tmp_path / "in").rows(entropies=True))
    table = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet")))
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert (found["id"], found["subset"], found["part"], found["text"]) == (row.id, row.subset, row.part, row.text)
        assert found["patch_lengths"] == row.patch_lengths.tolist()
        assert found["entropies"] == row.entropies.tolist()
        assert found["meta"] is None
    file = pq.ParquetFile(tmp_path / "out" / "shard-00000.parquet")
    assert file.num_row_groups == open_dataset(tmp_path / "in").batch_count(0)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    with pytest.raises(DatasetError):  # nothing to train on by mistake
        find_datasets(tmp_path / "out")


def test_damage_to_an_export_is_found(tmp_path: Path, capsys) -> None:
    save_dataset(tmp_path / "in", documents(STATIC), STATIC)
    assert run("convert", tmp_path / "in", "--to", "parquet", "--out", tmp_path / "out") == 0
    assert run("verify", tmp_path / "out") == 0
    assert capsys.readouterr().out.endswith("2 Parquet files, 5 documents, 695 bytes; no problem\n")
    path = tmp_path / "out" / "shard-00001.parquet"
    content = bytearray(path.read_bytes())
    text = pq.ParquetFile(path).metadata.row_group(0).column(3)
    content[text.data_page_offset + text.total_compressed_size - 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):  # anyone who asks for it is told
        pq.ParquetFile(path, page_checksum_verification=True).read()
    assert run("verify", tmp_path / "out") == 1
    assert f"{path} is damaged: sha256" in capsys.readouterr().out
    assert run("convert", tmp_path / "out", "--to", "arrow", "--out", tmp_path / "back") == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
    path.unlink()
    assert run("verify", tmp_path / "out") == 1
    assert f"{path} is missing" in capsys.readouterr().out
