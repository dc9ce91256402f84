"""Where a run is written: a folder that all its machines see, or an object store, for which each process has its own.

A process of a run on a store works in a folder of its own, as a run in a folder would: what a split leaves is uploaded
from there under its final keys, each by one completed upload, read back, and its marker written last. That is safe
whoever does it and how often: what a split leaves follows from plan and identity alone, markers and the run's own file
are never replaced by others, and who commits reads the run's file again before.
"""

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from pipeline.files import TABLE_NAME, load_files, table_sha256
from pipeline.settings import SPLIT_NAMES, Job, PipelineError
from pipeline.splits.logs import LOGS
from pipeline.splits.marker import LEDGERS, MARKERS, Marker, is_whole
from pipeline.splits.run_file import BEGUN_FILE, RUN_FILE, Begun, RunFile, RunSummary, read_run
from pipeline.splits.selection import needed_to_write
from shared.errors import IdentityError, StorageError
from shared.io.files.locks import locked
from shared.io.files.scratch import scratch
from shared.io.stores.lease import StoreLease, leased
from shared.io.stores.pages import Listing
from shared.io.stores.store import Store, at_once, probe, publish_files
from shared.settings import refused_as
from shared.shards.dataset import files_of
from shared.shards.manifest import MANIFEST_NAME

LISTINGS = "listings"
"""Folder of a later table of files than that of the run, which differs in times and versions: none of them was another
file when it was made. The last one counts."""
_WRITTEN_ONCE = (RUN_FILE, BEGUN_FILE, LISTINGS, MARKERS)


def _is_written_once(name: str) -> bool:
    return name in _WRITTEN_ONCE or TABLE_NAME.fullmatch(name) is not None


Has = Callable[[str, int | None], bool]
"""Whether a file of the run is there, with so many bytes where that is known."""


def has_file(out: Path, path: str, size: int | None = None) -> bool:
    """The same of a folder."""
    try:
        found = os.stat(f"{out}/{path}")
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and size in (None, found.st_size)


class Place(ABC):
    """Where the driver finds what there is of a run, and leaves what it makes of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        """Its ``out`` is the folder to read and write in."""

    @abstractmethod
    def check(self) -> None:
        """Raise OutputError when another driver has taken over."""

    @abstractmethod
    def keep(self, run: RunFile) -> None:
        """Record what the run is."""

    @abstractmethod
    def begin(self, run: RunFile) -> None:
        """The same when the numerics are known, before the first split is written."""

    @abstractmethod
    def has(self, path: str, size: int | None) -> bool:
        """Whether a file of the run is there, with so many bytes where that is known."""

    @abstractmethod
    def is_whole(self, marker: Marker) -> bool:
        """Whether what a marker lists is there as it was written."""

    @abstractmethod
    def pull(self, folder: str) -> None:
        """Bring what workers left in a folder of the run into this process's own."""

    @abstractmethod
    def fetch(self, path: str) -> None:
        """The same of one file."""

    @abstractmethod
    def push(self, pattern: str) -> None:
        """Let workers see files of this process, by a glob."""

    @abstractmethod
    def drop(self, folder: str) -> None:
        """A folder of the run was removed here: remove it everywhere."""

    @abstractmethod
    def publish(self) -> None:
        """Let everybody see the datasets and what is said of them."""


@contextmanager
def opened(job: Job) -> Iterator[Place]:
    """The place of a run, kept from other drivers. Raises OutputError while another has it, StorageError."""
    if job.store is None:
        with locked(job.out):
            yield _FolderPlace(job)
        return
    store = job.store.open()
    probe(store)
    with leased(store) as lease, scratch("run") as folder:
        found = job.store.model_copy(update={"conditional": store.conditional})
        yield _StorePlace(job.model_copy(update={"out": folder, "store": found}), store, lease)


