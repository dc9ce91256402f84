"""Which of the files below an input are read: pure rules on relative paths."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.listing.formats import format_of
from pipeline.settings import PipelineError, ReadSettings, SplitName

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
    present = set(paths)
    folders = {folder for path in paths if (folder := _folder(path)) and _is_dataset(folder, present)}
    kept: dict[str, SplitName | None] = {}
    for path in paths:
        folder, name = _folder(path), PurePosixPath(path).name
        if name == "dataset_dict.json" and any(_folder(f.rstrip("/")) == folder for f in folders):
            skipped[_COMPANIONS] += 1
        elif folder not in folders:
            kept[path] = None
        elif name.startswith("indices") and name.endswith(".arrow"):
            raise PipelineError(f"{path}: a dataset with an indices table; save it again after flatten_indices()")
        elif name.endswith(".arrow") and not name.startswith("cache-"):
            kept[path] = _kept_split(folder, folders, present)
        else:
            skipped[_COMPANIONS] += 1
    return kept


def _folder(path: str) -> str:
    """The folder of a path with a slash at its end; "./" for the input itself, and nothing above that."""
    above = path.rpartition("/")[0]
    return f"{above}/" if above else "./" if path != "." else ""


def _is_dataset(folder: str, present: Collection[str]) -> bool:
    prefix = folder.removeprefix("./")
    return f"{prefix}state.json" in present and f"{prefix}dataset_info.json" in present


def _kept_split(folder: str, folders: Collection[str], present: Collection[str]) -> SplitName | None:
    above, name = _folder(folder.rstrip("/")), PurePosixPath(folder).name
    if f"{above.removeprefix('./')}dataset_dict.json" not in present:
        return None
    if f"{above.removeprefix('./')}validation/" not in folders:
        return None
    return "train" if name == "train" else "validation" if name == "validation" else None
