"""The one unit of work: a split becomes shards, a list of what was left out, and last a marker.

The product follows from the split, the job and the numerics class alone: not from who does it, when, or how often.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pipeline.plan import LARGEST_SPLIT, Plan, Split
from pipeline.read import read_split
from pipeline.records import DeadLetter, Record, split_of
from pipeline.scoring.cut import Piece, cut, pieces
from pipeline.settings import SPLIT_NAMES, Job, PipelineError, SplitName
from pipeline.splits.marker import (
    DEAD_LETTERS,
    DUPLICATES,
    EMPTY_RECORDS,
    Counts,
    Ledger,
    Marker,
    shard_stem,
    split_name,
    write_marker,
)
from pipeline.splits.pipelining import ahead, behind
from pipeline.splits.selection import RecordStatus, selects, statuses_of
from shared.shards.document import Row
from shared.shards.manifest import MOST_ROWS, ShardEntry
from shared.shards.writer import ShardWriter

if TYPE_CHECKING:
    from shared.models.scoring import Scorer

Progress = Callable[[int], None]
READ_AHEAD = 2**24
WRITTEN_BEHIND = 2**24
"""Bytes that wait for the scorer, and for the writer: enough that a slow disk or a long record stops no accelerator."""
ROWS_OF_A_SHARD = MOST_ROWS // 2
"""After which a shard of short documents is closed, whatever bytes it has."""
_RECORD_BYTES = 2**10
"""Of everything about a record but its text and metadata."""


def process_split(
    job: Job, plan: Plan, number: int, run: str, scorer: "Scorer | None" = None, progress: Progress = lambda _: None
) -> Marker:
    """Read, score, cut and write one split, and commit it.

    ``progress`` is told the input bytes that are done: of documents once they are scored, of others once they are read.

    Raises PipelineError or DatasetError when the input is not what was planned.
    """
    split = plan.splits[number]
    name = split_name(number)
    progress = _one_at_a_time(progress)
    with ExitStack() as stack:
        folders = (DEAD_LETTERS, EMPTY_RECORDS, DUPLICATES)
        ledgers = {folder: Ledger(job.out / folder / f"{name}.jsonl", stack) for folder in folders}
        sorting = _Sorting(job, plan, split, ledgers, progress)
        shards = stack.enter_context(_Shards(job, number, max(plan.split_bytes, LARGEST_SPLIT)))
        records: Generator[Record, None, None] = sorting.records()
        if scorer is not None:  # else there is nothing to overlap with, and handing over costs more than it gains
            records = stack.enter_context(closing(ahead(records, _held, READ_AHEAD)))
        written_behind = behind(shards.add, lambda item: _held(item[1]), WRITTEN_BEHIND)
        with nullcontext(shards.add) if scorer is None else written_behind as writing:
            for item in cut(_counted(pieces(records, scorer), progress), job.output.patching):
                writing(item)
        written = shards.closed()
    marker = Marker(split=number, run=run, counts=sorting.counts(), shards=written)
    write_marker(job.out, marker)
    return marker


def _one_at_a_time(progress: Progress) -> Progress:
    """For the thread that reads ahead and the one that scores."""
    lock = threading.Lock()

    def locked_progress(count: int) -> None:
        with lock:
            progress(count)

    return locked_progress


def _counted(pieces: Iterable[Piece], progress: Progress) -> Iterator[Piece]:
    """Tell ``progress`` of each piece the share of the input bytes that its record took."""
    tokens = reported = 0
    for piece in pieces:
        record = piece.document.record
        tokens += piece.tokens
        done = record.size if piece.last else record.size * tokens // record.tokens
        progress(done - reported)
        tokens, reported = (0, 0) if piece.last else (tokens, done)
        yield piece


def _held(item: Record | Row) -> int:
    """Bytes that a record or row takes while it waits, without its entropies: millions may have a byte of text each."""
    text = len(item.text) if isinstance(item.text, bytes) else 0
    return _RECORD_BYTES + text + len(item.meta or "")


class _Sorting:
    """Gives every record of a split its status, and counts them."""

    def __init__(self, job: Job, plan: Plan, split: Split, ledgers: Mapping[str, Ledger], progress: Progress) -> None:
        """``ledgers``: where records are listed that make no document, by folder."""
        self._reading, self._plan, self._split = job.reading, plan, split
        self._ledgers, self._progress = ledgers, progress
        self._statuses = (
            statuses_of(job.out, split.number) if selects(job.reading) else repeat((RecordStatus.KEPT, 0, 0))
        )
        self._counts = dict.fromkeys(Counts.model_fields, 0)

    def records(self) -> Generator[Record, None, None]:
        """The records that become documents, each with its side: train or validation."""
        for found in read_split(self._plan, self._split, self._reading):
            status = self._status(found)
            number = found.records if isinstance(found, DeadLetter) else 1
            self._counts["records"] += number
            self._counts[status] += number
            if isinstance(found, Record):
                self._counts["replaced"] += found.replaced
                for option in found.lacks:
                    self._counts[f"without_{option}"] += 1
            if isinstance(found, Record) and status == "documents":
                self._counts["document_bytes"] += len(found.text)
                yield replace(found, split=split_of(found, self._reading))
            else:
                self._progress(found.size)
        if selects(self._reading) and next(self._statuses, None) is not None:
            raise self._not_as_surveyed("fewer")

    def counts(self) -> Counts:
        return Counts(**self._counts)

    def _status(self, found: Record | DeadLetter) -> str:
        if isinstance(found, DeadLetter):
            self._ledgers[DEAD_LETTERS].add(found.as_json())
            return "dead"
        if not found.text:
            self._ledgers[EMPTY_RECORDS].add(_listed(found))
            return "empty"
        found_status = next(self._statuses, None)
        if found_status is None:
            raise self._not_as_surveyed("more")
        status, split, text = found_status
        if status == RecordStatus.DUPLICATE:
            self._ledgers[DUPLICATES].add(
                _listed(found) | {"bytes": len(found.text), "first": {"split": split, "text": text}}
            )
            return "duplicates"
        return "documents" if status == RecordStatus.KEPT else "not_sampled"

    def _not_as_surveyed(self, how_many: str) -> PipelineError:
        problem = f"split {self._split.number} has {how_many} texts than were surveyed"
        return PipelineError(f"{problem}; the input has changed; restore it")


def _listed(record: Record) -> dict[str, Any]:
    return {**record.place.as_json(), "id": record.id}


class _Shards(AbstractContextManager["_Shards"]):
    """The shards of a split while they are written: at most one open for train and one for validation.

    A shard is closed by the document with which it reaches ``limit`` bytes, or ROWS_OF_A_SHARD. A context: leaving it
    by an error removes what is not closed.
    """

    def __init__(self, job: Job, split: int, limit: int) -> None:
        self._job, self._split, self._limit = job, split, limit
        self._open: dict[SplitName, ShardWriter] = {}
        self._sizes: dict[SplitName, int] = {}
        self._rows: dict[SplitName, int] = {}
        self._closed: dict[SplitName, list[ShardEntry]] = {name: [] for name in SPLIT_NAMES}

    def add(self, item: tuple[Record, Row, bool]) -> None:
        """A row of a record, and whether the record's document ends there."""
        record, row, last = item
        name = record.split
        assert name is not None, "decided when the record was counted"
        if name not in self._open:
            stem, output = shard_stem(self._split, len(self._closed[name])), self._job.output
            self._open[name] = ShardWriter(self._job.out / name, stem, output.format, output.sidecar)
            self._sizes[name] = self._rows[name] = 0
        self._open[name].add_row(row, last)
        self._sizes[name] += len(row.text)
        self._rows[name] += 1
        if last and (self._sizes[name] >= self._limit or self._rows[name] >= ROWS_OF_A_SHARD):
            self._close(name)

    def __exit__(self, *raised: Any) -> None:
        writers = ExitStack()
        for writer in self._open.values():
            writers.push(writer)
        writers.__exit__(*raised)

    def closed(self) -> dict[SplitName, list[ShardEntry]]:
        """Close what is open; the entries of all shards."""
        for name in list(self._open):
            self._close(name)
        return self._closed

    def _close(self, name: SplitName) -> None:
        writer = self._open.pop(name)
        writer.close()  # removes its files itself when it cannot
        self._closed[name].append(writer.entry)