class _FolderPlace(Place):
    """The folder of the run, which its workers see."""

    def check(self) -> None:
        pass

    def keep(self, run: RunFile) -> None:
        run.save(self.job.out)

    def begin(self, run: RunFile) -> None:
        run.save(self.job.out)

    def has(self, path: str, size: int | None) -> bool:
        return has_file(self.job.out, path, size)

    def is_whole(self, marker: Marker) -> bool:
        return is_whole(self.job.out, marker)

    def pull(self, folder: str) -> None:
        pass

    def fetch(self, path: str) -> None:
        pass

    def push(self, pattern: str) -> None:
        pass

    def drop(self, folder: str) -> None:
        pass

    def publish(self) -> None:
        pass


class _StorePlace(Place):
    """An object store, and a folder of the driver for what is small: the run's file, markers, manifests, reports."""

    _listing = ""
    """Name of the table of files that the run had last."""

    def __init__(self, job: Job, store: Store, lease: StoreLease) -> None:
        super().__init__(job)
        self._store, self._lease = store, lease
        found = (entry for name in SPLIT_NAMES for entry in store.entries(f"{name}/"))
        self._listed = Listing((key, entry.bytes) for key, entry in found)
        manifests = (key for name in SPLIT_NAMES if self.has(key := f"{name}/{MANIFEST_NAME}", None))
        for key in (RUN_FILE, *manifests):
            with suppress(FileNotFoundError):
                store.download(key, job.out / key)
        with suppress(FileNotFoundError, ValidationError):  # whoever reads it says what is wrong
            self.fetch(RunSummary.read(job.out / RUN_FILE).files)
            self._complete()
        # A driver that was killed in the middle leaves the table of files, which is written before the run's file.
        if not (job.out / RUN_FILE).exists() and any(not TABLE_NAME.fullmatch(key) for key, _ in store.products()):
            raise PipelineError(f"--out {store.where} is not empty and holds no run; give a new place")
        self.pull(MARKERS)

    def check(self) -> None:
        self._lease.check()

    def keep(self, run: RunFile) -> None:
        run.save(self.job.out)
        table = run.plan.files.name
        if not self._store.list(RUN_FILE):
            self._store.publish(self.job.out / table, table, table_sha256(table))
            self._store.write_once(RUN_FILE, run.with_numerics(None).summary())
            # Tables of starts that were killed before they wrote the run's file.
            others = (key for key, _ in self._store.entries() if key != table)
            self._store.remove(sorted(filter(TABLE_NAME.fullmatch, others)))
        elif table != self._listing:  # files were touched, and have the content that they had
            self._store.publish(self.job.out / table, f"{LISTINGS}/{table}", table_sha256(table))
            self._store.remove([key for key in self._store.list(f"{LISTINGS}/") if key != f"{LISTINGS}/{table}"])
        self._listing = table

    def _complete(self) -> None:
        """Let the run's file in the folder of this process say what is known since the one in the store was written."""
        run = read_run(self.job.out / RUN_FILE)
        listings = sorted((entry.modified, key) for key, entry in self._store.entries(f"{LISTINGS}/"))
        for _, key in listings[-1:]:
            with suppress(FileNotFoundError, PipelineError):  # without it, touched files are read again
                self._store.download(key, self.job.out / key)
                files = load_files(self.job.out / key)
                if files.digest() == run.plan.files.digest():
                    run = replace(run, plan=replace(run.plan, files=files))
        with suppress(FileNotFoundError):  # no worker was ready yet
            run = run.with_numerics(begun(self._store).numerics)
        run.save(self.job.out)
        self._listing = run.plan.files.name

    def begin(self, run: RunFile) -> None:
        run.save(self.job.out)
        content = Begun(run=run.digest, numerics=run.numerics).model_dump_json(indent=1) + "\n"
        self._store.write_once(BEGUN_FILE, content.encode())

    def has(self, path: str, size: int | None) -> bool:
        found = self._listed.size(path)
        return found is not None and size in (None, found)

    def is_whole(self, marker: Marker) -> bool:
        """By sizes: each file was read back before the marker was written, and nobody replaces it by another."""
        entries = ((name, entry) for name in SPLIT_NAMES for entry in marker.shards[name])
        return all(self.has(f"{name}/{file}", size) for name, entry in entries for file, _, size in files_of(entry))

    def pull(self, folder: str) -> None:
        out = self.job.out
        keys = (key for key, _ in self._store.entries(f"{folder}/") if not (out / key).exists())
        at_once(lambda key: self._store.download(key, out / key), keys)

    def fetch(self, path: str) -> None:
        if not (self.job.out / path).exists():
            self._store.download(path, self.job.out / path)

    def push(self, pattern: str) -> None:
        publish_files(self._store, self.job.out, self.job.out.glob(pattern))

    def drop(self, folder: str) -> None:
        self._store.remove(self._store.list(f"{folder}/"))

    def publish(self) -> None:
        self.check()
        out = self.job.out
        require_run(self._store, read_run(out / RUN_FILE).digest)
        # A dataset is there when its manifest is.
        manifests = [out / name / MANIFEST_NAME for name in SPLIT_NAMES if (out / name / MANIFEST_NAME).exists()]
        for entry in sorted(out.iterdir()):
            if not _is_written_once(entry.name):
                others = (path for path in (entry, *entry.rglob("*")) if path not in manifests)
                publish_files(self._store, out, others)
        publish_files(self._store, out, manifests)


