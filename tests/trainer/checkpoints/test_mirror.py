"""Checkpoints in a store: copied while training goes on, fetched where the run's folder is gone, no run's end."""

import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import object_store
from helpers.drill import weights
from helpers.store_runs import contents
from helpers.tiny_runs import STATIC, losses, quiet_environment, run, tiny_data, tiny_recipe, toml, torchrun

from shared.errors import StorageError
from shared.io.stores.store import LocalStore, Store, open_store
from trainer.checkpoints import mirror
from trainer.metrics.history import load_history
from trainer.metrics.summary import summary
from trainer.run import loop

ROOT = Path(__file__).parents[3]
STEPS = {"steps": 6}
"""Checkpoints are made every second one."""


class Crash(BaseException):
    """Stands for whatever ends a process at once."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("mirror") / "data", STATIC)


def train(data: Path, out: Path, mirror: object = None, run_: dict[str, Any] = STEPS, **checkpoint: object) -> int:
    sections = {"every": 2} | checkpoint | ({} if mirror is None else {"mirror": str(mirror)})
    return run(data, out, "--data.packs", 1, run=run_, checkpoint=sections)


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> Path:
    out = data.parent / "undisturbed"
    assert train(data, out) == 0
    return out


def crash(data: Path, out: Path, mirror: object) -> None:
    """Train and end at once after five steps, when the mirror has what there is."""
    take = loop.one_step

    def crash_after(job: Any, *rest: Any) -> bool:
        if job.state.step == 5:
            job.checkpoints.wait()
            job.checkpoints.close()
            raise Crash
        return take(job, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "one_step", crash_after)
        with pytest.raises(Crash):
            train(data, out, mirror)


@pytest.fixture(scope="module")
def mirrored(data: Path) -> Path:
    """A folder with the mirror of a run that is done."""
    place = data.parent / "done"
    assert train(data, place / "run", place / "mirror") == 0
    return place


@pytest.fixture(scope="module")
def crashed(data: Path) -> Path:
    """A folder with a run that has crashed, and its mirror."""
    place = data.parent / "crashed"
    crash(data, place / "run", place / "mirror")
    return place


def mirror_of(place: Path, folder: Path) -> Path:
    """A copy of a mirror, for a test to change or to go on with."""
    return shutil.copytree(place / "mirror", folder / "mirror")


def kept_in(store: Store) -> list[str]:
    return sorted(key.split("/")[0] for key in store.list() if key.endswith("COMPLETE"))


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_run_goes_on_from_the_mirror_alone(
    place: str, request: pytest.FixtureRequest, data: Path, undisturbed: Path, crashed: Path, tmp_path: Path
) -> None:
    if place == "folder":
        where: object = mirror_of(crashed, tmp_path)
    else:
        where = request.getfixturevalue("bucket")
        crash(data, tmp_path / "run", where)
    assert train(data, tmp_path / "elsewhere", where) == 0
    assert losses(tmp_path / "elsewhere") == losses(undisturbed)[4:]
    assert weights(tmp_path / "elsewhere") == weights(undisturbed)


@pytest.mark.drill
def test_two_ranks_fetch_their_shares(data: Path, bucket: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(tiny_recipe(data, tmp_path / "run", run=STEPS, checkpoint={"every": 2, "mirror": bucket})))
    command = torchrun("trainer/main.py", recipe)
    said = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
        (tmp_path / "run").rename(tmp_path / f"run-{len(said)}")
    assert "was fetched from s3://" in said[1]
    assert weights(tmp_path / "run-1") == weights(tmp_path / "run-2")


def test_the_last_checkpoint_is_there_when_the_run_ends(data: Path, bucket: str, tmp_path: Path) -> None:
    assert train(data, tmp_path / "run", bucket, keep=1) == 0
    assert kept_in(open_store(bucket)) == ["step-00000006"]


def test_a_run_that_is_done_is_exported_again_from_the_mirror(
    data: Path, undisturbed: Path, mirrored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert train(data, tmp_path / "again", mirror_of(mirrored, tmp_path)) == 0
    assert weights(tmp_path / "again") == weights(undisturbed)
    said = "".join(capsys.readouterr())
    assert "no report.html" in said
    assert "is not a run folder" not in said
    assert not (tmp_path / "again" / "report.html").exists()


def test_the_time_of_a_fetched_run_is_that_of_the_steps_here(data: Path, crashed: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "elsewhere", mirror_of(crashed, tmp_path)) == 0
    assert "last 2 steps" in dict(summary(load_history(tmp_path / "elsewhere")))["trained"]


def test_the_time_of_a_run_that_goes_on_in_its_folder_is_that_of_all(data: Path, crashed: Path, tmp_path: Path) -> None:
    shutil.copytree(crashed / "run", tmp_path / "run")
    assert train(data, tmp_path / "run", mirror_of(crashed, tmp_path)) == 0
    assert "last" not in dict(summary(load_history(tmp_path / "run")))["trained"]


def test_the_mirror_keeps_by_the_same_rules(data: Path, tmp_path: Path) -> None:
    options = {"every": 1, "keep": 1, "keep_every": 2, "asynchronous": False}
    assert train(data, tmp_path / "run", tmp_path / "mirror", {"steps": 5}, **options) == 0
    names = kept_in(LocalStore(tmp_path / "mirror"))
    assert names[-1] == "step-00000005"
    assert set(names) <= {"step-00000002", "step-00000004", "step-00000005"}


def test_nothing_half_removed_stays(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "run", tmp_path / "mirror", every=1, keep=1) == 0
    assert {key.split("/")[0] for key in LocalStore(tmp_path / "mirror").list()} == {"identity.json", "step-00000006"}


def test_a_damaged_checkpoint_is_passed_over(data: Path, undisturbed: Path, mirrored: Path, tmp_path: Path) -> None:
    path = mirror_of(mirrored, tmp_path) / "step-00000006" / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert train(data, tmp_path / "again", tmp_path / "mirror") == 0
    assert losses(tmp_path / "again") == losses(undisturbed)[4:]


def test_a_half_copied_checkpoint_is_none(data: Path, undisturbed: Path, mirrored: Path, tmp_path: Path) -> None:
    (mirror_of(mirrored, tmp_path) / "step-00000006" / "COMPLETE").unlink()
    assert train(data, tmp_path / "again", tmp_path / "mirror") == 0
    assert losses(tmp_path / "again") == losses(undisturbed)[4:]


def test_a_mirror_without_a_whole_checkpoint_is_an_error(
    data: Path, mirrored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for state in mirror_of(mirrored, tmp_path).glob("step-*/state.json"):
        state.write_bytes(b"{}")
    assert train(data, tmp_path / "again", tmp_path / "mirror") == 2
    assert "state.json" in capsys.readouterr().err


def test_the_mirror_of_another_run_is_refused(
    data: Path, mirrored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "other", mirror_of(mirrored, tmp_path), STEPS | {"seed": 1}) == 2
    assert "checkpoint.mirror" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["folder", "s3"])
@pytest.mark.parametrize(
    "key", ["a.txt", "step-notes.txt", "train/shard-00000.arrow", "step-00000003/COMPLETE", "step-00000003/texts/a.txt"]
)
def test_a_place_that_holds_something_else_is_refused_and_left_as_it_is(
    place: str, key: str, request: pytest.FixtureRequest, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "texts" if place == "folder" else request.getfixturevalue("bucket"))
    store.put(key, b"of somebody")
    assert train(data, tmp_path / "run", store.where) == 2
    said = capsys.readouterr().err
    assert f"checkpoint.mirror {store.where}" in said
    assert repr(key) in said
    assert contents(store) == {key: b"of somebody"}
    assert not (tmp_path / "run").exists()


def test_another_file_beside_the_checkpoints_is_refused(
    data: Path, mirrored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirror_of(mirrored, tmp_path) / "notes.txt").write_text("of somebody")
    assert train(data, tmp_path / "again", tmp_path / "mirror") == 2
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "run/checkpoints", "run/mirror"])
def test_a_mirror_in_the_folder_of_the_run_is_refused(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "run", tmp_path / name) == 2
    assert f"run.out {tmp_path / 'run'}" in capsys.readouterr().err


def test_what_a_killed_mirror_has_left_is_no_other_thing(data: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "mirror")
    for key in (".probe/0123456789abcdef/created", "identity.json.01234567.tmp"):
        store.put(key, b"half")
    assert train(data, tmp_path / "run", tmp_path / "mirror", {"steps": 1}) == 0


def test_what_comes_to_lie_beside_the_checkpoints_is_not_removed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {"step-notes.txt", "step-3/a", "step-00000003/texts/a.txt"}
    store, publish = LocalStore(tmp_path / "mirror"), LocalStore.publish

    def publish_beside(self: Store, *arguments: Any) -> None:
        for key in foreign:
            store.put(key, b"of somebody")
        publish(self, *arguments)

    monkeypatch.setattr(LocalStore, "publish", publish_beside)
    assert train(data, tmp_path / "run", tmp_path / "mirror", {"steps": 5}, every=1, keep=1) == 0
    assert foreign <= set(store.list())


def test_a_mirror_of_another_length_is_refused_before_anything_is_fetched(
    data: Path, mirrored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(open_store(mirror_of(mirrored, tmp_path)))
    assert train(data, tmp_path / "other", tmp_path / "mirror", {"steps": 12}) == 2
    said = capsys.readouterr().err
    assert f"checkpoint.mirror {tmp_path / 'mirror'}" in said
    assert "run.steps" in said
    assert not (tmp_path / "other").exists()
    assert contents(open_store(tmp_path / "mirror")) == before


def test_a_longer_run_goes_on_from_the_mirror_alone_before_the_decay(data: Path, tmp_path: Path) -> None:
    """From the last checkpoint of the shorter one that will do: the newest is from the decay."""
    schedule = {"kind": "wsd", "decay": 0.4, "warmup": {"steps": 1}}

    def wsd(name: str, steps: int, **checkpoint: object) -> None:
        sections = {"run": {"steps": steps}, "schedule": schedule, "checkpoint": {"every": 3, "keep": 1} | checkpoint}
        assert run(data, tmp_path / name, "--data.packs", 1, **sections) == 0

    wsd("run", 5, mirror=str(tmp_path / "mirror"))
    wsd("longer", 8, mirror=str(tmp_path / "mirror"))
    wsd("at once", 8)
    assert weights(tmp_path / "longer") == weights(tmp_path / "at once")
    assert len(losses(tmp_path / "longer")) == 5


def test_a_store_that_cannot_be_a_mirror_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("http://host/x", "memory://x"):
        assert train(data, tmp_path / "run", url) == 2
        assert url in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_store_that_fails_does_not_end_the_run(
    data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Store, *_: Any) -> None:
        raise StorageError("the store is on fire")

    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(LocalStore, "publish", fail)
    assert train(data, tmp_path / "run", tmp_path / "mirror") == 0
    assert "on fire" in capsys.readouterr().err
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_what_failed_once_is_tried_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, failed = LocalStore.publish, []

    def fail_once(self: Store, *arguments: Any) -> None:
        if len(failed) < 2:
            failed.append(arguments)
            raise StorageError("for a moment")
        publish(self, *arguments)

    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(LocalStore, "publish", fail_once)
    assert train(data, tmp_path / "run", tmp_path / "mirror", {"steps": 2}, every=1) == 0
    assert failed
    assert kept_in(LocalStore(tmp_path / "mirror"))[-1] == "step-00000002"


def test_no_step_waits_for_a_slow_store(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All steps are done while the first upload stands still; what is uploaded is not removed meanwhile."""
    publish, done = LocalStore.publish, threading.Event()

    def wait(self: Store, *arguments: Any) -> None:
        assert done.wait(300)
        publish(self, *arguments)

    def close(checkpoints: Any) -> None:
        done.set()
        checkpoints._mirror.finish()

    monkeypatch.setattr(LocalStore, "publish", wait)
    monkeypatch.setattr("trainer.checkpoints.store.Checkpoints.close", close)
    assert train(data, tmp_path / "run", tmp_path / "mirror", {"steps": 4}, every=1, keep=1) == 0
    assert kept_in(LocalStore(tmp_path / "mirror")) == ["step-00000004"]
    assert "could not be copied" not in capsys.readouterr().err


def test_no_password_is_in_the_run(data: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(data, tmp_path / "run", bucket, {"steps": 1}) == 0
    said = "".join(capsys.readouterr()).encode()
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    store = open_store(bucket)
    assert not [
        text for text in (said, *written, *map(store.read, store.list())) if object_store.SECRET.encode() in text
    ]
