"""A table of thresholds for several patch sizes: those that one calibration for each would find."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.rewriting_examples import make_place, run, scored

from pipeline.calibration.patching_file import load_patching
from pipeline.settings import PipelineError
from shared.errors import ConfigError
from shared.patching.grid import GRID
from shared.patching.sizes import load_patch_sizes

MODEL = ("--stream-length", 512, "--threads", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("sizes"))
    scored(folder, folder / "data", "--rule", "static", "--stride", 5, "--sidecar", "float32")
    return folder


def calibrate(place: Path, out: Path, *options: object) -> int:
    return run("calibrate", place / "data", "--entropy-model", place / "model", "--out", out, *MODEL, *options)


def one(place: Path, tmp_path: Path, size: float, *options: object) -> dict[str, Any]:
    """What a calibration for one size writes."""
    out = tmp_path / f"{size}.json"
    assert calibrate(place, out, "--target", size, *options) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("options", [(), ("--per-subset",), ("--sidecar", "float32", "--max-length", "16")])
def test_each_entry_is_what_a_calibration_for_its_size_finds(
    place: Path, tmp_path: Path, options: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(place, tmp_path / "sizes.json", "--sizes", "2,3,4.5", *options) == 0
    printed = capsys.readouterr().out
    table = load_patch_sizes(tmp_path / "sizes.json")
    assert [entry.size for entry in table.patch_sizes] == [2.0, 3.0, 4.5]
    for entry in table.patch_sizes:
        wanted = one(place, tmp_path, entry.size, *options)
        assert entry.patching.model_dump(mode="json") == wanted["patching"]
        assert entry.mean_patch_size == wanted["mean_patch_size"]
        assert entry.held_out == wanted["held_out"]["mean_patch_size"]
        assert table.entropy_model == wanted["identity"]["entropy_model"]
        assert f"{entry.mean_patch_size:.3f}" in printed
        on_grid = entry.patching.theta in GRID.astype(float)
        assert on_grid == ("float32" not in options)
        assert bool(entry.patching.thetas) == ("--per-subset" in options)


def test_a_table_that_is_current_is_not_made_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sizes.json"
    assert calibrate(place, out, "--sizes", "2,4") == 0
    before = out.stat().st_mtime_ns
    assert calibrate(place, out, "--sizes", "2,4") == 0
    assert "is current" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before
    assert calibrate(place, out, "--sizes", "2,3") == 0
    assert [entry.size for entry in load_patch_sizes(out).patch_sizes] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sizes", "3,2"), "--sizes must ascend"),
        (("--sizes", "2,2"), "--sizes must ascend"),
        (("--sizes", "2,x"), "expected sizes in bytes"),
        (("--sizes", "0,2"), "expected sizes in bytes"),
        (("--sizes", "nan"), "expected sizes in bytes"),
        (("--sizes", ","), "expected sizes in bytes"),
        (("--sizes", "2,900"), "900"),
        (("--sizes", "2", "--target", "3"), "--target"),
        ((), "--sizes"),
        (("--sizes", "2,3", "--parity", "id", "--parity-to", "a"), "--parity"),
    ],
)
def test_what_gives_no_table_is_one_line(
    place: Path, tmp_path: Path, options: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = calibrate(place, tmp_path / "sizes.json", *options)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert not (tmp_path / "sizes.json").exists()


def test_a_calibration_for_one_size_and_a_table_do_not_replace_each_other(place: Path, tmp_path: Path) -> None:
    assert calibrate(place, tmp_path / "a.json", "--target", 3) == 0
    assert calibrate(place, tmp_path / "b.json", "--sizes", "2,3") == 0
    assert calibrate(place, tmp_path / "a.json", "--sizes", "2,3") == 2
    assert calibrate(place, tmp_path / "b.json", "--target", 3) == 2


def test_neither_is_taken_for_the_other(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, table = tmp_path / "one.json", tmp_path / "table.json"
    assert calibrate(place, one, "--target", 3) == 0
    assert calibrate(place, table, "--sizes", "2,3") == 0
    with pytest.raises(ConfigError, match=r"one\.json is not a table of patch sizes; create one with"):
        load_patch_sizes(one)
    with pytest.raises(PipelineError, match=r"table\.json is a table of sizes, for data\.patch_sizes"):
        load_patching(table)
