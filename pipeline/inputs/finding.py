"""From an input as it was typed to the files that it stands for: a path, a glob, or a URL with or without one."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pipeline.inputs.choosing import (
    LeftOut,
    choose_data,
    dataset_left_out,
    file_left_out,
    folder_left_out,
    leave_out_notes,
    name_of,
    printable,
    set_named_splits,
)
from pipeline.inputs.foreign_folders import (
    current_snapshot,
    hub_repository,
    is_our_run,
    listed_files,
    read_state,
)
from pipeline.inputs.globs import EVERYTHING, Glob, Place, has_magic, split_glob
from pipeline.inputs.listed_files import ListedFiles
from pipeline.read.content import NoText, format_in
from pipeline.read.format_names import OWN_FILE, Format, named, suffix_left_out
from pipeline.read.storage import stamp, stamp_of
from pipeline.settings import SPLIT_NAMES, PipelineError, ReadSettings, SplitName
from pipeline.stamp import Stamp
from shared.errors import DatasetError, StorageError
from shared.io.stores.locations import file_system, is_url, local_path, open_binary, without_query, without_secrets
from shared.io.stores.pages import objects_below
from shared.io.stores.transient_errors import retried
from shared.shards.index import index_name
from shared.shards.manifest import MANIFEST_NAME, load_manifest
from shared.shards.open import dataset_folders

OWN_FOLDER = "the folder of this run"
_LINKS, _SPECIAL = "symbolic links", "no regular files"
_NOT_UTF8 = "names that are not UTF-8: rename them"
_BLOBS = "blobs and older snapshots of a cache of the Hub"
_UNFINISHED = "runs of preprocess that are not finished"
T = TypeVar("T")
_READABLE = "text, JSON, Parquet, Arrow, WebDataset, WET or a dataset"


@dataclass(frozen=True, slots=True)
class Found:
    """A file that will be read."""

    root: str
    """Absolute folder or URL."""
    path: str
    stamp: Stamp
    format: Format
    split: SplitName | None = None
    query: str = ""
    """What follows the path in a URL, with its question mark."""

    @property
    def location(self) -> str:
        return f"{self.root}/{self.path}"


@dataclass
class _Below:
    """What lies below a folder and is wanted."""

    files: ListedFiles = field(default_factory=ListedFiles)
    links: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)


@dataclass
class Search:
    """How inputs are looked through, and what is left out on the way."""

    reading: ReadSettings
    out: Path | None = None
    """The folder of the run, which is no part of its input."""
    left_out: LeftOut = field(default_factory=LeftOut)

    def find(self, text: str) -> Iterator[Found | Path]:
        """The files of one input, and the folders of our own datasets in it. What is left out is counted by reason.

        Raises PipelineError for an input that cannot be used.
        """
        text = _place(text)
        if is_url(text):
            yield from _find_remote(text, self)
            return
        require_local(text)
        path = Path(text)
        if not _is_utf8(whole := str(path.resolve())):
            raise PipelineError(f"{printable(whole)}: the name is not UTF-8; rename it")
        if folders := dataset_folders(path):
            yield from folders
        elif path.is_dir():
            yield from self._below(path)
        elif not path.exists() and has_magic(text):
            folder, pattern = split_glob(text, os.path.isdir)
            yield from _required(text, self._below(Path(folder), Glob(pattern)), self.left_out)
        elif not path.is_file():
            raise PipelineError(f"{text}: not a file; give {_READABLE}")
        else:
            folder, version = str(path.parent.resolve()), stamp(text)
            yield Found(folder, path.name, version, self.format_of_named_file(folder, path.name, version, text))

    def format_of_named_file(self, root: str, path: str, version: Stamp, shown: str, query: str = "") -> Format:
        """The format of a file that the user named, rather than one found in a folder.

        Raises PipelineError for one that cannot be read: in a folder it would be left out and counted.
        """
        try:
            if self.reading.input_format is None and (reason := suffix_left_out(path)):
                raise NoText(reason)
            return self.format(root, path, version, query, looked_at=True)
        except NoText as why:
            raise PipelineError(f"{shown}: {why}; give {_READABLE}, or say --input-format") from None

    def format(self, root: str, path: str, version: Stamp, query: str = "", looked_at: bool = False) -> Format:
        """The format of a file by its name; by its content where the name says nothing, and of a local one that is to
        be ``looked_at``. Raises NoText.
        """
        name, location = named(name_of(path)), f"{root}/{path}{query}"
        # Looking into each of a million files would take hours; an empty file has no content to tell by.
        remote = is_url(location)
        believed = self.reading.input_format is not None or name.clear if remote else name.known and not looked_at
        if version.size == 0 or believed:
            return Format(self.reading.input_format or name.kind or "text", name.compression)
        try:
            return retried(lambda: _format_by_content(location, path, self.reading))
        except OSError as error:
            raise PipelineError(f"{without_query(location)} cannot be read: {error.strerror or error}") from None

    def _below(self, folder: Path, wanted: Glob = EVERYTHING) -> Iterator[Found | Path]:
        """Everything in a folder that is wanted, sorted by path."""
        root = folder.resolve()
        found = self._walk(root, wanted)
        # After all regular files are known: what lies in the input is read once, under its own path, whatever links
        # there are to it.
        self._follow(root, found)
        datasets: Iterator[tuple[str, Found | Path]] = ((path, root / path) for path in sorted(found.datasets))
        files = ((file.path, file) for file in self.chosen(str(root), found.files, wanted))
        for _, entry in merge(files, datasets, key=itemgetter(0)):
            yield entry

    def chosen(self, root: str, files: ListedFiles, wanted: Glob) -> Iterator[Found]:
        """Those of the files in one input that hold data for training, with their formats, sorted by path."""
        files.sort()

        def listed(folder: str) -> list[str] | None:
            where = f"{root}/{folder}/state.json" if folder != "." else f"{root}/state.json"
            return listed_files(retried(lambda: read_state(where)), where)

        def unwanted(path: str) -> bool:
            return not wanted.chooses(path) or file_left_out(path, self.reading, set()) is not None

        choose_data(files, listed, self.left_out, unwanted)
        for number, path in files:
            if files.is_empty(number) and path.lower().endswith(".lock"):  # left by libraries that download data
                self.left_out.add(OWN_FILE, path)
                files.leave_out(number)
                continue
            try:
                files.set_format(number, self.format(root, path, files.stamp(number)))
            except NoText as why:
                self.left_out.add(str(why), path)
                files.leave_out(number)
        leave_out_notes(files, self.left_out)
        if self.reading.named_splits == "keep":
            set_named_splits(files, self.left_out)
        for number, path in files:
            yield Found(root, path, files.stamp(number), files.format(number), files.split(number))

    def _walk(self, root: Path, wanted: Glob) -> _Below:
        """What is below a folder, as far as it is wanted.

        No link to a folder is followed, and no folder is entered that holds nothing which could be wanted. Folders may
        lie as deep inside each other as the system allows.
        """
        found = _Below()
        levels = [iter([(root, "", wanted.start)])]
        while levels:
            if (folder := next(levels[-1], None)) is None:
                levels.pop()
            else:
                levels.append(self._enter(root, *folder, wanted, found))
        return found

    def _enter(
        self, root: Path, folder: Path, above: str, place: Place, wanted: Glob, found: _Below
    ) -> Iterator[tuple[Path, str, Place]]:
        """Add the files of one folder to ``found``; returns the subfolders to search next.

        ``above``: what the paths of its files begin with. Entries come in any order, and those of files are not kept.
        """
        folders, links = list[str](), list[str]()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_dir():
                        folders.append(entry.name)
                    elif wanted.matches(wanted.step(place, entry.name)):
                        self._add(entry, above + entry.name, found.files)
        except OSError as error:
            raise PipelineError(f"{folder} cannot be read: {error.strerror}") from None
        for name in sorted(links):
            if wanted.matches(wanted.step(place, name)) and not self._is_left_out(above + name):
                found.links.append(above + name)
        # A cache of the Hub keeps contents in blobs/ and, for each revision, links to them in snapshots/: reading more
        # than the current snapshot would take the same file several times.
        skipped = {"blobs", "refs"} if {"blobs", "snapshots"} <= {*folders} else set()
        current = current_snapshot(folder.parent) if folder.name == "snapshots" else None
        for name in sorted(folders):
            relative, path = above + name, folder / name
            if not (next_place := wanted.step(place, name)):
                continue
            if path == self.out:
                self.left_out.add(OWN_FOLDER, relative)
            elif reason := folder_left_out(relative, self.reading, self.left_out.globs):
                self.left_out.add(reason, relative)
            elif not _is_utf8(relative):
                self.left_out.add(_NOT_UTF8, relative)
            elif name in skipped or (current is not None and name != current):
                self.left_out.add(_BLOBS, relative)
            elif datasets := list(filter(_is_ours, dataset_folders(path))):
                # A run writes the manifests of train/ and validation/ one after the other: with one of them it was
                # stopped in between.
                if is_our_run(path) and len(datasets) < len(SPLIT_NAMES):
                    self.left_out.add(_UNFINISHED, relative)
                else:
                    below = (dataset.relative_to(root).as_posix() for dataset in datasets)
                    found.datasets += filter(self._takes_dataset, filter(wanted.chooses, below))
            elif is_our_run(path):
                self.left_out.add(_UNFINISHED, relative)
            else:
                yield path, f"{relative}/", next_place

    def _add(self, entry: os.DirEntry[str], relative: str, files: ListedFiles) -> None:
        """Add a file that is wanted and neither a folder nor a link."""
        if self._is_left_out(relative):
            return
        if not entry.is_file():
            self.left_out.add(_SPECIAL, relative)
        else:
            files.add(relative, Stamp.of(entry.stat()))

    def _is_left_out(self, relative: str) -> bool:
        """Whether the path of a file is a reason not to read it, which is noted."""
        reason = file_left_out(relative, self.reading, self.left_out.globs)
        if reason is None and not _is_utf8(relative):
            reason = _NOT_UTF8
        if reason is not None:
            self.left_out.add(reason, relative)
        return reason is not None

    def _takes_dataset(self, relative: str) -> bool:
        if reason := dataset_left_out(relative, self.reading, self.left_out.globs):
            self.left_out.add(reason, relative)
        return not reason

    def _follow(self, root: Path, found: _Below) -> None:
        """Add the links to files in the same input, or in the same repository of a Hub cache, that are not read yet."""
        if not found.links:
            return
        repository = hub_repository(root)
        found.files.sort()
        read = set[bytes]()
        """Digests of what links lead to."""
        for relative in sorted(found.links, key=lambda path: path.split("/")):  # folder by folder
            target = Path(os.path.realpath(root / relative))
            below = target.is_relative_to(root)
            within = below or (repository is not None and target.is_relative_to(repository))
            ours = self.out is not None and target.is_relative_to(self.out)
            known = hashlib.sha256(os.fsencode(target)).digest()[:16]
            is_read = known in read or (below and found.files.find(target.relative_to(root).as_posix()) is not None)
            if within and not ours and target.is_file() and not is_read:
                read.add(known)
                found.files.add(relative, Stamp.of(target.stat()))
            else:
                self.left_out.add(_LINKS, relative)


def _is_ours(folder: Path) -> bool:
    """Whether a folder with a manifest is one of our datasets: others have files called manifest.json, too."""
    try:
        load_manifest(folder)
    except DatasetError:
        return False
    return True


def _format_by_content(location: str, path: str, reading: ReadSettings) -> Format:
    with open_binary(location) as file:
        return format_in(file, named(name_of(path)), reading)


def _find_remote(url: str, search: Search) -> Iterator[Found | Path]:
    shown = without_query(url)
    try:
        yield from _remote(url, search)
    except PipelineError:
        raise
    except StorageError as error:
        raise PipelineError(str(error)) from None
    except FileNotFoundError:
        raise PipelineError(f"{shown}: there is no such file or directory") from None
    except Exception as error:  # each fsspec store raises errors of its own classes
        message = without_secrets(" ".join(str(error).split()))
        raise PipelineError(f"{shown}: {type(error).__name__}: {message}") from None


def _remote(url: str, search: Search) -> Iterator[Found | Path]:
    # A web server lists no folders, so its URL is one file; "?" begins its query there, and is a wildcard elsewhere.
    is_web = urlsplit(url).scheme in ("http", "https")
    folder, pattern = split_glob(url) if has_magic(url) and not is_web else (url.rstrip("/"), None)
    fs, base = file_system(folder)
    fs.invalidate_cache()  # fsspec remembers within a process what it was told of files
    if pattern is None and (is_web or retried(lambda: fs.isfile(base))):
        address, mark, query = url.partition("?") if is_web else (url, "", "")
        root, _, name = address.rpartition("/")
        if mark and not named(name).clear:
            # As in download?file=a.jsonl: the query says which file is meant, so it belongs to its id. After a name
            # with a known suffix it is rather a signature that expires, and must not appear in ids and messages.
            name, mark, query = f"{name}?{query}", "", ""
        version = stamp_of(retried(lambda: fs.info(base)))
        found = search.format_of_named_file(root, name, version, without_query(url), mark + query)
        yield Found(root, name, version, found, query=mark + query)
        return
    base = base.rstrip("/")
    wanted = Glob(pattern) if pattern is not None else EVERYTHING
    files, ours, is_empty = ListedFiles(), _OurDatasets(wanted), True
    for name, info in objects_below(fs, f"{base}/", retried):
        relative, is_empty = _relative(name, base), False
        ours.add(relative)
        # Some stores keep an object in place of a folder.
        if not relative or relative.endswith("/") or not wanted.chooses(relative):
            continue
        used = search.left_out.globs
        reasons = (folder_left_out(above, search.reading, used) for above in _folders(relative))
        if reason := next(filter(None, reasons), None) or file_left_out(relative, search.reading, used):
            search.left_out.add(reason, relative)
        elif not _is_utf8(relative):
            search.left_out.add(_NOT_UTF8, relative)
        else:
            files.add(relative, stamp_of(info))
    if is_empty:
        raise FileNotFoundError(url)
    if (found_ours := ours.first) is not None:
        where = folder if found_ours == "." else f"{folder}/{found_ours}"
        raise PipelineError(f"{where}: one of our datasets; they are read from disks, so copy it first")
    entries = search.chosen(folder, files, wanted)
    yield from entries if pattern is None else _required(url, entries, search.left_out)


def _relative(path: str, base: str) -> str:
    return path.removeprefix(base).lstrip("/")


def _folders(path: str) -> Iterator[str]:
    """Those that a file lies in, from its own up. Not by pathlib, which makes a table of all names that it sees."""
    while path := path.rpartition("/")[0]:
        yield path


class _OurDatasets:
    """Our own datasets among remote files, by their manifests and indexes: folders of which a shard is wanted."""

    def __init__(self, wanted: Glob) -> None:
        self._wanted = wanted
        self._indexed, self._manifests = set[str](), set[str]()

    def add(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if name == MANIFEST_NAME:
            self._manifests.add(folder)
        elif name.endswith(index_name("")) and any(
            map(self._wanted.chooses, (path, path.removesuffix(index_name(""))))
        ):
            self._indexed.add(folder)

    @property
    def first(self) -> str | None:
        return next((folder or "." for folder in sorted(self._manifests & self._indexed)), None)


def _required(text: str, found: Iterator[T], left_out: LeftOut) -> Iterator[T]:
    if (first := next(found, None)) is None:
        raise PipelineError(f"{text}: the pattern matches no file that can be read{seen(left_out)}")
    yield first
    yield from found


def seen(left_out: LeftOut) -> str:
    """What was seen and is not read, as the end of a sentence."""
    parts = [
        f"{count} left out as {reason}: {', '.join(left_out.names[reason])}"
        + (", ..." * (count > len(left_out.names[reason])))
        for reason, count in left_out.counts.items()
    ]
    return f"; {'; '.join(parts)}" if parts else ""


def _is_utf8(path: str) -> bool:
    """Whether a path can be written in a plan and in ids: Python has lone surrogates for bytes that are not UTF-8."""
    return printable(path) == path


def _place(text: str) -> str:
    """A URL or path as it is to be read. Raises PipelineError for a misspelt URL."""
    try:
        return local_path(text)
    except ValueError as error:
        raise PipelineError(str(error)) from None


def require_local(text: str) -> None:
    """Raise PipelineError for an input on a disk that is not there. Quick, and the same that `Search.find` says."""
    text = _place(text)
    if is_url(text) or Path(text).exists():
        return
    if not has_magic(text):
        raise PipelineError(f"{text}: there is no such file or directory")
    folder, _ = split_glob(text, os.path.isdir)
    if not os.path.isdir(folder):
        raise PipelineError(f"{text}: there is no folder {folder}")
