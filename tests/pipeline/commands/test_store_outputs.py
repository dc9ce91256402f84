"""Commands that make datasets from datasets, and tokenizers, with an --out on an object store."""

import pickle
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import object_store
from helpers.pipeline_helpers import STATIC, preprocess, some_records, write_jsonl
from helpers.target_examples import teacher_folder

from pipeline.__main__ import main
from shared.distillation.targets_folder import open_targets
from shared.errors import StorageError
from shared.io.files.digests import file_sha256
from shared.io.stores.lease import leased
from shared.io.stores.store import UrlStore, open_store
from shared.shards.cache import FileCache
from shared.shards.open import open_dataset

pytestmark = pytest.mark.drill  # hundreds of requests to a real object store each

COMMANDS = {
    "recut": ["recut", "SOURCE", "--rule", "static", "--stride", 3],
    "merge": ["merge", "SOURCE", "SOURCE-other"],
    "webdataset": ["convert", "SOURCE", "--to", "webdataset"],
    "parquet": ["convert", "SOURCE", "--to", "parquet"],
    "split": ["split", "SOURCE/train", "--validation-fraction", 0.3],
    "targets": ["targets", "SOURCE", "--teacher", "SOURCE-model/teacher"],
    "tokenizer": ["tokenizer", "SOURCE", "--vocabulary", 270],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(2):
        write_jsonl(folder / f"{number}.jsonl", some_records(20))
    assert preprocess(folder, "--out", folder.parent / "out", *STATIC, "--split-bytes", 8000) == 0
    write_jsonl(folder / "0.jsonl", some_records(12, words=9))
    assert preprocess(folder / "0.jsonl", "--out", folder.parent / "out-other", *STATIC) == 0
    teacher_folder(folder.parent / "out-model")
    return folder.parent / "out"


def run(name: str, source: Path, out: object) -> int:
    words = [str(word).replace("SOURCE", str(source)) for word in COMMANDS[name]]
    return main([*words, "--out", str(out), *([] if name == "tokenizer" else ["--workers", "1"])])


def hashes(url: str, folder: Path) -> dict[str, str]:
    """sha256 of what a store has below a URL, fetched into a folder."""
    store = open_store(url)
    for key in store.list():
        if not key.startswith("lease/"):
            store.download(key, folder / key)
    return local(folder)


def local(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(source: Path, store_endpoint: str) -> Callable[[str], str]:
    """Where the result of a command lies on a store; it is made once."""
    urls: dict[str, str] = {}

    def url(name: str) -> str:
        if name not in urls:
            urls[name] = f"s3://{object_store.BUCKET}/{secrets.token_hex(8)}"
            assert run(name, source, urls[name]) == 0
        return urls[name]

    return url


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_files_are_those_of_a_folder(name: str, source: Path, made: Callable[[str], str], tmp_path: Path) -> None:
    assert run(name, source, tmp_path / "out") == 0
    assert hashes(made(name), tmp_path / "fetched") == local(tmp_path / "out")


@pytest.mark.usefixtures("bucket")
def test_targets_behind_a_url_are_read_through_the_cache(
    source: Path, made: Callable[[str], str], tmp_path: Path
) -> None:
    cache, dataset = FileCache(tmp_path / "cache"), open_dataset(source / "train")
    targets = pickle.loads(pickle.dumps(open_targets(made("targets"), dataset, cache)))
    assert run("targets", source, tmp_path / "out") == 0
    here = open_targets(tmp_path / "out", dataset)
    for row in range(len(dataset.shard_index(0))):
        for theirs, ours in zip(targets.row(0, row), here.row(0, row)):
            assert np.array_equal(theirs, ours)
    assert main(["verify", str(source), "--targets", made("targets")]) == 0


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_there_is_current(
    name: str, source: Path, made: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = made(name)
    capsys.readouterr()
    assert run(name, source, url) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_what_killed_starts_have_left_is_no_hindrance_and_does_not_stay(name: str, source: Path, bucket: str) -> None:
    store = open_store(bucket)
    store.put(".probe/0123/created", b"x")
    assert run(name, source, bucket) == 0
    store.put(".unfinished/units/0.json", b"x")
    assert run(name, source, bucket) == 0
    if name != "tokenizer":  # which leaves no such thing
        assert ".unfinished/units/0.json" not in store.list()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("name", ["recut", "tokenizer"])
def test_the_work_of_another_command_is_refused(name: str, source: Path, made: Callable[[str], str]) -> None:
    assert run(name, source, made("webdataset")) == 2


@pytest.mark.parametrize("name", ["recut", "tokenizer"])
def test_a_place_that_is_in_use_is_refused(name: str, source: Path, bucket: str) -> None:
    with leased(open_store(bucket), 1.0):
        assert run(name, source, bucket) == 2


def test_an_interrupted_command_resumes(
    source: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, sent = UrlStore.publish, []

    def fail_late(self: UrlStore, path: Path, key: str, sha256: str) -> None:
        sent.append(key)
        if len(sent) > 7:
            raise StorageError("no more room")
        publish(self, path, key, sha256)

    monkeypatch.setattr(UrlStore, "publish", fail_late)
    assert run("recut", source, bucket) == 2
    before = open_store(bucket).list(".unfinished/units/")
    assert before
    assert "made-by.json" not in open_store(bucket).list()
    again: list[str] = []

    def count(self: UrlStore, path: Path, key: str, sha256: str) -> None:
        again.append(key)
        publish(self, path, key, sha256)

    monkeypatch.setattr(UrlStore, "publish", count)
    assert run("recut", source, bucket) == 0
    assert run("recut", source, tmp_path / "out") == 0
    assert hashes(bucket, tmp_path / "fetched") == local(tmp_path / "out")
    assert not {key for key in again if "shard" in key} & set(sent[:2])


def test_a_command_that_was_replaced_commits_nothing(
    source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = UrlStore.publish

    def replace(self: UrlStore, path: Path, key: str, sha256: str) -> None:
        publish(self, path, key, sha256)
        self.put(".unfinished/made-by.json", b"{}")

    monkeypatch.setattr(UrlStore, "publish", replace)
    assert run("recut", source, bucket) == 2
    found: Any = open_store(bucket).list()
    assert not [key for key in found if "/units/" in key or key.endswith("manifest.json")]
