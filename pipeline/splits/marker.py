"""What a finished split leaves behind: the marker that says so, and files of what did not become a document."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from pydantic import ValidationError, model_validator

from pipeline.settings import SPLIT_NAMES, SplitName
from shared.errors import DatasetError
from shared.io.files.atomic import atomic_file, write_atomic
from shared.io.files.digests import canonical_json
from shared.io.files.json_reader import read_bounded
from shared.settings import Settings
from shared.shards.dataset import check_file, files_of
from shared.shards.manifest import Count, Sha256, ShardEntry

MARKERS, DEAD_LETTERS, EMPTY_RECORDS, DUPLICATES = "splits", "dead-letters", "empty-records", "duplicates"
LEDGERS = (DEAD_LETTERS, EMPTY_RECORDS, DUPLICATES)
"""Folders of lists of what did not become a document."""

LINE_IN_SPLIT = "line_in_split"
"""In place of a line, until all splits before are done and their lines are known."""
MOST_MARKER_BYTES = 2**28


class Counts(Settings):
    """Every record of the input has exactly one status (law 4)."""

    records: Count = 0
    """Counted where they are read; equals the sum of the statuses below."""
    documents: Count = 0
    dead: Count = 0
    empty: Count = 0
    not_sampled: Count = 0
    duplicates: Count = 0
    """Texts that an earlier record has, byte for byte."""
    document_bytes: Count = 0
    """Bytes of text in the documents."""
    without_id: Count = 0
    without_subset: Count = 0
    without_key: Count = 0
    """Records (dead ones aside) that lack the column which --id-column, --subset-column, --split-key names."""
    replaced: Count = 0
    """Values for which null or a text stands, because they have no form in JSON or in a name."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{key: getattr(self, key) + getattr(other, key) for key in type(self).model_fields})


class Counted(Settings, extra="ignore"):
    """What a marker says of the records of a finished split, read without what it says of shards."""

    split: str
    """Its name."""
    run: str
    """Digest of the run's identity and numerics: a marker of another run is not believed."""
    counts: Counts


class ReadMarker(Counted):
    """What a marker says of what was read, whatever was made of it."""

    content: Sha256
    """Of what was read (`pipeline.read.seen`)."""
    lines: Count
    """Newlines in what was read of a file of lines."""


class Marker(ReadMarker, extra="forbid"):
    """One finished split."""

    shards: dict[SplitName, list[ShardEntry]]
    """Of each split, train and validation."""

    @model_validator(mode="after")
    def _of_both(self) -> Self:
        if self.shards.keys() != set(SPLIT_NAMES):
            raise ValueError(f"shards: train and validation are needed, not {', '.join(self.shards) or 'nothing'}")
        return self


C = TypeVar("C", bound=Counted)


def shard_stem(split: str, number: int) -> str:
    """shard-0000012-00003; a split whose text is larger than a shard goes on with shard-0000012-00003-001."""
    return f"shard-{split}" + (f"-{number:03d}" if number else "")


def marker_path(out: Path, split: str) -> Path:
    return out / MARKERS / f"{split}.json"


def write_marker(out: Path, marker: ReadMarker) -> None:
    write_atomic(marker_path(out, marker.split), marker.model_dump_json(indent=1) + "\n")


def read_marker(out: Path, split: str, run: str) -> Marker | None:
    """The marker of a split, if it is there and of this run."""
    return read_marker_of(out, split, run, Marker)


def read_counts(out: Path, split: str, run: str) -> Counts | None:
    """What it says of records; what it says of shards is not looked at, which takes a third of the time."""
    found = read_marker_of(out, split, run, Counted)
    return None if found is None else found.counts


def read_marker_of(out: Path, split: str, run: str, kind: type[C]) -> C | None:
    """The same of what a work of another kind leaves."""
    try:
        found = kind.model_validate_json(read_bounded(marker_path(out, split), MOST_MARKER_BYTES))
    except (OSError, ValidationError):
        return None
    return found if found.split == split and found.run == run else None


def is_whole(out: Path, marker: Marker) -> bool:
    """Whether every file of a finished split is there, byte for byte."""
    try:
        for name in SPLIT_NAMES:
            for entry in marker.shards[name]:
                for file, sha256, size in files_of(entry):
                    check_file(out / name / file, sha256, size)
    except (DatasetError, OSError):
        return False
    return True


def finish_ledgers(
    out: Path, marker: Counted, lines_before: int, name: Callable[[int], str], fetch: Callable[[str], None]
) -> None:
    """Say in what a split lists which lines of whole files are meant, and splits by ``name``. Twice does no harm.

    ``lines_before``: in the earlier parts of its file. ``fetch`` brings a list into ``out`` where it is elsewhere.
    """
    for folder, count in (
        (DEAD_LETTERS, marker.counts.dead),
        (EMPTY_RECORDS, marker.counts.empty),
        (DUPLICATES, marker.counts.duplicates),
    ):
        path = out / folder / f"{marker.split}.jsonl"
        if not count:
            continue
        with suppress(FileNotFoundError):
            fetch(f"{folder}/{path.name}")
        if not path.exists():
            continue
        with open(path, "rb") as listed:
            first = json.loads(listed.readline())
            if LINE_IN_SPLIT not in first and not isinstance(first.get("first", {}).get("split"), int):
                continue
            listed.seek(0)
            with atomic_file(path) as finished:
                for line in listed:
                    entry = json.loads(line)
                    if LINE_IN_SPLIT in entry:
                        entry["line"] = lines_before + entry.pop(LINE_IN_SPLIT)
                    if "first" in entry:
                        entry["first"]["split"] = name(entry["first"]["split"])
                    finished.write(canonical_json(entry).encode() + b"\n")


def reasons_of(out: Path, split: str, most: int) -> Counter[str]:
    """Why records of a split are dead letters, each with their number, by the first ``most`` lines of its list."""
    found = Counter[str]()
    with suppress(OSError, ValueError, KeyError), open(out / DEAD_LETTERS / f"{split}.jsonl", "rb") as listed:
        for line in islice(listed, most):  # the list is for people, who may have removed it
            letter = json.loads(line)
            found[str(letter["reason"])] += letter.get("records", 1)
    return found


class Ledger:
    """A file of one JSON object a line: not there without a line, and never half of it."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path, self._stack = path, stack
        self._file: IO[bytes] | None = None

    def add(self, entry: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(atomic_file(self._path))
        self._file.write(canonical_json(entry).encode() + b"\n")
