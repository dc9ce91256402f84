"""Runs whose --out is an object store: the same bytes as in a folder, whatever happens to driver, workers and store."""

import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import object_store
from helpers.chaos import Chaos, a_worker_process, the_driver
from helpers.pipeline_helpers import STATIC, environment, preprocess, shard_hashes, some_records, write_jsonl
from helpers.store_runs import contents, remote_hashes
from helpers.tiny_runs import run as train

from pipeline.__main__ import main
from pipeline.settings import Job, OutputSettings, PipelineError, ReadSettings, RunStore
from pipeline.splits.place import commit, require_run
from shared.errors import IdentityError, OutputError, StorageError
from shared.io.stores.lease import leased
from shared.io.stores.store import Store, UrlStore, open_store
from shared.patching import PatchingSettings

pytestmark = pytest.mark.drill  # hundreds of requests to a real object store each

OPTIONS = (*STATIC, "--split-bytes", 5000, "--subset-column", "lang")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        write_jsonl(folder / f"{number}.jsonl", some_records(16))
    (folder / "bad.jsonl").write_text('{"text": 1}\n{"text": ""}\n{"text": "fine"}\n')
    return folder


@pytest.fixture(scope="module")
def quiet(corpus: Path) -> dict[str, str]:
    """What an undisturbed run in a folder leaves."""
    out = corpus.parent / "quiet"
    assert preprocess(corpus, "--out", out, *OPTIONS) == 3
    return shard_hashes(out)


@pytest.fixture(scope="module")
def kept(corpus: Path, store_endpoint: str) -> str:
    """A place on a store with a finished run, `out`, and an input, `in`."""
    url = f"s3://{object_store.BUCKET}/{secrets.token_hex(8)}"
    with pytest.MonkeyPatch.context() as patch, object_store.opened(store_endpoint, patch):
        assert preprocess(corpus, "--out", f"{url}/out", *OPTIONS) == 3
        open_store(url).put("in/a.txt", b"some text")
    return url


def etags(store: UrlStore) -> dict[str, str]:
    """What the store says of the content of each object: times of whole seconds tell too little."""
    found = store._fs.find(store._root, detail=True).items()
    return {path.removeprefix(f"{store._root}/"): info["ETag"] for path, info in found}


@pytest.fixture(scope="module")
def kept_contents(kept: str, store_endpoint: str) -> dict[str, bytes]:
    """All that the run holds."""
    with pytest.MonkeyPatch.context() as patch, object_store.opened(store_endpoint, patch):
        return contents(open_store(f"{kept}/out"))


