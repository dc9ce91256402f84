"""From an input as it was typed to the files that it stands for: a path, a glob, or a URL with or without one."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from pipeline.inputs.choosing import (
    LeftOut,
    data_files,
    dataset_left_out,
    file_left_out,
    folder_left_out,
    named_splits,
    printable,
    without_notes,
)
from pipeline.inputs.foreign_folders import (
    current_snapshot,
    hub_repository,
    is_our_run,
    listed_files,
    read_state,
)
from pipeline.inputs.globs import EVERYTHING, Glob, Place, has_magic, split_glob
from pipeline.read.content import NoText, format_in
from pipeline.read.format_names import OWN_FILE, Format, named, suffix_left_out
from pipeline.read.storage import stamp, stamp_of
from pipeline.settings import SPLIT_NAMES, PipelineError, ReadSettings, SplitName
from pipeline.stamp import Stamp
from shared.errors import DatasetError, StorageError
from shared.io.storage import file_system, is_url, local_path, open_binary, without_query
from shared.io.transient_errors import retried
from shared.shards.index import index_name
from shared.shards.manifest import MANIFEST_NAME, load_manifest
from shared.shards.open import dataset_folders

OWN_FOLDER = "the folder of this run"
_LINKS, _SPECIAL = "symbolic links", "no regular files"
_NOT_UTF8 = "names that are not UTF-8: rename them"
_BLOBS = "blobs and older snapshots of a cache of the Hub"
_UNFINISHED = "runs of preprocess that are not finished"
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


class _Below(NamedTuple):
    """A folder to be entered."""

    folder: Path
    place: Place


@dataclass
class Search:
    """How inputs are looked through, and what is left out on the way."""

    reading: ReadSettings
    out: Path | None = None
    """The folder of the run, which is no part of its input."""
    left_out: LeftOut = field(default_factory=LeftOut)

    def find(self, text: str) -> list[Found | Path]:
        """The files of one input, and the folders of our own datasets in it. What is left out is counted by reason.

        Raises PipelineError for an input that cannot be used.
        """
        text = local_path(text)
        if is_url(text):
            return [*_find_remote(text, self)]
        require_local(text)
        path = Path(text)
        if not _is_utf8(whole := str(path.resolve())):
            raise PipelineError(f"{printable(whole)}: the name is not UTF-8; rename it")
        if folders := dataset_folders(path):
            return [*folders]
        if path.is_dir():
            return self._below(path)
        if not path.exists() and has_magic(text):
            folder, pattern = split_glob(text, os.path.isdir)
            return _require(text, self._below(Path(folder), Glob(pattern)), self.left_out)
        if not path.is_file():
            raise PipelineError(f"{text}: not a file; give {_READABLE}")
        folder, version = str(path.parent.resolve()), stamp(text)
        return [Found(folder, path.name, version, self.format_of_named_file(folder, path.name, version, text))]

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
        name, location = named(PurePosixPath(path).name), f"{root}/{path}{query}"
        # Looking into each of a million files would take hours; an empty file has no content to tell by.
        remote = is_url(location)
        believed = self.reading.input_format is not None or name.clear if remote else name.known and not looked_at
        if version.size == 0 or believed:
            return Format(self.reading.input_format or name.kind or "text", name.compression)
        try:
            return retried(lambda: _format_by_content(location, path, self.reading))
        except OSError as error:
            raise PipelineError(f"{without_query(location)} cannot be read: {error.strerror or error}") from None

    def _below(self, folder: Path, wanted: Glob = EVERYTHING) -> list[Found | Path]:
        """Everything in a folder that is wanted, sorted by path."""
        root = folder.resolve()
        datasets: list[str] = []
        files: dict[str, Stamp] = {}
        links: list[str] = []
        for relative, found in self._walk(root, root, wanted, wanted.start):
            if found is None:
                if reason := dataset_left_out(relative, self.reading, self.left_out.globs):
                    self.left_out.add(reason, relative)
                else:
                    datasets.append(relative)
            elif reason := file_left_out(relative, self.reading, self.left_out.globs):
                self.left_out.add(reason, relative)
            elif isinstance(found, Path):
                links.append(relative)
            else:
                files[relative] = found
        # After all regular files are known: what lies in the input is read once, under its own path, whatever links
        # there are to it.
        self._follow(root, links, files)
        entries: dict[str, Found | Path] = {}
        for entry in self.chosen(str(root), files, wanted):
            entries[entry.path] = entry
        entries |= {path: root / path for path in datasets}
        return [entries[path] for path in sorted(entries)]

    def chosen(self, root: str, files: Mapping[str, Stamp], wanted: Glob) -> Iterator[Found]:
        """Those of the files in one input that hold data for training, with their formats."""

        def listed(folder: str) -> list[str] | None:
            where = f"{root}/{folder}/state.json" if folder != "." else f"{root}/state.json"
            return listed_files(retried(lambda: read_state(where)), where)

        def unwanted(path: str) -> bool:
            return not wanted.chooses(path) or file_left_out(path, self.reading, set()) is not None

        formats: dict[str, Format] = {}
        for path in data_files(files, listed, self.left_out, unwanted):
            if files[path].size == 0 and path.lower().endswith(".lock"):  # left by libraries that download data
                self.left_out.add(OWN_FILE, path)
                continue
            try:
                formats[path] = self.format(root, path, files[path])
            except NoText as why:
                self.left_out.add(str(why), path)
        kinds = {path: found.kind for path, found in formats.items()}
        kept = without_notes(kinds, {path for path in kinds if files[path].size == 0}, self.left_out)
        splits: dict[str, SplitName | None] = dict.fromkeys(kept)
        if self.reading.named_splits == "keep":
            splits = named_splits({path: kinds[path] for path in kept}, self.left_out)
        for path, split in splits.items():
            yield Found(root, path, files[path], formats[path], split)

    def _walk(self, root: Path, folder: Path, wanted: Glob, place: Place) -> Iterator[tuple[str, Stamp | Path | None]]:
        """Files below a folder with stamps, links (as paths), and our datasets, as far as they are wanted.

        No link to a folder is followed, and no folder is entered that holds nothing which could be wanted. Folders may
        lie as deep inside each other as the system allows.
        """
        levels = [self._entries(root, folder, wanted, place)]
        while levels:
            for found in levels[-1]:
                if isinstance(found, _Below):
                    levels.append(self._entries(root, found.folder, wanted, found.place))
                    break
                yield found
            else:
                levels.pop()

    def _entries(
        self, root: Path, folder: Path, wanted: Glob, place: Place
    ) -> "Iterator[tuple[str, Stamp | Path | None] | _Below]":
        """The same of one folder, with the folders to be entered."""
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            raise PipelineError(f"{folder} cannot be read: {error.strerror}") from None
        names = {entry.name for entry in entries if not entry.is_symlink() and entry.is_dir()}
        # A cache of the Hub keeps contents in blobs/ and, for each revision, links to them in snapshots/: reading more
        # than the current snapshot would take the same file several times.
        skipped = {"blobs", "refs"} if {"blobs", "snapshots"} <= names else set()
        current = current_snapshot(folder.parent) if folder.name == "snapshots" else None
        for entry in entries:
            if not (next_place := wanted.step(place, entry.name)):
                continue
            path, chosen = Path(entry.path), wanted.matches(next_place)
            relative = path.relative_to(root).as_posix()
            if not _is_utf8(relative):
                if entry.is_dir(follow_symlinks=False):
                    reason = folder_left_out(relative, self.reading, self.left_out.globs)
                elif chosen:
                    reason = file_left_out(relative, self.reading, self.left_out.globs)
                else:
                    continue
                self.left_out.add(reason or _NOT_UTF8, relative)
            elif entry.is_symlink():
                if chosen:
                    yield relative, path
            elif entry.is_dir():
                if path == self.out:
                    self.left_out.add(OWN_FOLDER, relative)
                elif reason := folder_left_out(relative, self.reading, self.left_out.globs):
                    self.left_out.add(reason, relative)
                elif entry.name in skipped or (current is not None and entry.name != current):
                    self.left_out.add(_BLOBS, relative)
                elif datasets := list(filter(_is_ours, dataset_folders(path))):
                    # A run writes the manifests of train/ and validation/ one after the other: with one of them it was
                    # stopped in between.
                    if is_our_run(path) and len(datasets) < len(SPLIT_NAMES):
                        self.left_out.add(_UNFINISHED, relative)
                    else:
                        below = (dataset.relative_to(root).as_posix() for dataset in datasets)
                        yield from ((dataset, None) for dataset in below if wanted.chooses(dataset))
                elif is_our_run(path):
                    self.left_out.add(_UNFINISHED, relative)
                else:
                    yield _Below(path, next_place)
            elif not chosen:
                continue
            elif not entry.is_file():
                self.left_out.add(_SPECIAL, relative)
            else:
                yield relative, Stamp.of(entry.stat())

    def _follow(self, root: Path, links: list[str], files: dict[str, Stamp]) -> None:
        """Add the links to files in the same input, or in the same repository of a Hub cache, that are not read yet."""
        repository = hub_repository(root)
        read = {str(root / path) for path in files} if links else set()
        for relative in links:
            target = Path(os.path.realpath(root / relative))
            within = target.is_relative_to(root) or (repository is not None and target.is_relative_to(repository))
            ours = self.out is not None and target.is_relative_to(self.out)
            if within and not ours and target.is_file() and str(target) not in read:
                read.add(str(target))
                files[relative] = Stamp.of(target.stat())
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
        return format_in(file, named(PurePosixPath(path).name), reading)


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
        message = without_query(" ".join(str(error).split()))
        raise PipelineError(f"{shown}: {type(error).__name__}: {message}") from None


def _remote(url: str, search: Search) -> Iterator[Found | Path]:
    # A web server lists no folders, so its URL is one file; "?" begins its query there, and is a wildcard elsewhere.
    is_web = urlsplit(url).scheme in ("http", "https")
    folder, pattern = split_glob(url) if has_magic(url) and not is_web else (url.rstrip("/"), None)
    fs, base = file_system(folder)
    fs.invalidate_cache()  # fsspec shares listings within a process: files added since the last one would be missing
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
    listing = retried(lambda: fs.find(base, detail=True))
    infos = {name.removeprefix(base).lstrip("/"): info for name, info in listing.items()}
    if not infos:
        raise FileNotFoundError(url)
    if ours := _our_dataset(infos):
        raise PipelineError(f"{folder}/{ours}: one of our datasets; they are read from disks, so copy it first")
    wanted = Glob(pattern) if pattern is not None else EVERYTHING
    files: dict[str, Stamp] = {}
    for relative in filter(wanted.chooses, sorted(infos)):
        if not relative or relative.endswith("/"):  # what some stores keep in place of a folder
            continue
        above = PurePosixPath(relative).parents[:-1]
        used = search.left_out.globs
        reasons = (folder_left_out(folder.as_posix(), search.reading, used) for folder in above)
        if reason := next(filter(None, reasons), None) or file_left_out(relative, search.reading, used):
            search.left_out.add(reason, relative)
        elif not _is_utf8(relative):
            search.left_out.add(_NOT_UTF8, relative)
        else:
            files[relative] = stamp_of(infos[relative])
    entries = [*search.chosen(folder, files, wanted)]
    yield from entries
    if pattern is not None:
        _require(url, entries, search.left_out)


def _our_dataset(paths: Collection[str]) -> str | None:
    """The folder of one of our datasets among remote files, by its manifest and the indexes beside it."""
    indexed = {PurePosixPath(path).parent for path in paths if path.endswith(index_name(""))}
    folders = [PurePosixPath(path).parent for path in paths if PurePosixPath(path).name == MANIFEST_NAME]
    return next((str(folder) for folder in folders if folder in indexed), None)


T = TypeVar("T")


def _require(text: str, found: list[T], left_out: LeftOut) -> list[T]:
    if not found:
        raise PipelineError(f"{text}: the pattern matches no file that can be read{seen(left_out)}")
    return found


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


def require_local(text: str) -> None:
    """Raise PipelineError for an input on a disk that is not there. Quick, and the same that `Search.find` says."""
    text = local_path(text)
    if is_url(text) or Path(text).exists():
        return
    if not has_magic(text):
        raise PipelineError(f"{text}: there is no such file or directory")
    folder, _ = split_glob(text, os.path.isdir)
    if not os.path.isdir(folder):
        raise PipelineError(f"{text}: there is no folder {folder}")
