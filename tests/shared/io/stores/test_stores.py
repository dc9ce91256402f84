"""Outputs in folders and object stores: whole, once, read back, listed; and no password in any message."""

import errno
import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import s3fs
from helpers import object_store

from shared.errors import DeniedError, OutputError, StorageError
from shared.io.stores import store as stores
from shared.io.stores.store import LocalStore, Store, UrlStore, open_store, probe


@pytest.fixture(params=["folder", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return open_store(tmp_path / "store")
    if request.param == "memory":  # of one process alone, so no place for outputs, but a driver unlike the others
        monkeypatch.setattr("shared.io.stores.store.SCHEMES", ("memory",))
        return open_store(f"memory://{tmp_path.name}")
    return open_store(request.getfixturevalue("bucket"))


def test_what_is_put_is_read(store: Store) -> None:
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    assert store.read("a/b") == b"two"


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        store.read("nothing")


def test_an_object_that_is_too_large_is_not_read(store: Store) -> None:
    store.put("a", b"12345")
    with pytest.raises((StorageError, OSError), match=r"larger|too large"):
        store.read("a", 4)


def test_a_file_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content := bytes(range(256)) * 2**17)  # two ranges
    store.publish(tmp_path / "file", "x/file", hashlib.sha256(content).hexdigest())
    store.download("x/file", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content


def test_a_file_that_arrives_damaged_is_an_error(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"content")
    monkeypatch.setattr(store, "upload", lambda path, key: store.put(key, b"CONTENT"))
    with pytest.raises((StorageError, OSError)):
        store.publish(tmp_path / "file", "file", hashlib.sha256(b"content").hexdigest())


def test_the_list_has_sizes_below_a_prefix(store: Store) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "4"):
        store.put(key, key.encode())
    assert {key: entry.bytes for key, entry in store.list("a/").items()} == {"a/1": 3, "a/b/2": 5}


def test_the_whole_list(store: Store) -> None:
    for key in ("a/1", "2"):
        store.put(key, b"x")
    assert sorted(store.list()) == ["2", "a/1"]


def test_what_is_removed_is_gone(store: Store) -> None:
    store.put("a/1", b"x")
    store.remove(["a/1", "never/there"])
    assert store.list() == {}


def test_writing_once_twice_is_nothing_new(store: Store) -> None:
    store.write_once("plan", b"same")
    store.write_once("plan", b"same")
    assert store.read("plan") == b"same"


def test_another_content_is_refused(store: Store) -> None:
    store.write_once("plan", b"one")
    with pytest.raises(OutputError, match="plan"):
        store.write_once("plan", b"two")
    assert store.read("plan") == b"one"


def test_without_conditions_another_content_is_refused_too(store: Store) -> None:
    store.conditional = False
    store.write_once("plan", b"one")
    store.write_once("plan", b"one")
    with pytest.raises(OutputError, match="plan"):
        store.write_once("plan", b"two")


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_of_many_creators_one_wins(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store = open_store(tmp_path if kind == "folder" else request.getfixturevalue("bucket"))
    barrier = threading.Barrier(4)

    def create(number: int) -> bool:
        barrier.wait()
        return store.create("key", b"%d" % number)

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(create, range(4)))
    assert [b"%d" % number for number in range(4) if won[number]] == [store.read("key")]


def test_the_probe_leaves_nothing(store: Store) -> None:
    probe(store)
    assert store.list() == {}


def test_a_real_store_keeps_creators_apart(bucket: str) -> None:
    store = open_store(bucket)
    store.conditional = False
    probe(store)
    assert store.conditional


def test_a_store_that_ignores_conditions_is_found_out(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(bucket)
    monkeypatch.setattr(store, "put_if_absent", lambda key, content: store.put(key, content) or True)
    probe(store)
    assert not store.conditional


def test_a_driver_without_conditions_is_found_out(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(bucket)
    plain = s3fs.S3FileSystem._pipe_file

    async def pipe_file(self: Any, path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode != "overwrite":
            raise NotImplementedError(mode)
        await plain(self, path, data)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", pipe_file)
    monkeypatch.setattr(store._fs, "pipe_file", lambda path, data, mode="overwrite": _piped(plain_fs, path, data, mode))
    plain_fs = store._fs
    probe(store)
    assert not store.conditional


def _piped(fs: Any, path: str, data: bytes, mode: str) -> None:
    if mode != "overwrite":
        raise NotImplementedError(mode)
    with fs.open(path, "wb") as file:
        file.write(data)


@pytest.mark.parametrize("lack", ["list", "read"])
def test_a_store_that_shows_old_things_is_refused_by_name(lack: str, tmp_path: Path) -> None:
    class Late(LocalStore):
        def list(self, prefix: str = "") -> dict[str, Any]:
            return {} if lack == "list" else super().list(prefix)

        def read(self, key: str, most_bytes: int = 0) -> bytes:
            if lack == "read":
                raise FileNotFoundError(key)
            return super().read(key, most_bytes or 2**20)

    with pytest.raises(StorageError, match=tmp_path.name):
        probe(Late(tmp_path))


@pytest.mark.parametrize(
    "url", ["http://host/x", "ftp://host/x", "github://a:b@main/x", "hf://datasets/x", "memory://x"]
)
def test_other_stores_are_refused_by_name(url: str) -> None:
    with pytest.raises(StorageError, match=url.partition(":")[0]):
        open_store(url)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://b//x", "s3://b/./x", "s3://b/../x", "s3://b/x//"])
def test_a_place_that_stores_would_understand_differently_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="BUCKET"):
        open_store(url)


def test_a_store_may_be_pickled(bucket: str) -> None:
    store = open_store(bucket)
    store.put("a", b"x")
    store.conditional = False
    again = pickle.loads(pickle.dumps(store))
    assert (again.read("a"), again.conditional) == (b"x", False)


def test_a_pickled_store_has_no_password(bucket: str) -> None:
    assert object_store.SECRET.encode() not in pickle.dumps(open_store(bucket))


# ---- Passwords.


@pytest.mark.parametrize("url", ["s3://bucket/x?X-Amz-Signature=hush-hush", "s3://user:hush-hush@bucket/x"])
def test_passwords_in_urls_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(url)
    assert "hush-hush" not in str(caught.value)


def test_a_wrong_password_is_not_shown(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush-hush-hush")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError) as caught:
        UrlStore(bucket, patience=0).put("a", b"x")
    assert "hush-hush-hush" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_no_password_of_an_error_is_shown(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = UrlStore(bucket, patience=0)
    store._fs.storage_options["client_kwargs"] = {"aws_session_token": "in-the-options"}

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            f"GET http://me:{object_store.SECRET}@host/x?sig=in-the-query with {object_store.SECRET} in-the-options"
        )

    monkeypatch.setattr(store._fs, "pipe_file", fail)
    with pytest.raises(StorageError, match="RuntimeError") as caught:
        store.put("a", b"x")
    assert not [word for word in (object_store.SECRET, "in-the-options", "in-the-query") if word in str(caught.value)]


# ---- A store that is away.


@pytest.mark.slow
def test_a_store_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store.own_store(tmp_path) as server, object_store.opened(server.endpoint, monkeypatch):
        store = open_store(f"s3://{object_store.BUCKET}/x")
        server.stop()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(store.put, "a", b"x")
            server.start()
            writing.result(timeout=120)
        assert store.read("a") == b"x"


def test_a_store_that_stays_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = object_store.free_ports(1)
    with (
        object_store.opened(f"http://127.0.0.1:{port}", monkeypatch),
        pytest.raises(StorageError, match="s3://gone/x/a"),
    ):
        UrlStore("s3://gone/x", patience=0.1).put("a", b"x")


def test_a_store_that_never_answered_is_not_waited_for_as_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = object_store.free_ports(1)
    monkeypatch.setattr(stores, "FIRST_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(stores, "SILENCE_SECONDS", 0.0)
    with object_store.opened(f"http://127.0.0.1:{port}", monkeypatch):
        store = open_store("s3://gone/x")
        _refuse_at_once(store, monkeypatch)
        with pytest.raises(StorageError, match="s3://gone/x: "):
            probe(store)
    assert "waiting for the store: s3://gone/x: " in caplog.text


def _refuse_at_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver says of an address where nobody listens, without its own attempts."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(store._fs, "call_s3", refuse)


# ---- Buckets that are not there, or not the user's.


@pytest.mark.parametrize("user", object_store.READERS)
def test_a_bucket_that_may_not_be_written_to_is_asked_about(
    user: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_store.become(user, monkeypatch)
    with pytest.raises(DeniedError, match="does the bucket exist") as caught:
        probe(open_store(bucket))
    assert str(caught.value).startswith(f"{bucket}: ")
    assert ".probe" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_asked_about(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(bucket)

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    for name in ("call_s3", "pipe_file"):
        monkeypatch.setattr(store._fs, name, missing)
    with pytest.raises(StorageError, match="does the bucket exist") as caught:
        probe(store)
    assert str(caught.value).startswith(f"{bucket}: ")


def test_a_folder_that_vanishes_before_it_is_written_to_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, others = Path.mkdir, iter(range(3))

    def vanishing(folder: Path, *arguments: Any, **options: Any) -> None:
        make(folder, *arguments, **options)
        if next(others, None) is not None:  # somebody else has removed the last file in it, and it
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", vanishing)
    LocalStore(tmp_path).put("a/b", b"x")
    assert LocalStore(tmp_path).read("a/b") == b"x"
