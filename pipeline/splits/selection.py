"""Which records become documents, where that depends on all of them: exact duplicates, and a sample of the whole.

In a first pass over the input workers survey each split: a hash of every text and its place in the sample's order. From
the surveys follow the statuses of each split's texts, in files that the second pass reads. The driver decides them in
bounded memory and linear time: it deals hashes out to files by their first bits, compares one such file at a time,
deals the duplicates out to files by split, and assembles the statuses of some splits at a time. The sample's limit is
found in two steps. The driver does this by itself since it is some thousandth of the work: surveys are 32 bytes a text.

DIR/selection/0000012.survey.npy  0000012.survey.json  0000012.statuses.npy  done
"""

import io
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import IntEnum
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.plan import Split
from pipeline.read import Seen, read_split
from pipeline.records import DeadLetter, content_digest, sample_hash
from pipeline.settings import Job, PipelineError, ReadSettings
from shared.io.files.atomic import naming, write_atomic
from shared.io.files.digests import canonical_json
from shared.io.files.json_reader import read_bounded

SELECTION, _DONE = "selection", "done"
DECIDED = (f"{SELECTION}/*.statuses.npy", f"{SELECTION}/{_DONE}")
"""What a selection comes to; the last file says that it is all there."""
SURVEY = np.dtype([("content", ">u8", 2), ("place", "<u8"), ("bytes", "<i8")])
"""Of each text: half its sha256, its place in the order of the sample, its size."""


class RecordStatus(IntEnum):
    """What becomes of a text when duplicates are left out or a sample is taken."""

    KEPT = 0
    NOT_SAMPLED = 1
    DUPLICATE = 2


STATUSES = np.dtype([("status", "u1"), ("split", "<u4"), ("text", "<u4")])
"""Of each text: KEPT, NOT_SAMPLED or DUPLICATE; then split, and number there, of the equal text that is kept."""
COMPARED = 2**22
"""About as many texts are compared, or get their statuses, at once: 300 MB with what sorting takes."""
_HASHED = np.dtype([("high", "<u8"), ("low", "<u8"), ("split", "<u4"), ("text", "<u4")])
"""Of each text: its hash, and where it is."""
_EQUAL = np.dtype([("split", "<u4"), ("text", "<u4"), ("first_split", "<u4"), ("first_text", "<u4")])
"""A text that an earlier one equals, and the first such."""
_PARTITIONS, _HASHES, _DUPLICATES = "partitions", "hashes", "duplicates"
_BINS, _BLOCK = 2**16, 2**14
"""Bins of places in a first pass, of which a second sorts only one; statuses that are Python objects at a time."""


def selects(reading: ReadSettings) -> bool:
    """Whether the status of a record depends on others."""
    return reading.dedup or reading.sample_bytes is not None


def selection_done(out: Path) -> bool:
    """Whether the statuses of all texts are known."""
    return (out / SELECTION / _DONE).exists()


def remove_selection(out: Path) -> None:
    """Remove what is said of it first: half a selection must not pass for a whole one."""
    (out / SELECTION / _DONE).unlink(missing_ok=True)
    shutil.rmtree(out / SELECTION, ignore_errors=True)


def surveyed(out: Path, split: Split) -> bool:
    """Whether there is a survey of the files as they are now."""
    return _survey_path(out, split.number).exists() and _found(out, split.number).get("stamps") == split.stamps


def content_surveyed(out: Path, split: Split) -> str:
    """The sha256 of what was read for the survey of a split."""
    return str(_found(out, split.number).get("content"))


