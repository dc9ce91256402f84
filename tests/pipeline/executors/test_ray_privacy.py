"""The Ray cluster of one run: who can reach it, who can read its token, where its sockets are."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.executors import ray_cluster
from pipeline.executors.ray_cluster import (
    LONGEST,
    PREFIX,
    private_environment,
    private_folder,
    remove_abandoned,
    remove_folder,
    write_token,
)
from pipeline.settings import PipelineError
from shared.io.files.scratch import OWNER, owned

LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
LISTENING = "0A"


def variables() -> dict[str, str]:
    """What the environment says to Ray."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The private folder of a cluster that is up."""
    before = variables()
    found = []

    def noted() -> Path:
        found.append(private_folder())
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "private_folder", noted)
        cluster = ray_cluster.make_cluster(1, 128 * 2**20)
    try:
        yield found[0]
    finally:
        cluster.close()
    assert not found[0].exists()
    assert variables() == before


def processes_of(folder: Path) -> list[Path]:
    """The processes whose environment names the token of the folder, and this one."""
    found = [Path("/proc/self")]
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str(folder).encode() in (entry / "environ").read_bytes():
                found.append(entry)
    return found


def addresses(processes: list[Path]) -> list[str]:
    """Where processes listen, as the kernel writes it."""
    inodes = set()
    for process in processes:
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes]


def test_the_cluster_listens_on_loopback_alone(folder):
    listening = addresses(processes_of(folder))
    assert len(listening) >= 5  # gcs, raylet, agents, this driver
    assert set(listening) <= set(LOOPBACK)


def test_only_the_owner_can_enter_the_folder_and_read_the_token(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert (folder / "token").stat().st_uid == os.getuid()


def test_the_token_is_in_no_log_no_command_line_and_no_environment(folder):
    token = (folder / "token").read_bytes()
    processes = processes_of(folder)
    assert len(processes) >= 3
    seen = [process / name for process in processes for name in ("cmdline", "environ")]
    seen += [path for path in folder.rglob("*") if path.is_file() and path != folder / "token"]
    for path in seen:
        with suppress(OSError):  # a process that has ended, a log that was rotated
            assert token not in path.read_bytes(), path


def test_a_token_of_the_user_is_neither_used_nor_changed(monkeypatch, tmp_path):
    theirs = tmp_path / ".ray/auth_token"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before = variables()
    token = write_token(tmp_path)
    with private_environment(token):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert "theirs" not in os.environ.values()
    assert variables() == before
    assert theirs.read_text() == "theirs"
    assert len(token.read_text()) == 64


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_with_a_long_path_is_not_used(monkeypatch, tmp_path, variable):
    long = tmp_path / ("x" * LONGEST)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(variable, str(long))
    made = private_folder()
    try:
        assert long not in made.parents
        assert len(os.fsencode(made)) <= LONGEST
        longest = made / "r/session_2026-11-28_12-26-42_499558_4194304/sockets/plasma_store"
        assert len(os.fsencode(longest)) <= 107
    finally:
        remove_folder(made)


def test_a_short_folder_of_the_user_is_used(monkeypatch):
    place = private_folder()
    try:
        monkeypatch.setenv("RAY_TMPDIR", str(place))
        assert private_folder().parent == place
    finally:
        remove_folder(place)


def abandoned() -> Path:
    """A private folder as SIGKILL leaves it: with its owner's file, which nobody locks."""
    folder = private_folder()
    with owned(folder):
        (folder / "r").mkdir()
    return folder


def test_folders_of_runs_that_were_killed_are_removed_and_no_others(monkeypatch, tmp_path):
    place = private_folder()
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    monkeypatch.setattr(ray_cluster, "_places", lambda: [str(place)])  # not those of other tests' runs
    try:
        killed, alive, unowned, open_to_all, linked = (
            abandoned(),
            private_folder(),
            private_folder(),
            abandoned(),
            abandoned(),
        )
        open_to_all.chmod(0o755)  # not made by private_folder
        (linked / OWNER).rename(tmp_path / OWNER)
        (linked / OWNER).symlink_to(tmp_path / OWNER)
        link = place / f"{PREFIX}12345678"
        link.symlink_to(unowned)
        foreign = place / f"{PREFIX}backups-of-mine"
        foreign.mkdir()
        with owned(alive):
            remove_abandoned()
            assert not killed.exists()
            assert {alive, unowned, open_to_all, linked, link, foreign} == set(place.iterdir())
        remove_abandoned()
        assert not alive.exists()
    finally:
        remove_folder(place)


def test_processes_that_outlive_their_cluster_end_before_its_folder_is_removed():
    late, other = private_folder(), private_folder()
    program = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    processes = [
        subprocess.Popen(program, env={"RAY_AUTH_TOKEN_PATH": str(folder / "token")}, stdout=subprocess.PIPE)
        for folder in (late, other)
    ]
    try:
        for process in processes:
            assert process.stdout.readline()
        remove_folder(late)
        assert processes[0].wait(60) == -signal.SIGKILL
        assert processes[1].poll() is None
        assert not late.exists()
        assert other.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        remove_folder(other)


def test_a_cluster_owns_its_folder_and_removes_abandoned_ones_first(folder):
    assert (folder / OWNER).read_text() == socket.gethostname()
    remove_abandoned()
    assert folder.exists()


def test_without_a_short_folder_there_is_one_line_that_says_what_would_do(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(PipelineError, match="RAY_TMPDIR") as raised:
        private_folder()
    assert "\n" not in str(raised.value)


@pytest.mark.drill
def test_what_ray_says_when_it_cannot_start_is_named_as_such_and_nothing_stays(monkeypatch):
    place = private_folder()
    try:
        monkeypatch.setenv("RAY_TMPDIR", str(place))
        before = variables()
        with pytest.raises(PipelineError, match="--executor inline"):
            ray_cluster.make_cluster(1, 10)  # bytes of object store
        assert not list(place.glob(f"{PREFIX}*"))
        assert variables() == before
    finally:
        remove_folder(place)
