"""An experiment takes a folder of its own, and nothing of anybody else's is touched."""

import os
from pathlib import Path

import pytest

from shared.errors import OutputError
from trainer.experiments.folder import EXPERIMENT_NAME, claim


@pytest.mark.parametrize("name", ["results.json", "notes.txt", EXPERIMENT_NAME, "report.html", "scaling.json"])
def test_a_folder_with_anything_of_others_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(OutputError, match="choose another folder"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_new_or_empty_folder_becomes_one_and_stays_one(tmp_path: Path) -> None:
    for out in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        claim(out)
        (out / "notes.txt").write_text("mine")
        claim(out)


def test_a_mark_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / EXPERIMENT_NAME)
    with pytest.raises(OutputError, match="choose another folder"):
        claim(tmp_path)
