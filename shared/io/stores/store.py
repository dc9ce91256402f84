"""Where outputs go: a folder, or an object store behind an fsspec URL, with the few operations that both have.

What is asked of an object store (docs/object-stores.md): an object appears whole or not at all, under its key, when its
upload is complete; who reads or lists after that sees it. Creating only what is absent is used where the store has it.
`probe` tries all of these before any work; a store that lacks one is refused by name.
"""

import errno
import hashlib
import os
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shared.errors import DeniedError, OutputError, StorageError
from shared.io.display.log import LOG
from shared.io.files.atomic import atomic_file, naming, sync
from shared.io.files.json_reader import read_bounded
from shared.io.stores.locations import file_system, without_secrets
from shared.io.stores.pages import objects_below
from shared.io.stores.transient_errors import is_transient, status_of

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Of stores that put an object under its key in one step."""
PATIENCE_SECONDS = 300.0
"""How long a store may be away before what waits for it fails."""
FIRST_PATIENCE_SECONDS = 30.0
"""How long at a start, when it has never answered: its address may be wrong."""
LONGEST_PAUSE = 5.0
SILENCE_SECONDS = 2.0
"""How long a store is waited for before that is said."""
AT_ONCE = 8
"""Objects on their way."""
_SUBMITTED = 256
CHUNK = 2**24
SMALL = 2**27
"""Bytes of the largest object that is read into memory to be compared."""
PROBES, CLOCKS, LEASES = ".probe", ".clock", "lease"
"""Folders in which drivers try a store, ask for its time, and say that they live: no part of what is written there."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a store."""

    bytes: int
    modified: float
    """By the clock of the store, seconds since 1970; often whole ones."""


