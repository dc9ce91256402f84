"""Which records become documents, where that depends on all of them: exact duplicates, and a sample of the whole.

In a first pass over the input each split is surveyed: a hash of every text and its place in the sample's order. From
all surveys follow the statuses of each split's texts, in files that the second pass reads. Memory is bounded: hashes
are compared a range of values at a time, and the sample's limit is found in two steps.

DIR/selection/0000012.survey.npy  0000012.survey.json  0000012.statuses.npy  done
"""

import io
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.plan import Split
from pipeline.read import Seen, read_split
from pipeline.records import DeadLetter, content_digest, sample_hash
from pipeline.settings import Job, PipelineError, ReadSettings
from shared.io.files import sync, write_atomic
from shared.io.identity import canonical_json
from shared.io.json_reader import read_bounded

SELECTION, _DONE = "selection", "done"
SURVEY = np.dtype([("content", ">u8", 2), ("place", "<u8"), ("bytes", "<i8")])
"""Of each text: half its sha256, its place in the order of the sample, its size."""


class RecordStatus(IntEnum):
    """What becomes of a text when duplicates are left out or a sample is taken."""

    KEPT = 0
    NOT_SAMPLED = 1
    DUPLICATE = 2


STATUSES = np.dtype([("status", "u1"), ("split", "<u4"), ("text", "<u4")])
"""Of each text: KEPT, NOT_SAMPLED or DUPLICATE; then split, and number there, of the equal text that is kept."""
COMPARED = 2**24
"""About as many hashes are compared at once: a gigabyte with what sorting takes."""
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


def select(out: Path, splits: Sequence[int], reading: ReadSettings) -> None:
    """Decide over all texts, in the order of the splits, and leave the statuses of those of each split."""

    def survey(split: int) -> np.ndarray:
        return _load(_survey_path(out, split))

    def statuses(split: int) -> np.ndarray:
        return _load(_statuses_path(out, split), "r+")

    total = 0
    for split in splits:
        texts = len(survey(split))
        total += texts
        _save(_statuses_path(out, split), np.zeros(texts, STATUSES))
    if reading.dedup:
        bits = max((total // COMPARED).bit_length(), 0)
        for part in range(1 << bits):
            for split, text, first_split, first_text in _equal_texts(survey, splits, bits, part):
                held = statuses(split)
                held["status"][text] = RecordStatus.DUPLICATE
                held["split"][text], held["text"][text] = first_split, first_text
    if reading.sample_bytes is not None:
        threshold = sample_threshold(
            lambda: ((s["place"][k], s["bytes"][k]) for s, k in _kept(survey, statuses, splits)), reading.sample_bytes
        )
        for split in splits:
            held = statuses(split)
            held["status"][(held["status"] == RecordStatus.KEPT) & (survey(split)["place"] >= threshold)] = (
                RecordStatus.NOT_SAMPLED
            )
    for split in splits:
        # What was changed in place: another machine reads it, or this one after a crash.
        sync(_statuses_path(out, split))
    write_atomic(out / SELECTION / _DONE, "")


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


def _equal_texts(
    survey: Callable[[int], np.ndarray], splits: Sequence[int], bits: int, part: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each split the texts that an earlier one equals (int64 [N]), and split and text of the first such.

    Of all hashes those that begin with the ``bits`` of ``part`` are compared.
    """
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for split in splits:
        content = survey(split)["content"].astype(np.uint64)
        chosen = np.arange(len(content))
        if bits:
            chosen = np.flatnonzero(content[:, 0] >> np.uint64(64 - bits) == part)
        for column, values in zip(
            columns, (content[chosen, 0], content[chosen, 1], np.full(len(chosen), split), chosen)
        ):
            column.append(values)
    high, low, split_of, text = (np.concatenate(column) for column in columns)
    order = np.lexsort((text, split_of, low, high))
    high, low, split_of, text = high[order], low[order], split_of[order], text[order]
    new = np.ones(len(order), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    again = np.flatnonzero(~new)
    again = again[np.argsort(split_of[again], kind="stable")]
    for group in np.split(again, np.flatnonzero(np.diff(split_of[again])) + 1):
        if len(group):
            yield int(split_of[group[0]]), text[group], split_of[first[group]], text[first[group]]


def _kept(
    survey: Callable[[int], np.ndarray], statuses: Callable[[int], np.ndarray], splits: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The survey of each split, and which of its texts are kept so far."""
    for split in splits:
        yield survey(split), statuses(split)["status"] == RecordStatus.KEPT


def _save(path: Path, values: np.ndarray) -> None:
    content = io.BytesIO()  # into a file NumPy writes by itself, and does not say that a disk is full
    np.save(content, values)
    write_atomic(path, content.getvalue())


def _load(path: Path, mode: Literal["r", "r+"] = "r") -> np.ndarray:
    """A mapped array. Raises PipelineError for a file that is not there or damaged: it is not made a second time."""
    try:
        return np.asanyarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise PipelineError(
            f"{path} is missing or damaged ({error}); remove {path.parent} and run the same command"
        ) from None


def _survey_path(out: Path, split: int) -> Path:
    return out / SELECTION / f"{split:07d}.survey.npy"


def _content_path(out: Path, split: int) -> Path:
    return out / SELECTION / f"{split:07d}.survey.json"


def _statuses_path(out: Path, split: int) -> Path:
    return out / SELECTION / f"{split:07d}.statuses.npy"
