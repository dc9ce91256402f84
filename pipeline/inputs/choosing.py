"""Which of the files below an input are read: pure rules on relative paths."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.files import Kind
from pipeline.read.format_names import name_left_out
from pipeline.settings import PipelineError, ReadSettings, SplitName

HIDDEN, EXCLUDED, NOT_INCLUDED = "hidden directories and caches", "left out by --exclude", "not among --include"
_COMPANIONS, _NOTES = "companions of Hugging Face datasets", "notes beside data (README, LICENSE)"
_TEST = "test data beside data for training (--named-splits ignore reads it)"
_SHOWN = 3
"""Names that are kept of the files that are left out for one reason."""
_NOTE_STEMS = frozenset(
    ["readme", "license", "licence", "notice", "citation", "changelog", "contributing", "code_of_conduct"]
)
_NOTE_SUFFIXES = frozenset({"", ".md", ".txt", ".rst", ".cff"})
_NOTE_FILES = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json"})
_SPLIT_WORDS: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words that say in the names of files and folders which part of a dataset they hold, as on the Hugging Face Hub."""
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")


@dataclass
class LeftOut:
    """What was seen and is not read, by reason: how many, and the names of some."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    globs: set[str] = field(default_factory=set)
    """Those of --include and --exclude that matched anything."""

    def add(self, reason: str, name: str, count: int = 1) -> None:
        self.counts[reason] += count
        known = self.names.get(reason, ())
        if len(known) < _SHOWN:
            self.names[reason] = (*known, printable(name))


def printable(path: str) -> str:
    """A path in which escapes stand for what has no form in UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def folder_left_out(relative: str, reading: ReadSettings, used: set[str]) -> str | None:
    """Why a folder is not entered, if it is not. The globs that match are added to ``used``."""
    name = PurePosixPath(relative).name
    if _matches(relative, reading.exclude, used):
        return EXCLUDED
    return HIDDEN if name.startswith(".") or name == "__pycache__" else None


def file_left_out(relative: str, reading: ReadSettings, used: set[str]) -> str | None:
    """Why a file is not read, if it is not. A glob matches the whole path (``*`` also matches ``/``) or the name."""
    if _matches(relative, reading.exclude, used):
        return EXCLUDED
    if reading.include and not _matches(relative, reading.include, used):
        return NOT_INCLUDED
    return name_left_out(PurePosixPath(relative).name)


def dataset_left_out(relative: str, reading: ReadSettings, used: set[str]) -> str | None:
    """Why one of our datasets in a directory is not read, if it is not."""
    if reading.include and not _matches(relative, reading.include, used):
        return NOT_INCLUDED
    return None


def _matches(relative: str, globs: Collection[str], used: set[str]) -> bool:
    if not globs:
        return False
    names = (relative, PurePosixPath(relative).name)
    found = {glob for glob in globs if any(fnmatchcase(name, glob) for name in names)}
    used |= found
    return bool(found)


def data_files(
    paths: Collection[str],
    listed: Callable[[str], Collection[str] | None],
    left_out: LeftOut,
    unwanted: Callable[[str], bool] = lambda _: False,
) -> list[str]:
    """The paths that hold data. Of a Hugging Face dataset on disk these are the files that its state.json lists.

    ``listed`` gives these of a folder; None: all but caches. Raises PipelineError for one that is listed and missing,
    but not if it is ``unwanted``.
    """
    if not any(path.endswith("state.json") for path in paths):
        return [*paths]
    files = [PurePosixPath(path) for path in paths]
    present = set(files)
    folders = {file.parent for file in files if file.name == "state.json"}
    datasets: dict[PurePosixPath, set[str]] = {}
    arrow_files = _arrow_files(files)
    for folder in folders:
        if folder / "dataset_info.json" in present:
            names = listed(str(folder))
            datasets[folder] = {*names} if names is not None else arrow_files.get(folder, set())
    collections = {folder.parent for folder in datasets if folder.parent / "dataset_dict.json" in present}
    for file in files:
        unlisted = file.parent in datasets and file.name not in datasets[file.parent]
        if unlisted and file.name.startswith("indices") and file.suffix == ".arrow":
            raise PipelineError(f"{file}: a dataset with an indices table; save it again after flatten_indices()")
    for folder, wanted in datasets.items():
        for name in sorted(wanted):
            if folder / name not in present and not unwanted(str(folder / name)):
                raise PipelineError(
                    f"{folder / name} is missing; the state.json beside it lists it: save the dataset again"
                )
    kept = []
    for file in files:
        if file.parent in datasets:
            ours = file.name in datasets[file.parent]
        else:
            ours = not (file.name == "dataset_dict.json" and file.parent in collections)
        if ours:
            kept.append(str(file))
        else:
            left_out.add(_COMPANIONS, str(file))
    return kept


def _arrow_files(files: Collection[PurePosixPath]) -> dict[PurePosixPath, set[str]]:
    """What a dataset without a list is taken to consist of, by folder."""
    found: dict[PurePosixPath, set[str]] = {}
    for file in files:
        if file.suffix == ".arrow" and not file.name.startswith(("cache-", "indices")):
            found.setdefault(file.parent, set()).add(file.name)
    return found


def without_notes(kinds: Mapping[str, Kind], empty: Collection[str], left_out: LeftOut) -> list[str]:
    """The paths without the notes about data: README and the like where all other files, but ``empty`` ones, hold
    records.
    """
    notes = {path: None for path in kinds if _is_note(PurePosixPath(path.lower()))}
    others = {kind for path, kind in kinds.items() if path not in notes and path not in empty}
    if not others or "text" in others:
        return list(kinds)
    for path in notes:
        left_out.add(_NOTES, path)
    return [path for path in kinds if path not in notes]


def _is_note(path: PurePosixPath) -> bool:
    return path.name in _NOTE_FILES or (path.stem in _NOTE_STEMS and path.suffix in _NOTE_SUFFIXES)


def named_splits(kinds: Mapping[str, Kind], left_out: LeftOut) -> dict[str, SplitName | None]:
    """The paths that are read, with the split that their records are in if names say it.

    Beside data that is named train, what is named validation goes there, and what is named test is left out. Files of
    records say it in their names or in those of folders; texts only by folders of exactly these names side by side.
    """
    held: dict[str | None, set[str | None]] = {}
    for path, kind in kinds.items():
        group, side = _side(PurePosixPath(path), kind)
        held.setdefault(group, set()).add(side)
    kept: dict[str, SplitName | None] = {}
    if not any("train" in sides for sides in held.values()):
        return dict.fromkeys(kinds)
    for path, kind in kinds.items():
        group, side = _side(PurePosixPath(path), kind)
        beside = held[group]
        if side is None or "train" not in beside:
            kept[path] = None
        elif side == "test":
            left_out.add(_TEST, path)
        elif side == "validation":
            kept[path] = "validation"
        else:
            kept[path] = "train" if "validation" in beside else None
    return kept


def _side(path: PurePosixPath, kind: Kind) -> tuple[str | None, str | None]:
    """What names say of a file, and within which group of files that counts."""
    if kind == "text":
        for folder in path.parents[:-1]:
            if (side := _SPLIT_WORDS.get(folder.name.lower())) is not None:
                return str(folder.parent), side
        return None, None
    for part in (path, *path.parents[:-1]):
        found = {_SPLIT_WORDS[word] for word in _BETWEEN_WORDS.split(part.name.lower()) if word in _SPLIT_WORDS}
        if len(found) == 1:
            return None, found.pop()
        if found:
            return None, None  # it names both
    return None, None
