"""Files are opened in folders that another may remove at any time."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.io.files.atomic import opened_below, write_atomic
from shared.io.files.locks import locked


def removed_once(folder: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> list[str]:
    """Let somebody remove ``folder``: between its being made and a file in it, or ``before``, while it is being made.

    In that case it exists already when it is to be made, and does not when that is looked at.
    """
    real, done = os.mkdir, list[str]()

    def mkdir(path: Any, *rest: Any, **named: Any) -> None:
        if Path(path) == folder and not done:
            done.append("removed")
            if before:
                raise FileExistsError(17, "File exists", str(path))
            real(path, *rest, **named)
            shutil.rmtree(folder)
            return
        real(path, *rest, **named)

    monkeypatch.setattr(os, "mkdir", mkdir)
    return done


def write(folder: Path) -> None:
    write_atomic(folder / "file", "content")
    assert (folder / "file").read_text() == "content"


def lock(folder: Path) -> None:
    with locked(folder):
        assert folder.is_dir()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("use", [write, lock])
def test_a_folder_that_is_removed_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], None], before: bool
) -> None:
    done = removed_once(tmp_path / "folder", monkeypatch, before)
    use(tmp_path / "folder")
    assert done == ["removed"]


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("no folder")
    with pytest.raises(FileExistsError, match="folder"):
        write_atomic(tmp_path / "folder" / "file", "content")


def test_errors_of_opening_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / ("a" * 250)).touch()
    with pytest.raises(OSError, match="too long") as caught:
        write_atomic(tmp_path / ("a" * 250), "content")
    assert caught.value.filename == str(tmp_path / ("a" * 250))


def test_what_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        opened_below(tmp_path, lambda: (tmp_path / "missing" / "file").open("wb"))
