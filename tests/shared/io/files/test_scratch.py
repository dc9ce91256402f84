"""Temporary folders are gone when their process is, however it ended."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shared.io.files.scratch import remove_abandoned, scratch

HOLDS = """
from shared.io.files.scratch import scratch
with scratch("test") as folder:
    (folder / "a").touch()
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_nothing_is_in_it_and_nothing_stays(places: Path) -> None:
    with scratch("test") as folder:
        assert list(folder.iterdir()) == []
        (folder / "a").write_text("a")
    assert list(places.iterdir()) == []


def test_a_living_process_keeps_its_folder_and_a_killed_one_leaves_none(places: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        with scratch("other"):
            assert (folder / "a").exists()
        process.send_signal(signal.SIGKILL)
    assert folder.exists()
    remove_abandoned()
    assert list(places.iterdir()) == []


@pytest.mark.parametrize(("owner", "other"), [(None, "corpus"), ("another machine", "files")])
def test_other_folders_of_such_names_stay(places: Path, owner: str | None, other: str) -> None:
    theirs = places / "patchwork-mine-abcdefgh"
    theirs.mkdir(0o700)
    (theirs / other).mkdir()
    (theirs / "owner").write_text(owner or socket.gethostname())
    remove_abandoned()
    assert (theirs / other).exists()