def _found(out: Path, split: int) -> dict[str, Any]:
    try:
        found = json.loads(read_bounded(_content_path(out, split)))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def survey_split(job: Job, split: Split, progress: Callable[[int], None]) -> None:
    """Look at every text of a split and leave its survey; records that are no text have none."""
    sampling = job.reading.sample_bytes is not None
    contents, places, sizes = bytearray(), array("Q"), array("q")
    seen = Seen()
    for found in read_split(split, job.reading, seen):
        if isinstance(found, DeadLetter):
            progress(found.size)
            continue
        for text, spans in zip(found.texts, found.spans or repeat(None)):
            if text:
                contents += content_digest(text, spans)[:16]
                places.append(sample_hash(text, job.reading.seed, spans) if sampling else 0)
                sizes.append(len(text))
        progress(sum(found.sizes))
    survey = np.zeros(len(sizes), SURVEY)
    survey["content"] = np.frombuffer(contents, ">u8").reshape(-1, 2)
    survey["place"], survey["bytes"] = places, sizes
    write_atomic(_content_path(job.out, split.number), canonical_json({"content": seen.sha256, "stamps": split.stamps}))
    _save(_survey_path(job.out, split.number), survey)


def select(out: Path, splits: int, reading: ReadSettings) -> None:
    """Decide over all texts, in the order of the splits 0 .. ``splits``, and leave the statuses of those of each."""
    texts = np.fromiter((len(_survey(out, split)) for split in range(splits)), np.int64, splits)
    block = (np.cumsum(texts) - texts) // COMPARED
    """int64 [splits]: which splits are assembled together."""
    shutil.rmtree(out / SELECTION / _PARTITIONS, ignore_errors=True)  # of a driver that was killed
    duplicates = _Partitions(out / SELECTION / _PARTITIONS / _DUPLICATES, _EQUAL)
    if reading.dedup:
        hashes = _Partitions(out / SELECTION / _PARTITIONS / _HASHES, _HASHED)
        bits = min(int(texts.sum() // COMPARED).bit_length(), 16)
        for split in range(splits):
            rows = _hashed(_survey(out, split), split)
            hashes.add(rows["high"] >> np.uint64(64 - bits) if bits else np.zeros(len(rows)), rows)
        for part in range(1 << bits):
            for equal in _equal_texts(hashes.pop(part)):
                duplicates.add(block[equal["split"]], equal)

    def assembled() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each split with its survey and statuses, as far as they are known."""
        for number in range(int(block[-1]) + 1 if splits else 0):
            first, end = np.searchsorted(block, [number, number + 1]).tolist()
            starts = np.append(0, np.cumsum(texts[first:end]))
            statuses = np.zeros(starts[-1], STATUSES)
            for equal in duplicates.read(number):
                at = starts[equal["split"] - first] + equal["text"]
                statuses["status"][at] = RecordStatus.DUPLICATE
                statuses["split"][at], statuses["text"][at] = equal["first_split"], equal["first_text"]
            for split in range(first, end):
                yield split, _survey(out, split), statuses[starts[split - first] : starts[split - first + 1]]

    threshold = 2**64
    if reading.sample_bytes is not None:
        threshold = sample_threshold(
            lambda: ((s["place"][k], s["bytes"][k]) for _, s, t in assembled() for k in [t["status"] == 0]),
            reading.sample_bytes,
        )
    for split, survey, statuses in assembled():
        if threshold < 2**64:
            left_out = (statuses["status"] == RecordStatus.KEPT) & (survey["place"] >= np.uint64(threshold))
            statuses["status"][left_out] = RecordStatus.NOT_SAMPLED
        _save(_statuses_path(out, split), statuses)
    shutil.rmtree(out / SELECTION / _PARTITIONS, ignore_errors=True)
    write_atomic(out / SELECTION / _DONE, "")


class _Partitions:
    """Rows partitioned into numbered files. What one file got comes back in the order in which it was added."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self._folder, self._dtype = folder, dtype
        folder.mkdir(parents=True)
        self._numbers: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._held = 0

    def add(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Rows, and the number of the file for each. As many are written at once as need few files to be opened."""
        self._numbers.append(numbers.astype(np.uint32))
        self._rows.append(rows)
        self._held += len(rows)
        if self._held >= COMPARED // 4:
            self._write()

    def _write(self) -> None:
        if not self._held:
            return
        numbers, rows = np.concatenate(self._numbers), np.concatenate(self._rows)
        self._numbers, self._rows, self._held = [], [], 0
        order = np.argsort(numbers, kind="stable")
        numbers, rows = numbers[order], rows[order]
        begins = np.flatnonzero(np.diff(numbers, prepend=numbers[0] + 1))
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(rows)]):
            path = self._path(int(numbers[begin]))
            with naming(path), path.open("ab") as file:
                file.write(rows[begin:end].tobytes())

    def read(self, number: int) -> Iterator[np.ndarray]:
        """The rows of one file, some at a time."""
        self._write()
        with suppress(FileNotFoundError), self._path(number).open("rb") as file:
            while len(rows := np.fromfile(file, self._dtype, COMPARED)):
                yield rows

    def pop(self, number: int) -> Iterator[np.ndarray]:
        """The same, after which the file is removed."""
        yield from self.read(number)
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:07d}"


def _hashed(survey: np.ndarray, split: int) -> np.ndarray:
    rows = np.empty(len(survey), _HASHED)
    rows["high"], rows["low"] = survey["content"][:, 0], survey["content"][:, 1]
    rows["split"], rows["text"] = split, np.arange(len(survey))
    return rows


def _equal_texts(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """From the texts of one partition, in the order of the input, those that an earlier one equals."""
    known = np.zeros(0, _HASHED)
    """The first text of each hash so far: as many as differ, however often one text comes again."""
    for chunk in chunks:
        rows = np.concatenate([known, chunk])
        rows = rows[np.lexsort((rows["low"], rows["high"]))]  # stable: the first text stays the first
        new = np.ones(len(rows), bool)
        new[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
        known, again = rows[new], rows[~new]
        first = known[(np.cumsum(new) - 1)[~new]]
        equal = np.empty(len(again), _EQUAL)
        equal["split"], equal["text"] = again["split"], again["text"]
        equal["first_split"], equal["first_text"] = first["split"], first["text"]
        yield equal


def statuses_of(out: Path, split: int) -> Iterator[tuple[int, int, int]]:
    """(status, split, text) of each text of a split, in order."""
    statuses = _load(_statuses_path(out, split))
    for begin in range(0, len(statuses), _BLOCK):
        yield from statuses[begin : begin + _BLOCK].tolist()


def sample_threshold(texts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], limit: int) -> int:
    """The greatest threshold such that the texts with places below it have at most ``limit`` bytes.

    ``texts()`` gives places uint64 [N] and sizes int64 [N] of some texts at a time; it is called twice.
    """
    held = np.zeros(_BINS, np.int64)
    for places, sizes in texts():
        np.add.at(held, (places >> np.uint64(48)).astype(np.int64), sizes)
    ends = np.cumsum(held)
    crossed = int(np.searchsorted(ends, limit, side="right"))
    if crossed == _BINS:
        return 2**64
    inside = [(p[c], s[c]) for p, s in texts() if (c := (p >> np.uint64(48)) == crossed).any()]
    places, sizes = (np.concatenate(arrays) for arrays in zip(*inside))
    order = np.argsort(places, kind="stable")
    before = int(ends[crossed] - held[crossed])
    return int(places[order[np.searchsorted(before + np.cumsum(sizes[order]), limit, side="right")]])


def _save(path: Path, values: np.ndarray) -> None:
    content = io.BytesIO()  # into a file NumPy writes by itself, and does not say that a disk is full
    np.save(content, values)
    write_atomic(path, content.getvalue())


def _load(path: Path) -> np.ndarray:
    """A mapped array. Raises PipelineError for a file that is not there or damaged: it is not made a second time."""
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise PipelineError(
            f"{path} is missing or damaged ({error}); remove {path.parent} and run the same command"
        ) from None


def _survey(out: Path, split: int) -> np.ndarray:
    return _load(_survey_path(out, split))


def needed_to_write(split: int) -> tuple[str, ...]:
    """What must be at hand in the folder of a run to write a split of it."""
    return tuple(path(Path(), split).as_posix() for path in (_content_path, _statuses_path))


def _survey_path(out: Path, split: int) -> Path:
    return out / SELECTION / f"{split:07d}.survey.npy"


def _content_path(out: Path, split: int) -> Path:
    return out / SELECTION / f"{split:07d}.survey.json"


def _statuses_path(out: Path, split: int) -> Path:
    return out / SELECTION / f"{split:07d}.statuses.npy"
