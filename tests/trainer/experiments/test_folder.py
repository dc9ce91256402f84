"""An experiment takes a folder of its own, and nothing of anybody else's is touched."""

import os
from pathlib import Path

import pytest

from shared.errors import OutputError
from shared.io.files.locks import LOCK_FILE
from trainer.experiments.folder import EXPERIMENT_NAME, claim, held


@pytest.mark.parametrize("name", ["results.json", "notes.txt", EXPERIMENT_NAME, "report.html", "scaling.json"])
def test_a_folder_with_anything_of_others_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(OutputError, match="choose another folder"), held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_new_or_empty_folder_becomes_one_and_stays_one(tmp_path: Path) -> None:
    for out in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for _ in range(2):
            with held(out):
                claim(out)
            (out / "notes.txt").write_text("mine")


def test_a_mark_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / EXPERIMENT_NAME)
    with pytest.raises(OutputError, match="choose another folder"), held(tmp_path):
        pass


def test_two_experiments_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    with held(tmp_path / "out"), pytest.raises(OutputError, match=f"process {os.getpid()}"), held(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_what_a_killed_command_left_before_its_mark_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("process 1 on nowhere\n")
    with held(tmp_path):
        claim(tmp_path)
