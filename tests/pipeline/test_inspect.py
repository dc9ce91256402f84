"""inspect reports the figures that the rows add up to, and ranks documents by how predictable they are."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from dataset_examples import ENTROPY, MONOTONIC, NONE, STATIC, document, documents, in_two_parts, save_dataset

from pipeline.charts import WIDTH, bar, bars, printable, size, table, with_boundaries
from pipeline.inspect import add_arguments, report, run
from pipeline.inspect.survey import survey
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import open_dataset
from shared.shards.document import Row


def command(folder: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(folder), *options]))


def lines_of(folder: Path, examples: int = 3) -> list[str]:
    return list(report(open_dataset(folder), examples))


def row_of(lines: list[str], label: str) -> list[str]:
    """The cells of the only line that begins with a label."""
    (line,) = [line for line in lines if line.split()[:1] == [label]]
    return line.split()


def test_bytes_per_patch_of_each_subset_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = [document("a", "code", b"x" * 40, STATIC), document("b", "prose", b"y" * 10, STATIC)]
    save_dataset(tmp_path, [rows], STATIC)
    lines = lines_of(tmp_path)
    # 40 bytes: ten patches of 4 and EOS alone; 10 bytes: 4, 4, and 2 with EOS
    assert row_of(lines, "code")[1:5] == ["1", "40", "11", f"{40 / 11:.2f}"]
    assert row_of(lines, "prose")[1:5] == ["1", "10", "3", f"{10 / 3:.2f}"]
    assert row_of(lines, "all")[1:5] == ["2", "50", "14", f"{50 / 14:.2f}"]
    assert "Patch lengths in tokens (of 14 patches): median 4, 90% up to 4, 99% up to 4" in lines
    assert row_of(lines, "4")[1] == f"{12 / 14:.1%}"


def test_shares_of_easy_and_hard_positions_are_relative_to_theta(tmp_path: Path) -> None:
    theta = ENTROPY.for_subset(None).theta
    assert theta is not None
    entropies = np.array([0.1, theta / 3 - 0.1, theta / 3 + 0.1, theta, theta + 0.01, 5.0, 5.5, 5.5], np.float32)
    row = Row("a", "code", b"1234567", 0, np.array([1, 8], np.uint16), entropies)
    save_dataset(tmp_path, [[row]], ENTROPY)
    lines = lines_of(tmp_path)
    (at,) = [n for n, line in enumerate(lines) if line.startswith("Share of positions")]
    assert "theta" in lines[at]
    shares = {line.split()[0]: line.split("%")[0].split()[-1] for line in lines[at + 1 : at + 4]}
    assert shares == {"low": "25.0", "medium": "25.0", "high": "50.0"}
    assert any("(of 8 positions)" in line for line in lines)


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
@pytest.mark.parametrize("sidecar", ["uint8", "float32"])
@pytest.mark.parametrize("patching", [NONE, ENTROPY, MONOTONIC])
def test_documents_are_ranked_by_mean_entropy(tmp_path: Path, format, sidecar, patching: PatchingSettings) -> None:
    levels = np.random.default_rng(0).permutation(20) / 4 + 0.25
    rows = [document(f"{n:02d}", "x", b"some text " * 20, patching, level) for n, level in enumerate(levels)]
    rows.append(document("short", "x", b"!", patching, 0.01))
    parted = [part for row in rows for part in (in_two_parts(row) if patching.patched and row.id == "03" else [row])]
    save_dataset(tmp_path, [parted[:7], parted[7:]], patching, format, sidecar)
    found = survey(open_dataset(tmp_path), 4)
    easy, hard = found.easiest, found.hardest
    means = {row.id: float(row.entropies.mean()) for row in rows if row.id != "short"}
    wanted = sorted(means, key=means.__getitem__)
    assert [example.id for example in easy] == wanted[:4]
    assert [example.id for example in hard] == wanted[:-5:-1]
    for example in [*easy, *hard]:
        assert example.mean == pytest.approx(means[example.id], abs=0.02 if sidecar == "uint8" else 1e-5)
        assert example.size == 200


def test_a_dataset_without_a_sidecar_says_how_to_see_examples(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(ENTROPY), ENTROPY)
    assert "--sidecar uint8" in lines_of(tmp_path)[-1]
    assert "--sidecar" not in lines_of(tmp_path, examples=0)[-1]


def test_an_unpatched_dataset_is_described_without_patches(tmp_path: Path) -> None:
    save_dataset(tmp_path, documents(NONE), NONE)
    lines = lines_of(tmp_path)
    assert row_of(lines, "all")[1:] == ["4", "515", "-", "-"]
    assert not any(line.startswith("Patch lengths") for line in lines)


def test_the_command_takes_both_splits_and_refuses_what_is_no_dataset(tmp_path: Path, capsys) -> None:
    assert command(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not a finished dataset" in error
    save_dataset(tmp_path / "train", documents(ENTROPY), ENTROPY, sidecar="uint8")
    save_dataset(tmp_path / "validation", [], ENTROPY, split="validation")
    assert command(tmp_path, "--documents", "1") == 0
    out = capsys.readouterr().out
    assert "split train" in out
    assert "split validation" in out
    assert out.count("Most predictable") == 1
    (tmp_path / "train" / "shard-00000.arrow").unlink()
    assert command(tmp_path) == 1
    assert "shard-00000.arrow is missing" in capsys.readouterr().err


def test_boundaries_are_drawn_behind_characters_and_bytes_are_escaped() -> None:
    assert with_boundaries(b"abcd", [0, 1, 3]) == "a│bc│d"
    assert with_boundaries("a大b".encode(), [0, 2, 3, 4]) == "a大│b"
    assert with_boundaries(b"", [0]) == ""
    assert printable(b"\x1b[31m\xff\n") == "\\x1b[31m\\xff\\n"


def test_bars_are_proportional_and_tables_aligned() -> None:
    assert bar(1, 1) == "█" * WIDTH
    assert bar(0, 0) == ""
    assert len(bar(1, 2)) == WIDTH // 2
    assert bars([("a", 3), ("bb", 1)])[1].startswith("  bb   25.0%  █")
    assert table(["a", "n", ""], [["long", "1", "x"]]) == ["  a     n", "  long  1  x"]
    assert size(999) == "999 B"
    assert size(1_500_000) == "1.5 MB"
