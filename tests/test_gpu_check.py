"""The check of a GPU, run on the processor: rows run by themselves, and one that fails costs no other."""

import io
import json
import subprocess
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from infra import gpu_check
from infra.gpu import ROWS, SELF_TESTS, TOTAL_SECONDS, numerics
from infra.gpu.bench import Bench


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def statuses(path: Path, row: str) -> list[str]:
    return [line["status"] for line in lines_of(path) if line.get("row") == row and "status" in line]


def run(out: Path, rows: str, *more: str) -> int:
    return gpu_check.main(["--device", "cpu", "--out", str(out), "--rows", rows, *more])


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A check of rows that all fail on purpose: its file, and what it showed."""
    out = tmp_path_factory.mktemp("check") / "check.jsonl"
    with redirect_stdout(io.StringIO()) as shown:
        assert run(out, ",".join(row.name for row in SELF_TESTS)) == 1
    return out, shown.getvalue()


@pytest.mark.parametrize(
    ("row", "ends"),
    [
        ("self-crash", ["ok", "CRASHED"]),
        ("self-kill", ["ok", "KILLED"]),
        ("self-memory", ["ok", "out of memory"]),
        ("self-hang", ["TIME LIMIT"]),
    ],
)
def test_rows_that_fail_lose_nothing(failed: tuple[Path, str], row: str, ends: list[str]) -> None:
    assert statuses(failed[0], row)[-len(ends) :] == ends
    assert row == "self-hang" or len(statuses(failed[0], row)) == len(ends)


def test_what_a_crashed_row_said_is_kept(failed: tuple[Path, str]) -> None:
    crash = next(line for line in lines_of(failed[0])[1:] if line["row"] == "self-crash" and "seconds" in line)
    assert any("on purpose" in line for line in crash["stderr"])


def test_what_was_found_is_shown(failed: tuple[Path, str]) -> None:
    out, shown = failed
    found = [line["found"] for line in lines_of(out)[1:] if "found" in line]
    assert [words for words in ["none that torch sees", *found] if words not in shown] == []


@pytest.mark.numerics
def test_packs_are_compared_at_small_sizes(tmp_path: Path) -> None:
    findings = io.StringIO()
    numerics.packs(Bench("cpu", True, tmp_path, findings))
    assert [json.loads(line)["status"] for line in findings.getvalue().splitlines()] == ["ok"] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
def test_a_gpu_computes_what_the_processor_does(tmp_path: Path) -> None:
    out = tmp_path / "check.jsonl"
    assert (
        gpu_check.main(["--device", "cuda", "--small", "--out", str(out), "--rows", "parity,packs,compile,shards"]) == 0
    )


@pytest.mark.slow
def test_all_rows_run_at_small_sizes(tmp_path: Path) -> None:
    out = tmp_path / "check.jsonl"
    names = [row.name for row in ROWS]
    for name in names:  # the total limit is one for a GPU
        assert run(out, name, "--limit", "400") == 0, name
    assert all(statuses(out, name) for name in names)


def test_the_rows_of_a_gpu_fit_into_nine_minutes() -> None:
    assert sum(row.seconds for row in ROWS) <= TOTAL_SECONDS < 9 * 60


def test_unknown_rows_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "check.jsonl", "parity,nosuch")
    assert "nosuch" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--wheels", "absent"), ("--out", "absent/check.jsonl")])
def test_paths_that_are_not_there_are_refused_by_option(
    tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "check.jsonl", "self-crash", option, str(tmp_path / value))
    assert option in capsys.readouterr().err.splitlines()[-1]


def wheel(folder: Path, name: str) -> None:
    """A wheel of one empty module."""
    record = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{record}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{record}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{record}/RECORD", "")


def test_missing_packages_come_from_the_wheels_into_a_folder_of_their_own(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    for name in ("patchwork_test_wanted", "patchwork_test_other"):
        wheel(wheels, name)
    assert gpu_check.missing(["patchwork_test_wanted", "json"]) == ["patchwork_test_wanted"]
    assert gpu_check.install(["patchwork_test_wanted"], wheels, target) is None
    assert sorted(path.name for path in target.glob("*.py")) == ["patchwork_test_wanted.py"]
    assert "patchwork_test_absent" in (gpu_check.install(["patchwork_test_absent"], wheels, target) or "")


def test_the_wheels_are_asked_for_by_version_and_bounded() -> None:
    script = (gpu_check.ROOT / "infra" / "gpu_wheels.sh").read_text()
    assert "most=60000000" in script
    assert all(f"{name}==" in script for name in (*gpu_check.NEEDED, *gpu_check.PYDANTIC))
    used = subprocess.run([gpu_check.ROOT / "infra" / "gpu_wheels.sh"], capture_output=True, text=True)
    assert used.returncode != 0
    assert "usage" in used.stderr
