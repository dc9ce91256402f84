"""A bounded folder of files that came from elsewhere: checked while they arrive, shared by all processes of a machine.

A file lies under its sha256, so that changed data is another file. Locks are those of the file system (flock), which
end with the process that holds them: who reads a file shares it, who writes or removes one has it alone.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from shared.errors import DatasetError, StorageError
from shared.io.files.atomic import naming, opened_below
from shared.io.files.digests import file_sha256
from shared.io.stores.locations import open_binary, tried_again

CACHE_BYTES = 64 * 2**30
FOLDER = 64 * "[0-9a-f]"
"""Pattern of a sha256, which names the folder of a file."""
ARRIVING = ".arriving"
CHUNK = 2**20
WAIT_SECONDS = 0.05
"""Between looks at a file that another process is fetching."""


def default_cache() -> Path:
    """The user's folder for what can be fetched again. Raises StorageError for a user who has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchwork"
    except RuntimeError:
        raise StorageError("this user has no home folder for the cache; set XDG_CACHE_HOME, or data.cache") from None


VERIFIED = "verified"
"""Below the cache: an empty file for each file that was found to be what it should be."""
CHECKING = ".checking"
"""At the end of its name before that."""
MOST_MARKS = 2**12
"""In each of 256 folders: a million, of some dozen terabytes of shards. A file without a mark is checked again."""
LOOKED_AT = 16
"""At one in so many new marks it is seen how many there are."""
SMALLEST_MARKED = 2**16
"""Bytes; a smaller file is checked as fast as its mark is found."""


def verified_once(path: Path, what: str, check: Callable[[], object]) -> None:
    """Check a file, unless a process of this machine has found this very file in order (law 9).

    The file system says whether it is the same: name, inode, size and times. ``what`` it was compared with.
    """
    mark = _mark(path, what)
    if mark is None:
        check()
        return
    if os.path.exists(mark):
        return
    with ExitStack() as stack:
        checking: str | None = None
        # In a home that cannot be written to, or whose file system has no locks, each process checks for itself.
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(mark.with_suffix(CHECKING).open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)  # the processes of a node begin together: one checks, the others wait
            checking = file.name
        if os.path.exists(mark):
            return
        check()
        if checking is not None:
            with suppress(OSError):
                os.replace(checking, mark)
                if int(mark.name[-8:], 16) % LOOKED_AT == 0:
                    _drop_oldest(mark.parent)


def _drop_oldest(folder: Path) -> None:
    """Remove the older half of too many marks: those of files that are gone or were changed are among them."""
    with os.scandir(folder) as entries:
        found = list(entries)
    if len(found) > MOST_MARKS:
        for entry in sorted(found, key=lambda entry: entry.stat().st_mtime)[: len(found) - MOST_MARKS // 2]:
            os.unlink(entry)


def _mark(path: Path, what: str) -> Path | None:
    """Where it is noted that a file is in order; None for one that is checked each time."""
    try:
        status, cache = path.stat(), default_cache()
    except (OSError, StorageError):
        return None
    if status.st_size < SMALLEST_MARKED:
        return None
    same = (path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, what)
    name = hashlib.sha256("\0".join(map(str, same)).encode()).hexdigest()
    return cache / VERIFIED / name[:2] / name


class File:
    """A file that can be read for as long as this object is held."""

    def __init__(self, path: Path) -> None:
        self.path = path


class Lease(File):
    """A file of the cache: it stays there until this object is gone, or its process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(path)
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


class FileCache:
    """Files of datasets behind URLs, at most ``limit`` bytes of them but for those in use."""

    def __init__(self, folder: Path, limit: int = CACHE_BYTES) -> None:
        self.folder = folder
        self.limit = limit

    def hold(self, url: str, sha256: str, size: int) -> Lease:
        """A file, fetched if it is not here; when another process is fetching it, this one waits.

        Raises DatasetError when what arrives is not what the manifest says, StorageError when nothing arrives.
        """
        path = self._path(url, sha256)
        while True:
            lease = _shared(path)
            if lease is not None and self._whole(lease, sha256):
                os.utime(path.parent)  # the least recently used go first
                return lease
            del lease
            if not self.fetch(url, sha256, size):
                time.sleep(WAIT_SECONDS)

    def fetch(self, url: str, sha256: str, size: int) -> bool:
        """Fetch a file if it is not here; False at once when another process is at it. Raises as ``hold`` does."""
        path = self._path(url, sha256)
        arriving = path.with_name(path.name + ARRIVING)
        if path.exists():
            return True
        descriptor = opened_below(path.parent, lambda: os.open(arriving, os.O_RDWR | os.O_CREAT, 0o644))
        with suppress(FileNotFoundError):  # the file went just now: another has made room
            try:
                if not _locked(descriptor, arriving, fcntl.LOCK_EX):
                    return False
                if not path.exists():
                    self._make_room(size)
                    os.ftruncate(descriptor, size)  # others that make room count it
                    try:
                        with naming(path):
                            tried_again(lambda: _download(url, descriptor, sha256, size), url)
                    except FileNotFoundError:
                        raise DatasetError(f"{url} is missing; the manifest lists it") from None
                    os.replace(arriving, path)
                return True
            except BaseException:  # an interrupt, too, must not leave half a file that takes room
                arriving.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        return False

    def _path(self, url: str, sha256: str) -> Path:
        return self.folder / sha256 / url.rpartition("/")[2]

    def _whole(self, lease: Lease, sha256: str) -> bool:
        """Whether a file is what it was; a damaged one is removed."""

        def check() -> None:
            if file_sha256(lease.path) != sha256:
                raise DatasetError(f"{lease.path} is damaged")

        try:
            verified_once(lease.path, sha256, check)
        except DatasetError:
            lease.path.unlink(missing_ok=True)
            return False
        return True

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files that nobody holds, until so many bytes fit in."""
        found = []
        # Nothing else: the folder may be one that holds more than the cache.
        for path in self.folder.glob(f"{FOLDER}/*"):
            with suppress(FileNotFoundError):
                found.append((path.parent.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(held for _, held, _ in found) + size
        for _, held, path in sorted(found):
            if total <= self.limit:
                return
            total -= held * _removed(path)


def _download(url: str, descriptor: int, sha256: str, most: int) -> None:
    """Write what a URL holds into an open file. Raises DatasetError when it is something else, or is larger."""
    digest, size = hashlib.sha256(), 0
    with open_binary(url) as source:
        while chunk := source.read(CHUNK):
            if size + len(chunk) > most:
                raise DatasetError(f"{url} is damaged: it is larger than {most:,} bytes")
            digest.update(chunk)
            while chunk:
                written = os.pwrite(descriptor, chunk, size)
                size += written
                chunk = chunk[written:]
    os.ftruncate(descriptor, size)
    os.fsync(descriptor)
    if digest.hexdigest() != sha256:
        raise DatasetError(f"{url} is damaged: sha256 {digest.hexdigest()}, manifest says {sha256}")


def _shared(path: Path) -> Lease | None:
    """A lease of a file; None when it is not there, or leaving."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    lease = Lease(path, descriptor)
    return lease if _locked(descriptor, path, fcntl.LOCK_SH) else None


def _locked(descriptor: int, path: Path, kind: int) -> bool:
    """Whether a lock could be had at once, on the file that has this name now."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _removed(path: Path) -> bool:
    """Remove a file unless a living process holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _locked(descriptor, path, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    with suppress(OSError):  # another file has come into its folder
        path.parent.rmdir()
    return True
