"""Which of the files below an input are read: pure rules on relative paths."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.listing.formats import format_of
from pipeline.settings import SPLIT_NAMES, PipelineError, ReadSettings, SplitName

HIDDEN, EXCLUDED = "hidden directories and caches", "left out by --exclude"
_COMPANIONS = "companions of Hugging Face datasets"


def folder_left_out(relative: str, reading: ReadSettings) -> str | None:
    """Why a folder is not entered, if it is not."""
    name = PurePosixPath(relative).name
    if _matches(relative, reading.exclude):
        return EXCLUDED
    return HIDDEN if name.startswith(".") or name == "__pycache__" else None


def file_left_out(relative: str, reading: ReadSettings) -> str | None:
    """Why a file is not read, if it is not. A glob matches the whole path (``*`` also matches ``/``) or the name."""
    if _matches(relative, reading.exclude):
        return EXCLUDED
    if reading.include and not _matches(relative, reading.include):
        return "not among --include"
    return "no text by their suffix" if format_of(relative) is None else None


def _matches(relative: str, globs: Collection[str]) -> bool:
    names = (relative, PurePosixPath(relative).name)
    return any(fnmatchcase(name, glob) for glob in globs for name in names)


def has_magic(text: str) -> bool:
    return any(character in text for character in "*?[")


def split_glob(text: str) -> tuple[str, str]:
    """The folder above the first part with a wildcard, and the pattern below it."""
    parts = text.split("/")
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]) or ("/" if first else "."), "/".join(parts[first:])


def glob_matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a glob matches a relative path or a folder above it; ``**`` stands for any folders, ``*`` for none."""
    from fsspec.utils import glob_translate

    matches = re.compile(glob_translate(pattern)).match

    def matcher(relative: str) -> bool:
        path = PurePosixPath(relative)
        return any(matches(name.as_posix()) for name in (path, *path.parents[:-1]))

    return matcher


def without_companions(paths: Collection[str], skipped: Counter[str]) -> dict[str, SplitName | None]:
    """The paths that hold data, with the split that they are in if the input has decided that.

    Of a Hugging Face dataset on disk these are its data files. In a collection of splits with one named validation,
    the records of train and validation stay where they are. Raises PipelineError for one that has an indices table.
    """
    files = [PurePosixPath(path) for path in paths]
    present = set(files)
    folders = {file.parent for file in files if file.name == "state.json"}
    datasets = {folder for folder in folders if folder / "dataset_info.json" in present}
    collections = {folder.parent for folder in datasets if folder.parent / "dataset_dict.json" in present}
    kept: dict[str, SplitName | None] = {}
    for file in files:
        if file.name == "dataset_dict.json" and file.parent in collections:
            skipped[_COMPANIONS] += 1
        elif file.parent not in datasets:
            kept[str(file)] = None
        elif file.name.startswith("indices") and file.suffix == ".arrow":
            raise PipelineError(f"{file}: a dataset with an indices table; save it again after flatten_indices()")
        elif file.suffix == ".arrow" and not file.name.startswith("cache-"):
            apart = file.parent.parent in collections and file.parent.parent / "validation" in datasets
            kept[str(file)] = next((name for name in SPLIT_NAMES if apart and name == file.parent.name), None)
        else:
            skipped[_COMPANIONS] += 1
    return kept
