"""Which of the files below an input are read: pure rules on relative paths."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.files import Kind
from pipeline.inputs.listed_files import ListedFiles
from pipeline.read.format_names import name_left_out
from pipeline.settings import PipelineError, ReadSettings

HIDDEN, EXCLUDED, NOT_INCLUDED = "hidden directories and caches", "left out by --exclude", "not among --include"
_COMPANIONS, _NOTES = "companions of Hugging Face datasets", "notes beside data (README, LICENSE)"
_TEST = "test data beside data for training (--named-splits ignore reads it)"
_STATE = "state.json"
_SHOWN = 3
"""Names that are kept of the files that are left out for one reason."""
_NOTE_STEMS = frozenset(
    ["readme", "license", "licence", "notice", "citation", "changelog", "contributing", "code_of_conduct"]
)
_NOTE_SUFFIXES = frozenset({"", ".md", ".txt", ".rst", ".cff"})
_NOTE_BEGINNINGS = tuple(_NOTE_STEMS)
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

    def add(self, reason: str, name: str) -> None:
        """Count a file; its name is kept if it is among the first ones, whatever the order in which they come."""
        self.counts[reason] += 1
        known = self.names.get(reason, ())
        if len(known) < _SHOWN or _parts(name) < _parts(known[-1]):
            self.names[reason] = tuple(sorted((*known, printable(name)), key=_parts)[:_SHOWN])


def _parts(path: str) -> list[str]:
    return path.split("/")


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]


def printable(path: str) -> str:
    """A path in which escapes stand for what has no form in UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def folder_left_out(relative: str, reading: ReadSettings, used: set[str]) -> str | None:
    """Why a folder is not entered, if it is not. The globs that match are added to ``used``."""
    name = name_of(relative)
    if _matches(relative, reading.exclude, used):
        return EXCLUDED
    return HIDDEN if name.startswith(".") or name == "__pycache__" else None


def file_left_out(relative: str, reading: ReadSettings, used: set[str]) -> str | None:
    """Why a file is not read, if it is not. A glob matches the whole path (``*`` also matches ``/``) or the name."""
    if _matches(relative, reading.exclude, used):
        return EXCLUDED
    if reading.include and not _matches(relative, reading.include, used):
        return NOT_INCLUDED
    return name_left_out(name_of(relative))


def dataset_left_out(relative: str, reading: ReadSettings, used: set[str]) -> str | None:
    """Why one of our datasets in a directory is not read, if it is not."""
    if reading.include and not _matches(relative, reading.include, used):
        return NOT_INCLUDED
    return None


def _matches(relative: str, globs: Collection[str], used: set[str]) -> bool:
    if not globs:
        return False
    names = (relative, name_of(relative))
    found = {glob for glob in globs if any(fnmatchcase(name, glob) for name in names)}
    used |= found
    return bool(found)


def choose_data(
    files: ListedFiles,
    listed: Callable[[str], Collection[str] | None],
    left_out: LeftOut,
    unwanted: Callable[[str], bool] = lambda _: False,
) -> None:
    """Leave out what holds no data. Of a Hugging Face dataset on disk its data are the files that its state.json lists.

    ``listed`` gives these of a folder; None: all but caches. Raises PipelineError for one that is listed and missing,
    but not if it is ``unwanted``. The names in one folder are held at a time.
    """
    datasets = [
        PurePosixPath(path).parent
        for _, path in files
        if path.endswith(_STATE)
        and name_of(path) == _STATE
        and files.find(str(PurePosixPath(path).parent / "dataset_info.json")) is not None
    ]
    for folder in datasets:
        names = listed(str(folder))
        present = set[str]()
        for number, name in [*files.inside(str(folder))]:
            wanted = name in names if names is not None else _is_arrow_file(name)
            if not wanted and name.startswith("indices") and name.endswith(".arrow"):
                raise PipelineError(
                    f"{folder / name}: a dataset with an indices table; save it again after flatten_indices()"
                )
            if wanted:
                present.add(name)
            else:
                left_out.add(_COMPANIONS, str(folder / name))
                files.leave_out(number)
        for name in sorted({*(names or ())} - present):
            if not unwanted(str(folder / name)):
                raise PipelineError(
                    f"{folder / name} is missing; the state.json beside it lists it: save the dataset again"
                )
    for parent in {folder.parent for folder in datasets} - {*datasets}:
        collection = str(parent / "dataset_dict.json")
        if (found := files.find(collection)) is not None:
            left_out.add(_COMPANIONS, collection)
            files.leave_out(found)


def _is_arrow_file(name: str) -> bool:
    """Whether a dataset without a list is taken to have this file."""
    return name.endswith(".arrow") and not name.startswith(("cache-", "indices"))


def leave_out_notes(files: ListedFiles, left_out: LeftOut) -> None:
    """Leave out the notes about data: README and the like where all other files, but empty ones, hold records."""
    others = set[Kind]()
    notes = False
    for number, path in files:
        if _is_note(path):
            notes = True
        elif not files.is_empty(number):
            others.add(files.kind(number))
            if "text" in others:
                return
    if notes and others:
        for number, path in files:
            if _is_note(path):
                left_out.add(_NOTES, path)
                files.leave_out(number)


def _is_note(path: str) -> bool:
    name = name_of(path).lower()
    if not name.startswith(_NOTE_BEGINNINGS):  # nearly all
        return name in _NOTE_FILES
    named_as = PurePosixPath(name)
    return named_as.stem in _NOTE_STEMS and named_as.suffix in _NOTE_SUFFIXES


def set_named_splits(files: ListedFiles, left_out: LeftOut) -> None:
    """Set the splits that the records of files are in, if names say it, and leave out what is named test.

    Beside data that is named train, what is named validation goes there, and what is named test is left out. Files of
    records say it in their names or in those of folders; texts only by folders of exactly these names side by side.
    """
    with_train: dict[str | None, bool] = {}
    """Groups of files of which some are named train; whether others are named validation."""
    for wanted in ("train", "validation"):
        for number, path in files:
            group, side = _side(path, files.kind(number))
            if side == wanted == "train":
                with_train[group] = False
            elif side == wanted and group in with_train:
                with_train[group] = True
        if not with_train:
            return
    for number, path in files:
        group, side = _side(path, files.kind(number))
        if group not in with_train:
            continue
        if side == "test":
            left_out.add(_TEST, path)
            files.leave_out(number)
        elif side is not None and with_train[group]:
            files.set_split(number, "validation" if side == "validation" else "train")


def _side(path: str, kind: Kind) -> tuple[str | None, str | None]:
    """What names say of a file, and within which group of files that counts."""
    parts = path.lower().split("/")
    for depth in range(len(parts) - 1 - (kind == "text"), -1, -1):
        part = parts[depth]
        if kind == "text":
            if (side := _SPLIT_WORDS.get(part)) is not None:
                return "/".join(path.split("/")[:depth]), side
            continue
        found = {_SPLIT_WORDS[word] for word in _BETWEEN_WORDS.split(part) if word in _SPLIT_WORDS}
        if len(found) == 1:
            return None, found.pop()
        if found:
            return None, None  # it names both
    return None, None
