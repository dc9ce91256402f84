"""What recut, merge, split and convert have in common: whole results or none, and stopped work that goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.dataset_examples import BYTE, NONE, document, documents, save_dataset
from helpers.pipeline_helpers import environment
from helpers.rewriting_examples import files, run

from shared.errors import DatasetError
from shared.io.programs.child_processes import has_ended
from shared.shards.open import find_datasets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Twenty shards that take a while."""
    folder = tmp_path_factory.mktemp("rewriting") / "in"
    text = b"".join(b"%d of many words, " % n for n in range(30_000))
    shards = [[document(f"{n}", "prose", text[n:], BYTE)] for n in range(20)]
    save_dataset(folder, shards, BYTE)
    return folder


@pytest.fixture(scope="module")
def recut(dataset, tmp_path_factory) -> dict[str, str]:
    """What a quiet run makes of it."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    assert run("recut", dataset, "--out", out, "--rule", "space", "--workers", 1) == 0
    return files(out)


@pytest.mark.drill
def test_a_killed_command_leaves_nothing_that_looks_finished_and_goes_on(dataset, recut, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = [sys.executable, "-m", "pipeline", "recut", dataset, "--out", out, "--rule", "space", "--workers", 2]
    process = subprocess.Popen([*map(str, line)], env=environment(), stderr=subprocess.DEVNULL)
    markers = tmp_path / ".out.unfinished" / "units"
    while len(list(markers.glob("*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    while not all(map(has_ended, workers)):  # they end by themselves; the test's limit waits
        time.sleep(0.01)
    assert not out.exists()
    with pytest.raises(DatasetError):
        find_datasets(out)
    kept = {path: path.stat().st_mtime_ns for path in markers.glob("*.json")}
    assert 2 <= len(kept) < 20
    damaged = tmp_path / ".out.unfinished" / f"shard-{int(next(iter(kept)).stem):05d}.arrow"
    damaged.write_bytes(b"")
    assert run(*line[3:]) == 0
    assert files(out) == recut
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert run("verify", out) == 0


@pytest.mark.drill
def test_a_stopped_command_ends_in_order(dataset, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pipeline", "recut", dataset, "--out", tmp_path / "out", "--rule", "space"]
    process = subprocess.Popen([*map(str, line)], env=environment(), stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / ".out.unfinished" / "units").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "the same command" in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def by_two(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The command for two workers, which has ended."""
    out = tmp_path_factory.mktemp("two") / "out"
    line = ("recut", dataset, "--out", out, "--workers", 2, "--rule")
    assert run(*line, "space") == 0
    return line


def test_workers_change_no_byte(by_two: tuple[object, ...], recut: dict[str, str]) -> None:
    assert files(by_two[3]) == recut


def test_a_finished_command_does_nothing(by_two: tuple[object, ...], capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in by_two[3].rglob("*")}
    assert run(*by_two, "space") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in by_two[3].rglob("*")} == before


def test_another_request_for_a_finished_folder_is_refused(by_two: tuple[object, ...], capsys) -> None:
    assert run(*by_two, "static", "--stride", 3) == 2
    assert "patching.rule: recorded 'space', now 'static'" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(dataset, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert run("recut", dataset, "--out", tmp_path / "out", "--rule", "space") == 2
    assert "another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_a_dataset_is_not_rewritten_in_its_place(dataset, capsys) -> None:
    assert run("recut", dataset, "--out", dataset, "--rule", "space") == 2
    assert "another folder" in capsys.readouterr().err


def test_a_folder_without_a_dataset_is_refused_and_leaves_nothing(tmp_path: Path, capsys) -> None:
    assert run("recut", tmp_path, "--out", tmp_path / "new", "--rule", "space") == 2
    assert "is not a finished dataset" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["recut --rule byte", "split", "convert --to webdataset", "convert --to parquet"])
@pytest.mark.parametrize("ending", ["arrow", "arrow.index", "arrow.entropy"])
def test_a_damaged_source_is_named_and_gives_no_result(tmp_path: Path, capsys, command: str, ending: str) -> None:
    save_dataset(tmp_path / "in", documents(NONE), NONE, "arrow", "uint8")
    path = tmp_path / "in" / f"shard-00001.{ending}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    name, *options = command.split()
    code = run(name, tmp_path / "in", "--out", tmp_path / "out", *options, "--workers", 1)
    if (name, ending) == ("convert", "arrow.index"):
        assert code == 0  # an index is made anew from the rows
        return
    assert code == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unfinished_work_of_another_command_is_not_mixed_in(tmp_path: Path, capsys) -> None:
    save_dataset(tmp_path / "in", documents(NONE), NONE)
    (tmp_path / "in" / "shard-00001.arrow").rename(tmp_path / "kept")
    assert run("recut", tmp_path / "in", "--out", tmp_path / "out", "--rule", "byte", "--workers", 1) == 2
    (tmp_path / "kept").rename(tmp_path / "in" / "shard-00001.arrow")
    capsys.readouterr()
    assert run("recut", tmp_path / "in", "--out", tmp_path / "out", "--rule", "space", "--workers", 1) == 2
    assert ".out.unfinished holds unfinished work of another command" in capsys.readouterr().err
    assert run("recut", tmp_path / "in", "--out", tmp_path / "out", "--rule", "byte", "--workers", 1) == 0
    assert run("verify", tmp_path / "out") == 0


@pytest.mark.drill
def test_neither_torch_nor_ray_is_imported(tmp_path: Path) -> None:
    save_dataset(tmp_path / "a", documents(BYTE), BYTE, "arrow", "uint8")
    save_dataset(tmp_path / "b", documents(BYTE)[:1], BYTE, "arrow", "uint8")
    code = (
        "import sys; from pipeline.__main__ import main; a, b, out = sys.argv[1:]\n"
        "common = ['--workers', '1', '--out']\n"
        "assert not main(['recut', a, '--target', '3', *common, out + '1'])\n"
        "assert not main(['merge', a, b, *common, out + '2'])\n"
        "assert not main(['split', a, *common, out + '3'])\n"
        "assert not main(['convert', a, '--to', 'parquet', *common, out + '4'])\n"
        "print(sorted({'torch', 'ray'} & sys.modules.keys()))"
    )
    line = [sys.executable, "-c", code, *map(str, (tmp_path / "a", tmp_path / "b", tmp_path / "out"))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_note_that_is_not_one_of_ours_is_one_line(dataset, tmp_path: Path, capsys) -> None:
    for folder in (tmp_path / "out", tmp_path / ".new.unfinished"):
        folder.mkdir()
        (folder / "made-by.json").write_text("[]")
    for name in ("out", "new"):
        assert run("recut", dataset, "--out", tmp_path / name, "--rule", "space") == 2
        assert capsys.readouterr().err.count("\n") == 1
