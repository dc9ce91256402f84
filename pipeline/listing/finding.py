"""From an input as it was typed to the files that it stands for: a path, a glob, or a URL with or without one."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline.listing.choosing import (
    file_left_out,
    folder_left_out,
    glob_matcher,
    has_magic,
    split_glob,
    without_companions,
)
from pipeline.listing.formats import format_of, why_not
from pipeline.read.storage import Stamp, stamp, stamp_of
from pipeline.settings import SPLIT_NAMES, PipelineError, ReadSettings, SplitName
from shared.shards.manifest import MANIFEST_NAME, DatasetError, load_manifest
from shared.storage import StorageError, file_system, is_url, local_path

_LINKS = "symbolic links"


@dataclass(frozen=True)
class Found:
    """A file that will be read."""

    root: str
    """Absolute folder or URL."""
    path: str
    stamp: Stamp
    split: SplitName | None = None

    @property
    def location(self) -> str:
        return f"{self.root}/{self.path}"


def find(text: str, reading: ReadSettings, skipped: Counter[str]) -> list[Found | Path]:
    """The files of one input, and the folders of our own datasets in it. What is left out is counted by reason.

    Raises PipelineError for an input that cannot be used.
    """
    text = local_path(text)
    if is_url(text):
        return [*_find_remote(text, reading, skipped)]
    path = Path(text)
    if folders := dataset_folders(path):
        return [*folders]
    if path.is_dir():
        return _below(path, reading, skipped)
    if not path.exists() and has_magic(text):
        folder, pattern = split_glob(text)
        return _require(text, _below(Path(folder), reading, skipped, glob_matcher(pattern)))
    if not path.exists():
        raise PipelineError(f"{text}: there is no such file or directory")
    if not path.is_file():
        raise PipelineError(f"{text}: not a file; give text, jsonl, Parquet, Arrow, WebDataset, WET or a dataset")
    _require_format(text)
    return [Found(str(path.parent.resolve()), path.name, stamp(text))]


def dataset_folders(path: Path) -> list[Path]:
    """The datasets that a path stands for: itself, or its train/ and validation/; none if it is something else."""
    if (path / MANIFEST_NAME).is_file():
        return [path]
    return [path / name for name in SPLIT_NAMES if (path / name / MANIFEST_NAME).is_file()]


def _below(
    folder: Path, reading: ReadSettings, skipped: Counter[str], wanted: Callable[[str], bool] = lambda _: True
) -> list[Found | Path]:
    """Everything in a folder that is wanted, sorted by path."""
    root = folder.resolve()
    datasets: list[str] = []
    files: dict[str, Stamp] = {}
    for relative, found in _walk(root, root, reading, skipped):
        if not wanted(relative):
            continue
        if found is None:
            datasets.append(relative)
        elif reason := file_left_out(relative, reading):
            skipped[reason] += 1
        else:
            files[relative] = Stamp(found.st_size, found.st_mtime_ns)
    kept = without_companions(files, skipped)
    entries: dict[str, Found | Path] = {path: Found(str(root), path, files[path], kept[path]) for path in kept}
    entries |= {path: root / path for path in datasets}
    return [entries[path] for path in sorted(entries)]


def _walk(
    root: Path, folder: Path, reading: ReadSettings, skipped: Counter[str]
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Regular files below a folder, and our datasets (without a stat); no symbolic link is followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise PipelineError(f"{folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        relative = Path(entry.path).relative_to(root).as_posix()
        _require_utf8(relative)
        if entry.is_symlink():
            skipped[_LINKS] += 1
        elif entry.is_dir():
            if reason := folder_left_out(relative, reading):
                skipped[reason] += 1
            elif datasets := list(filter(_is_ours, dataset_folders(Path(entry.path)))):
                yield from ((dataset.relative_to(root).as_posix(), None) for dataset in datasets)
            else:
                yield from _walk(root, Path(entry.path), reading, skipped)
        elif not entry.is_file():
            skipped["no regular files"] += 1
        else:
            yield relative, entry.stat()


def _is_ours(folder: Path) -> bool:
    """Whether a folder with a manifest is one of our datasets: others have files called manifest.json, too."""
    try:
        load_manifest(folder)
    except DatasetError:
        return False
    return True


def _find_remote(url: str, reading: ReadSettings, skipped: Counter[str]) -> Iterator[Found | Path]:
    try:
        yield from _remote(url, reading, skipped)
    except PipelineError:
        raise
    except StorageError as error:
        raise PipelineError(str(error)) from None
    except FileNotFoundError:
        raise PipelineError(f"{url}: there is no such file or directory") from None
    except Exception as error:  # each store has errors of its own
        raise PipelineError(f"{url}: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _remote(url: str, reading: ReadSettings, skipped: Counter[str]) -> Iterator[Found | Path]:
    single = urlsplit(url).scheme in ("http", "https")  # these have no listing
    folder, pattern = split_glob(url) if has_magic(url) and not single else (url.rstrip("/"), None)
    fs, base = file_system(folder)
    fs.invalidate_cache()
    if pattern is None and (single or fs.isfile(base)):
        _require_format(url)
        root, _, name = url.rpartition("/")
        yield Found(root, name, stamp_of(fs.info(base)))
        return
    base = base.rstrip("/")
    infos = {name.removeprefix(base).lstrip("/"): info for name, info in fs.find(base, detail=True).items()}
    if not infos:
        raise FileNotFoundError(url)
    wanted = glob_matcher(pattern) if pattern is not None else lambda _: True
    files: dict[str, Stamp] = {}
    for relative in filter(wanted, sorted(infos)):
        if not relative or relative.endswith("/"):  # what some stores keep in place of a folder
            continue
        _require_utf8(relative)
        above = PurePosixPath(relative).parents[:-1]
        reasons = (folder_left_out(folder.as_posix(), reading) for folder in above)
        if reason := next(filter(None, reasons), None) or file_left_out(relative, reading):
            skipped[reason] += 1
        else:
            files[relative] = stamp_of(infos[relative])
    for path, split in without_companions(files, skipped).items():
        yield Found(folder, path, files[path], split)
    if pattern is not None:
        _require(url, [*files])


def _require(text: str, found: list) -> list:
    if not found:
        raise PipelineError(f"{text}: the pattern matches no file that can be read")
    return found


def _require_format(text: str) -> None:
    name = text.rpartition("/")[2]
    if format_of(name) is None:
        raise PipelineError(f"{text}: {why_not(name)}; give text, jsonl, Parquet, Arrow, WebDataset, WET or a dataset")


def _require_utf8(relative: str) -> None:
    try:
        relative.encode()
    except UnicodeEncodeError:
        raise PipelineError(f"{relative!r}: the file name is not UTF-8; rename it or --exclude it") from None