@pytest.fixture
def done(
    kept: str, kept_contents: dict[str, bytes], store_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A finished run on a store. Tests may change it; it is restored after each."""
    with object_store.opened(store_endpoint, monkeypatch):
        store = UrlStore(f"{kept}/out")
        before = etags(store)
        yield store.where
        store._fs.invalidate_cache()
        after = etags(store)
        store.remove(after.keys() - before.keys())
        for key in [key for key in before if after.get(key) != before[key]]:
            store.put(key, kept_contents[key])


def test_the_bytes_are_those_of_a_folder(done: str, quiet: dict[str, str]) -> None:
    assert remote_hashes(done) == quiet


@pytest.mark.drill
def test_processes_write_the_same(corpus: Path, bucket: str, quiet: dict[str, str]) -> None:
    assert preprocess(corpus, "--out", bucket, *OPTIONS, "--workers", 2) == 3
    assert remote_hashes(bucket) == quiet


def test_a_finished_run_is_left_as_it_is(corpus: Path, done: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {key: entry for key, entry in open_store(done).list().items() if not key.startswith("lease/")}
    assert preprocess(corpus, "--out", done, *OPTIONS) == 3
    assert {key: entry for key, entry in open_store(done).list().items() if not key.startswith("lease/")} == before


def test_a_sample_without_duplicates_is_the_same(corpus: Path, bucket: str, tmp_path: Path) -> None:
    options = (*OPTIONS, "--dedup", "--sample-bytes", 6000)
    assert preprocess(corpus, "--out", bucket, *options) == 3
    assert preprocess(corpus, "--out", tmp_path / "out", *options) == 3
    assert remote_hashes(bucket) == shard_hashes(tmp_path / "out")


def test_nothing_but_the_run_stays(done: str) -> None:
    parts = {re.sub("^files-.*", "files", key.split("/")[0]) for key in open_store(done).list()}
    lists = {"dead-letters", "empty-records", "logs"}
    assert parts == {
        "run.json",
        "begun.json",
        "files",
        "report.json",
        "progress.json",
        "splits",
        "train",
        "validation",
        "lease",
        *lists,
    }


def test_a_shard_that_is_gone_is_made_again(corpus: Path, done: str, quiet: dict[str, str]) -> None:
    store = open_store(done)
    store.remove([next(key for key in store.list("train/") if key.endswith(".arrow"))])
    assert preprocess(corpus, "--out", done, *OPTIONS) == 3
    assert remote_hashes(done) == quiet


def test_a_touched_input_is_the_same_input(corpus: Path, done: str, quiet: dict[str, str]) -> None:
    store = open_store(done)
    store.remove(["splits/0000001-00000.json"])
    (corpus / "0.jsonl").touch()
    assert preprocess(corpus, "--out", done, *OPTIONS) == 3
    assert remote_hashes(done) == quiet


def test_another_run_is_refused(corpus: Path, done: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(open_store(done), "train/", "splits/")
    assert preprocess(corpus, "--out", done, *OPTIONS, "--stride", 7) == 2
    assert done in capsys.readouterr().err
    assert contents(open_store(done), "train/", "splits/") == before


def test_a_place_with_something_else_is_refused(corpus: Path, bucket: str) -> None:
    open_store(bucket).put("mine", b"x")
    assert preprocess(corpus, "--out", bucket, *OPTIONS) == 2


def test_what_a_start_that_was_killed_has_left_is_no_hindrance(
    corpus: Path, bucket: str, quiet: dict[str, str]
) -> None:
    store, table = open_store(bucket), f"files-{'0' * 64}.arrow"
    for key in (".probe/0123/created", ".clock/0123", table):
        store.put(key, b"x")
    assert preprocess(corpus, "--out", bucket, *OPTIONS) == 3
    assert remote_hashes(bucket) == quiet
    assert table not in store.list()


@pytest.mark.parametrize("out", ["http://host/x", "s3://bucket/x?sig=hush-hush", "s3://me:hush-hush@bucket/x"])
def test_an_impossible_place_is_refused(corpus: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert preprocess(corpus, "--out", out, *OPTIONS) == 2
    assert "hush-hush" not in capsys.readouterr().err


def test_a_run_is_not_written_into_its_input(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(bucket).put("in/a.txt", b"text")
    for text in (
        bucket,
        f"{bucket}/**",
        f"{bucket}/*/*.txt",
        f"{bucket}/o*",
        *(f"{scheme}{bucket[2:]}" for scheme in ("s3a", "S3")),
    ):
        assert preprocess(text, "--out", f"{bucket}/out", *OPTIONS) == 2
        assert f"{bucket}/out" in capsys.readouterr().err


def test_a_run_may_lie_beside_its_input(bucket: str) -> None:
    open_store(bucket).put("in/a.txt", b"text")
    for _ in range(2):
        assert preprocess(f"{bucket}/i*/*.txt", "--out", f"{bucket}/out", *STATIC) == 0


def test_a_second_driver_is_refused(corpus: Path, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    with leased(open_store(bucket), 1.0):
        assert preprocess(corpus, "--out", bucket, *OPTIONS) == 2
    assert "in use" in capsys.readouterr().err


def test_the_marker_comes_last(corpus: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = UrlStore.publish

    def fail(self: UrlStore, path: Path, key: str, sha256: str) -> None:
        if key.startswith("validation/"):
            raise StorageError("no more room")
        publish(self, path, key, sha256)

    monkeypatch.setattr(UrlStore, "publish", fail)
    assert preprocess(corpus, "--out", bucket, *OPTIONS, "--validation-fraction", 0.5) == 1
    store = open_store(bucket)
    assert store.list("train/")
    assert not [key for key in store.list("train/") if key.endswith("manifest.json")]
    assert len(store.list("splits/")) < len(store.list("logs/"))
    assert all(json.loads(store.read(key))["shards"]["validation"] == [] for key in store.list("splits/"))


def job_on(url: str, out: Path) -> Job:
    output = OutputSettings(patching=PatchingSettings(rule="none"))
    return Job(out=out, reading=ReadSettings(), output=output, store=RunStore(url=url))


def marked(store: Store, job: Job, content: bytes, run: str) -> None:
    """Commit a marker with some content."""
    path = job.out / "splits" / "00000.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    commit(job, job, run)


def test_a_marker_never_changes(bucket: str, tmp_path: Path) -> None:
    store, job = open_store(bucket), job_on(bucket, tmp_path)
    store.put("begun.json", b'{"run": "a", "numerics": null}')
    marked(store, job, b"one", "a")
    marked(store, job, b"one", "a")
    with pytest.raises(OutputError, match="splits/00000"):
        marked(store, job, b"two", "a")
    assert store.read("splits/00000.json") == b"one"


def test_a_worker_that_comes_late_changes_nothing(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that slept while another driver finished the run: in the list of its split lines are those of the file."""
    path, store, late = tmp_path / "a.jsonl", open_store(bucket), []
    path.write_bytes((b'{"text": "some text"}\n' * 40 + b"bad\n" + b'{"text": ""}\n') * 20)

    def committed(job: Job, worked: Job, run: str) -> None:
        kept = tmp_path / str(len(late))
        shutil.copytree(worked.out, kept)
        late.append((job, worked.model_copy(update={"out": kept}), run))
        commit(job, worked, run)

    monkeypatch.setattr("pipeline.splits.worker.commit", committed)
    assert preprocess(path, "--out", bucket, *STATIC, "--split-bytes", 5000) == 3
    before = contents(store, "train/", "validation/", "splits/", "dead-letters/", "empty-records/")
    assert len(late) > 1
    for arguments in late:
        commit(*arguments)
    assert contents(store, "train/", "validation/", "splits/", "dead-letters/", "empty-records/") == before


def test_who_commits_looks_whose_run_it_is_by_now(bucket: str, tmp_path: Path) -> None:
    store, job = open_store(bucket), job_on(bucket, tmp_path)
    store.put("begun.json", b'{"run": "b", "numerics": null}')
    with pytest.raises(IdentityError, match=r"begun\.json"):
        marked(store, job, b"one", "a")
    assert not store.list("splits/")


def test_a_run_that_somebody_removed_is_not_committed_to(bucket: str) -> None:
    with pytest.raises(PipelineError, match=r"begun\.json"):
        require_run(open_store(bucket), "a")


def test_no_password_is_stored_or_said(corpus: Path, done: str, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(done).remove(["splits/0000001-00000.json"])
    assert preprocess(corpus, "--out", done, *OPTIONS) == 3
    said = "".join(capsys.readouterr()).encode()
    assert said
    assert not [text for text in (said, *contents(open_store(done)).values()) if object_store.SECRET.encode() in text]


def test_it_verifies(done: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", done]) == 0
    assert f"{done}/validation" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["spoilt", "removed", "added"])
def test_damage_is_found(damage: str, done: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(done)
    name = next(key for key in store.list("train/") if key.endswith(".arrow") and "shard-" in key)
    if damage == "spoilt":
        store.put(name, store.read(name)[:-1] + b"!")
    elif damage == "removed":
        store.remove([name])
    else:
        name = "train/shard-99999.arrow"
        store.put(name, b"x")
    assert main(["verify", done]) == 1
    assert f"{done}/{name}" in capsys.readouterr().out


def test_a_url_without_a_dataset_is_named(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["verify", bucket]) == 2
    assert bucket in caplog.text


def test_a_model_trains_on_it_as_on_a_folder(corpus: Path, quiet: object, done: str, tmp_path: Path) -> None:
    """From the store, mirrored to the store, and resumed from there alone."""
    local, steps = corpus.parent / "quiet", {"run": {"steps": 4}}
    small = ("--data.workers", 0, "--data.tokens", 1024, "--data.packs", 2)
    assert train(local, tmp_path / "a", *small, **steps) == 0
    options = (*small, "--data.path", done, "--data.cache", tmp_path / "cache")
    for out in (tmp_path / "b", tmp_path / "c"):
        assert train(local, out, *options, **steps, checkpoint={"mirror": f"{done}-mirror", "every": 2}) == 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] == weights[2]


# ---- Users who may only read.


@pytest.fixture(params=object_store.READERS)
def readable(
    request: pytest.FixtureRequest, kept: str, store_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The same for a process that may not change it."""
    with object_store.opened(store_endpoint, monkeypatch):
        object_store.become(request.param, monkeypatch)
        with pytest.raises(StorageError, match="Denied"):
            UrlStore(kept, patience=0).put("a", b"x")
        yield kept


def test_who_may_only_read_can_verify(readable: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"{readable}/out"]) == 0
    assert f"{readable}/out/validation" in capsys.readouterr().out


def test_who_may_only_read_can_train(readable: str, tmp_path: Path) -> None:
    small = ("--data.workers", 0, "--data.tokens", 1024, "--data.packs", 2)
    options = (*small, "--data.cache", tmp_path / "cache", "--data.path", f"{readable}/out")
    assert train(tmp_path, tmp_path / "run", *options, run={"steps": 2}) == 0


def test_who_may_only_read_can_preprocess_a_file(readable: str, tmp_path: Path) -> None:
    assert preprocess(f"{readable}/in/a.txt", "--out", tmp_path / "out", *STATIC) == 0


def test_the_case_of_a_scheme_means_nothing(kept: str, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert preprocess(f"S3{kept[2:]}/in/a.txt", "--out", f"S3{bucket[2:]}", *STATIC) == 0
    assert main(["verify", bucket]) == 0
    assert main(["verify", f"S3{bucket[2:]}"]) == 0


def test_a_misspelt_output_makes_no_folder(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        preprocess(corpus, "--out", "s3:/bucket/x", *STATIC)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_input_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preprocess("s3:/bucket/x", "--out", tmp_path / "out", *STATIC) == 2
    assert "s3://bucket/x" in capsys.readouterr().err


def test_who_may_only_read_is_told_that_nothing_can_be_written(
    corpus: Path, readable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(corpus, "--out", f"{readable}/out", *OPTIONS) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert readable in said
    assert "Denied" in said


# ---- Kills, pauses and outages.


def command(corpus: Path, out: str, *options: object) -> list[object]:
    return ["preprocess", corpus, "--out", out, *OPTIONS, *options]


@pytest.fixture
def driver(corpus: Path) -> Any:
    """Starts a run in a process of its own; whatever is left of it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(out: str, *options: object) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "pipeline", *map(str, command(corpus, out, *options))]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(line, env=environment(), stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def chaos(kills: int, corpus: Path, out: str, log: Path) -> Chaos:
    victims = {"driver": the_driver, "worker": a_worker_process}
    found = Chaos(kills, victims, seed=random.randrange(10**6), pause=(0.8, 2.5))
    found.finish(command(corpus, out, "--workers", 2), log)
    return found


@pytest.mark.drill
def test_kills_change_no_byte(corpus: Path, bucket: str, quiet: dict[str, str], tmp_path: Path) -> None:
    chaos(4, corpus, bucket, tmp_path / "log")
    assert remote_hashes(bucket) == quiet


@pytest.mark.slow
def test_thirty_kills_change_no_byte(bucket: str, tmp_path: Path) -> None:
    corpus, left, number = tmp_path / "in", 30, 0
    corpus.mkdir()
    write_jsonl(corpus / "a.jsonl", some_records(600))
    assert preprocess(corpus, "--out", tmp_path / "quiet", *OPTIONS) == 0
    while left:
        out = f"{bucket}-{number}"
        found = chaos(left, corpus, out, tmp_path / "log")
        assert remote_hashes(out) == shard_hashes(tmp_path / "quiet")
        left, number = left - sum(found.done.values()), number + 1


@pytest.mark.slow
def test_a_driver_that_slept_through_its_lease_changes_no_byte(bucket: str, driver: Any, quiet: dict[str, str]) -> None:
    store = open_store(bucket)
    first = driver(bucket)
    wait_until(lambda: store.list("splits/"))
    first.send_signal(signal.SIGSTOP)
    second = driver(bucket)
    assert second.wait(300) == 3, second.communicate()
    before = contents(store, "train/", "validation/", "splits/", "run.json", "begun.json")
    first.send_signal(signal.SIGCONT)
    first.wait(300)
    assert remote_hashes(bucket) == quiet
    assert contents(store, "train/", "validation/", "splits/", "run.json", "begun.json") == before


@pytest.mark.slow
def test_a_store_that_is_away_is_waited_for(
    tmp_path: Path, driver: Any, quiet: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store.own_store(tmp_path) as server, object_store.opened(server.endpoint, monkeypatch):
        out = f"s3://{object_store.BUCKET}/run"
        process, store = driver(out), open_store(out)
        wait_until(lambda: store.list("splits/"))
        server.stop()
        time.sleep(20)
        assert process.poll() is None
        server.start()
        assert process.wait(300) == 3, process.communicate()
        assert remote_hashes(out) == quiet


def test_the_folders_of_workers_are_removed(
    corpus: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert preprocess(corpus, "--out", bucket, *OPTIONS) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_waits_for_a_store_ends_at_a_signal(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "value", "AWS_ENDPOINT_URL_S3": address}
        words = ["preprocess", str(tmp_path / "a.txt"), "--rule", "space", "--out", "s3://bucket/run"]
        arguments = [sys.executable, "-m", "pipeline", *words, "--executor", "inline"]
        with subprocess.Popen(arguments, env=os.environ | keys, stderr=subprocess.PIPE, text=True) as process:
            silent.settimeout(600)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            said = process.stderr.read()
            connection.close()
    assert process.returncode != 0
    assert "stopped" in said