def begun(store: Store) -> Begun:
    """What a run on a store is since its first worker was ready. Raises FileNotFoundError, PipelineError."""
    with refused_as(PipelineError, f"{store.url(BEGUN_FILE)}: "):
        return Begun.model_validate_json(store.read(BEGUN_FILE))


def require_run(store: Store, digest: str) -> None:
    """Raise IdentityError when a store holds another run by now than that of a digest, PipelineError when none."""
    try:
        found = begun(store).run
    except FileNotFoundError:
        raise PipelineError(f"{store.url(BEGUN_FILE)} is missing: somebody has removed this run") from None
    if found != digest:
        raise IdentityError(f"{store.url(BEGUN_FILE)} is that of another run now; give each run an --out of its own")


# ---- What a worker does.


@contextmanager
def working(job: Job, number: int, statuses: bool) -> Iterator[Job]:
    """The job with a folder in which a worker may do one split; on a store that folder is gone afterwards.

    ``statuses``: whether those of the split's records are needed.
    """
    if job.store is None:
        yield job
        return
    store = job.store.open()
    with scratch("split") as folder:
        if statuses:
            for key in needed_to_write(number):
                with suppress(FileNotFoundError):  # whoever reads it says what repairs it
                    store.download(key, folder / key)
        yield job.model_copy(update={"out": folder})
        for path in folder.glob(f"{LOGS}/*"):  # no part of the product
            with suppress(StorageError, OSError):
                store.upload(path, path.relative_to(folder).as_posix())


def commit(job: Job, worked: Job, run: str) -> None:
    """Put what a worker left in its folder where it belongs, the marker last.

    ``job``: that of the run; ``worked``: with the worker's folder. Raises OutputError for a marker that says something
    else than the one that is there, IdentityError when the store holds another run by now.
    """
    if job.store is None:
        return
    store, out = job.store.open(), worked.out
    markers = sorted(out.glob(f"{MARKERS}/*"))
    lists = [path for folder in LEDGERS for path in sorted(out.glob(f"{folder}/*"))]
    others = [
        path for path in sorted(out.rglob("*")) if path.relative_to(out).parts[0] not in (MARKERS, LOGS, *LEDGERS)
    ]
    publish_files(store, out, others)
    # The driver adds line numbers to these lists at the end: a worker that finishes late must not overwrite them.
    for path in lists:
        try:
            store.sha256(path.relative_to(out).as_posix())
        except FileNotFoundError:
            publish_files(store, out, [path])
    if markers:
        require_run(store, run)
    for path in markers:
        store.write_once(path.relative_to(out).as_posix(), path.read_bytes())