class Store(ABC):
    """A place for outputs. Keys are relative, with "/" between their parts. All methods may be called by any thread.

    Raises StorageError, one line without any password, when the store cannot be used; OSError of folders.
    """

    where: str
    """For messages."""
    conditional: bool = True
    """Whether `create` keeps two writers apart; `probe` finds out."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Write an object, or replace it: readers see the old one or the new one."""

    @abstractmethod
    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; whether this call wrote it, as far as an interrupted one can tell."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Make a file an object, or replace it, in one step."""

    @abstractmethod
    def read(self, key: str, most_bytes: int = SMALL) -> bytes:
        """An object as a whole. Raises FileNotFoundError; StorageError for one that is larger."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Make an object a file, which appears whole or not at all. Raises FileNotFoundError."""

    @abstractmethod
    def sha256(self, key: str) -> str:
        """Of an object as it is read now. Raises FileNotFoundError."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[tuple[str, Entry]]:
        """Key of each object that begins with a prefix, which is empty or ends at a "/", and what is said of it."""

    @abstractmethod
    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are none."""

    def reach(self) -> None:  # noqa: B027  # nothing to ask of a folder
        """Ask for something. Raises StorageError when it does not answer, sooner than in the middle of work."""

    def list(self, prefix: str = "") -> dict[str, Entry]:
        """The same at once, of objects that are not too many to be held."""
        return dict(self.entries(prefix))

    def products(self) -> Iterator[tuple[str, Entry]]:
        """All objects but those with which drivers look after themselves."""
        own = tuple(f"{folder}/" for folder in (PROBES, CLOCKS, LEASES))
        return (found for found in self.entries() if not found[0].startswith(own))

    def url(self, key: str) -> str:
        """An object, for messages; the place alone for one of `probe`, which users have not named."""
        return self.where if key.startswith(f"{PROBES}/") else f"{self.where}/{key}"

    def create(self, key: str, content: bytes) -> bool:
        """Whether this content is under the key, which had none before, or had it already.

        An answer of the store may get lost, and the second attempt meets what the first has written.
        """
        if self.conditional:
            return self.put_if_absent(key, content) or self._content(key) == content
        if (found := self._content(key)) is not None:
            return found == content
        self.put(key, content)
        return self._content(key) == content

    def write_once(self, key: str, content: bytes) -> None:
        """Write an object that never changes. Raises OutputError when there is one with another content."""
        if not self.create(key, content):
            raise OutputError(f"{self.url(key)} exists with another content; it is never replaced: use another place")

    def publish(self, path: Path, key: str, sha256: str) -> None:
        """Upload a file and read it back. Raises StorageError when what is there is not what was sent."""
        self.upload(path, key)
        if (found := self.sha256(key)) != sha256:
            raise StorageError(f"{self.url(key)} is not what was uploaded: sha256 {found}, sent {sha256}")

    def _content(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except FileNotFoundError:
            return None


def open_store(place: Path | str) -> Store:
    """The store of a folder or URL. Raises StorageError for a URL that outputs cannot be written to."""
    return LocalStore(place) if isinstance(place, Path) else UrlStore(place)


class LocalStore(Store):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def put(self, key: str, content: bytes) -> None:
        with atomic_file(self.folder / key) as file:
            file.write(content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        path = self.folder / key
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self.put(str(temporary.relative_to(self.folder)), content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync(path.parent)
        return True

    def upload(self, path: Path, key: str) -> None:
        with path.open("rb") as source, atomic_file(self.folder / key) as file:
            shutil.copyfileobj(source, file, CHUNK)

    def read(self, key: str, most_bytes: int = SMALL) -> bytes:
        return read_bounded(self.folder / key, most_bytes)

    def download(self, key: str, path: Path) -> None:
        LocalStore(path.parent).upload(self.folder / key, path.name)

    def sha256(self, key: str) -> str:
        with (self.folder / key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def entries(self, prefix: str = "") -> Iterator[tuple[str, Entry]]:
        for folder, _, names in os.walk(self.folder / prefix):
            for name in names:
                path = Path(folder) / name
                with suppress(FileNotFoundError):  # removed meanwhile
                    status = path.stat()
                    yield path.relative_to(self.folder).as_posix(), Entry(status.st_size, status.st_mtime)

    def remove(self, keys: Iterable[str]) -> None:
        for path in (self.folder / key for key in keys):
            path.unlink(missing_ok=True)
            with suppress(OSError):  # others are in it
                while (path := path.parent) != self.folder:
                    path.rmdir()


class UrlStore(Store):
    """An object store, spoken to through fsspec. May be pickled: passwords are looked up anew where it arrives."""

    def __init__(self, url: str, patience: float = PATIENCE_SECONDS) -> None:
        """``patience``: seconds that the store may be away. Raises StorageError for a URL that is not written to."""
        scheme = urlsplit(url).scheme
        if "?" in url or "#" in url:
            raise StorageError(f"{without_secrets(url)}: outputs go to a plain URL, without a query")
        if scheme not in SCHEMES:
            known = ", ".join(f"{known}://" for known in SCHEMES)
            raise StorageError(
                f"{without_secrets(url)}: {scheme}:// is not a store for outputs; use a folder or {known}"
            )
        if not {"", ".", ".."}.isdisjoint(url.partition("://")[2].removesuffix("/").split("/")):
            raise StorageError(f"{without_secrets(url)}: a part of it is empty or dots; give {scheme}://BUCKET/FOLDER")
        self._fs, path = file_system(url)
        self.where = url.rstrip("/")
        self._root = path.rstrip("/")
        self._patience = patience

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.where, self._patience, self.conditional)

    def put(self, key: str, content: bytes) -> None:
        self._tried(key, lambda: self._fs.pipe_file(self._path(key), content))

    def put_if_absent(self, key: str, content: bytes) -> bool:
        def write() -> bool:
            try:
                self._fs.pipe_file(self._path(key), content, mode="create")
            except Exception as error:  # each store has its own class
                if not _exists_already(error):
                    raise
                return False
            return True

        return self._tried(key, write)

    def upload(self, path: Path, key: str) -> None:
        self._tried(key, lambda: self._fs.put_file(str(path), self._path(key)))

    def read(self, key: str, most_bytes: int = SMALL) -> bytes:
        return self._tried(key, lambda: b"".join(self._chunks(key, most_bytes)))

    def download(self, key: str, path: Path) -> None:
        def fetch() -> None:
            with atomic_file(path) as file:
                for chunk in self._chunks(key):
                    with naming(path):
                        file.write(chunk)

        self._tried(key, fetch)

    def sha256(self, key: str) -> str:
        def read() -> str:
            digest = hashlib.sha256()
            for chunk in self._chunks(key):
                digest.update(chunk)
            return digest.hexdigest()

        return self._tried(key, read)

    def entries(self, prefix: str = "") -> Iterator[tuple[str, Entry]]:
        with suppress(FileNotFoundError):  # some drivers say so of a prefix that no key has
            for path, info in objects_below(self._fs, self._path(prefix), partial(self._tried, prefix)):
                key = path.removeprefix(self._root).lstrip("/")
                # Some stores keep folders, and drivers list the one that was asked about when nothing is in it.
                if key and key.startswith(prefix):
                    yield key, _entry(info)

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                self._tried(key, lambda key=key: self._fs.rm_file(self._path(key)))  # type: ignore[misc]

    def reach(self) -> None:
        key = f"{PROBES}/"
        tried = partial(self._tried, key, unanswered=FIRST_PATIENCE_SECONDS)
        with suppress(FileNotFoundError):
            next(objects_below(self._fs, self._path(key), tried), None)

    def _chunks(self, key: str, most_bytes: int | None = None) -> Iterator[bytes]:
        """What an object holds, by ranges: neither opened nor listed, which drivers answer from what they remember."""
        path = self._path(key)
        self._fs.invalidate_cache()
        size = int(self._fs.info(path)["size"])
        if most_bytes is not None and size > most_bytes:
            raise StorageError(f"{self.url(key)} is larger than {most_bytes:,} bytes")
        for start in range(0, size, CHUNK):
            yield self._fs.cat_file(path, start=start, end=min(start + CHUNK, size))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _tried(self, key: str, action: Callable[[], T], unanswered: float = PATIENCE_SECONDS) -> T:
        """What an action gives, tried again while the store is away. Raises FileNotFoundError, StorageError.

        ``unanswered``: seconds after which it fails if there was no answer of any kind.
        """
        began, pause, said = time.monotonic(), 0.2, 0.0
        while True:
            try:
                return action()
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "not in the store", self.url(key)) from None
            except StorageError:
                raise
            except Exception as error:  # each store raises errors of its own classes
                local = isinstance(error, OSError) and error.filename is not None and os.path.isabs(str(error.filename))
                if local:
                    raise  # a file of this machine, a full disk say
                waited, answered = time.monotonic() - began, _status(error) is not None
                patience = self._patience if answered else min(self._patience, unanswered)
                if not (is_transient(error) or _conflict(error)) or waited > patience:
                    kind = DeniedError if isinstance(error, PermissionError) else StorageError
                    raise kind(self._problem(key, error, waited)) from None
                if waited - said >= (LONGEST_PAUSE if said else SILENCE_SECONDS):
                    LOG.warning("waiting for the store: %s", self._problem(key, error, waited))
                    said = waited
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _problem(self, key: str, error: Exception, waited: float) -> str:
        tried = f" (tried for {waited:.0f} s)" if waited >= 1 else ""
        options = getattr(self._fs, "storage_options", {})
        return without_secrets(
            f"{self.url(key)}: {type(error).__name__}: {' '.join(str(error).split())}{tried}", options
        )


def _rebuilt(url: str, patience: float, conditional: bool) -> UrlStore:
    store = UrlStore(url, patience)
    store.conditional = conditional
    return store


def _entry(info: dict[str, Any]) -> Entry:
    """What fsspec says of an object, under whatever name a driver says it."""
    names = ("LastModified", "mtime", "updated", "last_modified", "created")
    found = next((info[name] for name in names if info.get(name)), 0)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return Entry(int(info.get("size") or 0), found.timestamp() if isinstance(found, datetime) else float(found))


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error or its cause carries."""
    while error is not None:
        if (status := status_of(error)) is not None:
            return status
        error = error.__cause__
    return None


def _exists_already(error: Exception) -> bool:
    return isinstance(error, FileExistsError) or _status(error) == 412


def _conflict(error: Exception) -> bool:
    """Whether another request for the same key was under way: S3 asks for another attempt then."""
    return _status(error) == 409


def publish_files(store: Store, folder: Path, paths: Iterable[Path]) -> None:
    """Upload files under the names that they have below a folder, and read them back; folders among them are passed."""

    def send(path: Path) -> None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        store.publish(path, path.relative_to(folder).as_posix(), sha256)

    at_once(send, filter(Path.is_file, paths))


def at_once(action: Callable[[T], object], items: Iterable[T]) -> None:
    """Do something with each of many items, a few at a time. Raises what it raises."""
    items = iter(items)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(islice(items, _SUBMITTED)):  # not a future for each of a hundred thousand
            list(pool.map(action, some))


# ---- What a store can do, tried before any work.


def reach(store: Store) -> None:
    """See whether a store answers. Raises StorageError that names the place when it does not, or may not be used."""
    with _asking_about_bucket(store):
        store.reach()


def probe(store: Store) -> None:
    """Try what outputs need, and find out whether two creators of one key are kept apart.

    Raises StorageError that names the store and what it lacks.
    """
    # A store that does not answer is waited for in this thread, where signals arrive, and before there is anything to
    # remove.
    reach(store)
    with _asking_about_bucket(store):
        _probe(store)


@contextmanager
def _asking_about_bucket(store: Store) -> Iterator[None]:
    """Let errors of a bucket that is not there or not this user's say so: the store's words name neither."""
    ask = "does the bucket exist, and may it be read and written to with these credentials?"
    try:
        yield
    except DeniedError as error:
        raise DeniedError(f"{str(error).rstrip('.')}; {ask}") from None
    except FileNotFoundError:
        raise StorageError(f"{store.where}: not found; {ask}") from None


def _probe(store: Store) -> None:
    folder = f"{PROBES}/{secrets.token_hex(8)}"
    key, contents = f"{folder}/created", (b"first", b"second")
    try:
        try:
            with ThreadPoolExecutor(len(contents)) as pool:
                won = list(pool.map(lambda content: store.put_if_absent(key, content), contents))
        except StorageError:  # the store or its driver does not know the condition, unless it takes nothing at all
            won = []
            store.put(key, contents[0])
        store.conditional = won.count(True) == 1
        _check_visible(store, key, contents[won.index(True)] if store.conditional else None)
        store.put(key, b"replaced")
        _check_visible(store, key, b"replaced")
        store.remove([key])
        if store.list(f"{folder}/"):
            raise StorageError(_lacks(store, "lists an object after it was removed"))
    finally:
        with suppress(StorageError, OSError):
            store.remove([key])


def _check_visible(store: Store, key: str, content: bytes | None) -> None:
    """Raises StorageError unless what was written can be read and is listed at once."""
    try:
        found = store.read(key)
    except FileNotFoundError:
        raise StorageError(_lacks(store, "does not have an object that it took")) from None
    if content is not None and found != content:
        raise StorageError(_lacks(store, "gives an older content of an object than the last"))
    entry = store.list(key.rpartition("/")[0] + "/").get(key)
    if entry is None or entry.bytes != len(found):
        raise StorageError(_lacks(store, "does not list an object that it took"))
    if not entry.modified:
        raise StorageError(_lacks(store, "does not say when an object was written"))


def _lacks(store: Store, problem: str) -> str:
    return f"{store.where}: this store {problem}; outputs need one that shows what was written at once"
