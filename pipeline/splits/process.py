"""The one unit of work: a split becomes shards, a list of what was left out, and last a marker.

The product follows from the split, the job and the numerics class alone: not from who does it, when, or how often.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np

from pipeline.plan import LARGEST_SPLIT, Split
from pipeline.read import Seen, read_split
from pipeline.records import DeadLetter, Records, Text, splits_of
from pipeline.scoring.cut import Piece, cut, pieces
from pipeline.settings import SPLIT_NAMES, Job, PipelineError, SplitName
from pipeline.splits.marker import (
    DEAD_LETTERS,
    DUPLICATES,
    EMPTY_RECORDS,
    LEDGERS,
    LINE_IN_SPLIT,
    Counts,
    Ledger,
    Marker,
    shard_stem,
    write_marker,
)
from pipeline.splits.pipelining import ahead, behind
from pipeline.splits.selection import RecordStatus, content_surveyed, selects, statuses_of
from shared.inputs import DocumentScorer
from shared.shards.manifest import MOST_ROWS, ShardEntry
from shared.shards.rows import Rows
from shared.shards.writer import ShardWriter

Progress = Callable[[int], None]
READ_AHEAD = 2**24
WRITTEN_BEHIND = 2**24
"""Bytes that wait for the scorer, and for the writer: enough that a slow disk or a long record stops no accelerator."""
ROWS_OF_A_SHARD = MOST_ROWS // 2
"""After which a shard of short documents is closed, whatever bytes it has."""
_RECORD_BYTES = 2**10
"""Of everything about a record but its text and metadata."""


def process_split(
    job: Job,
    split: Split,
    run: str,
    scorer: DocumentScorer | None = None,
    progress: Progress = lambda _: None,
    shard_bytes: int = LARGEST_SPLIT,
) -> Marker:
    """Read, score, cut and write one split, and commit it.

    ``shard_bytes``: of text, after which a shard is closed, and the split goes on with another one. ``progress`` is
    told the input bytes that are done: of documents once they are scored, of others once they are read.

    Raises PipelineError or DatasetError when the input is not what was planned.
    """
    progress = _one_at_a_time(progress)
    with ExitStack() as stack:
        ledgers = {folder: Ledger(job.out / folder / f"{split.name}.jsonl", stack) for folder in LEDGERS}
        sorting = Sorting(job, split, ledgers, progress)
        shards = stack.enter_context(_Shards(job, split.name, shard_bytes))
        records: Generator[Records, None, None] = sorting.records()
        if scorer is not None:  # else there is nothing to overlap with, and handing over costs more than it gains
            records = stack.enter_context(closing(ahead(records, _held, READ_AHEAD)))
        written_behind = behind(shards.add, _waiting, WRITTEN_BEHIND)
        with nullcontext(shards.add) if scorer is None else written_behind as writing:
            for item in cut(_counted(pieces(records, scorer), progress), job.output.patching):
                writing(item)
        written = shards.closed()
    marker = Marker(
        split=split.name,
        run=run,
        content=sorting.seen.sha256,
        lines=sorting.seen.lines,
        counts=sorting.counts(),
        shards=written,
    )
    write_marker(job.out, marker)
    return marker


def _one_at_a_time(progress: Progress) -> Progress:
    """For the thread that reads ahead and the one that scores."""
    lock = threading.Lock()

    def locked_progress(count: int) -> None:
        with lock:
            progress(count)

    return locked_progress


def _counted(items: Iterable[Piece | Records], progress: Progress) -> Iterator[Piece | Records]:
    """Tell ``progress`` of records their input bytes, and of each piece the share of those that its record took."""
    tokens = reported = 0
    for item in items:
        if isinstance(item, Records):
            progress(sum(item.sizes))
        else:
            record = item.document.record
            tokens += item.tokens
            done = record.size if item.last else record.size * tokens // record.tokens
            progress(done - reported)
            tokens, reported = (0, 0) if item.last else (tokens, done)
        yield item


def _held(records: Records) -> int:
    """Bytes that records take while they wait: millions may have a byte of text each."""
    return _RECORD_BYTES * len(records) + records.held


def _waiting(item: tuple[Sequence[SplitName | None], Rows]) -> int:
    """The same of rows, without their entropies."""
    return _RECORD_BYTES * len(item[1]) + int(item[1].stored_sizes.sum())


class Sorting:
    """Gives every record of a split its status, and counts them."""

    def __init__(self, job: Job, split: Split, ledgers: Mapping[str, Ledger], progress: Progress) -> None:
        """``ledgers``: where records are listed that make no document, by folder."""
        self._out, self._reading, self._split = job.out, job.reading, split
        self.seen = Seen()
        """What was read so far."""
        self._ledgers, self._progress = ledgers, progress
        self._statuses = (
            statuses_of(job.out, split.number) if selects(job.reading) else repeat((RecordStatus.KEPT, 0, 0))
        )
        self._counts = dict.fromkeys(Counts.model_fields, 0)

    def records(self) -> Generator[Records, None, None]:
        """The records that become documents, each with its split: train or validation."""
        for found in read_split(self._split, self._reading, self.seen):
            if isinstance(found, DeadLetter):
                self._ledgers[DEAD_LETTERS].add(listed(self._split, found.as_json()))
                self._counts["records"] += found.records
                self._counts["dead"] += found.records
                self._progress(found.size)
                continue
            self._counts["records"] += len(found)
            self._counts["replaced"] += sum(found.replaced or ())
            for lacks in found.lacks or ():
                for option in lacks:
                    self._counts[f"without_{option}"] += 1
            kept = self._kept(found)
            if len(kept):
                self._counts["documents"] += len(kept)
                self._counts["document_bytes"] += sum(map(len, kept.texts))
                yield replace(kept, splits=splits_of(kept, self._reading))
        if selects(self._reading):
            if next(self._statuses, None) is not None:
                raise self._not_as_surveyed("fewer texts")
            if content_surveyed(self._out, self._split) != self.seen.sha256:
                raise self._not_as_surveyed("other texts")

    def counts(self) -> Counts:
        return Counts(**self._counts)

    def _kept(self, records: Records) -> Records:
        """Those that become documents; the others are counted and listed."""
        if all(records.texts) and not selects(self._reading):
            return records
        kept = []
        for number, text in enumerate(records.texts):
            status = self._status(records, number, text)
            self._counts[status] += status != "documents"
            if status == "documents":
                kept.append(number)
            else:
                self._progress(records.sizes[number])
        return records if len(kept) == len(records) else records.take(kept)

    def _status(self, records: Records, number: int, text: Text) -> str:
        own: dict[str, Any] = {"id": records.ids[number]}
        if not text:
            self._ledgers[EMPTY_RECORDS].add(listed(self._split, records.place(number).as_json()) | own)
            return "empty"
        found_status = next(self._statuses, None)
        if found_status is None:
            raise self._not_as_surveyed("more texts")
        status, split, first = found_status
        if status == RecordStatus.DUPLICATE:
            own |= {"bytes": len(text), "first": {"split": split, "text": first}}
            self._ledgers[DUPLICATES].add(listed(self._split, records.place(number).as_json()) | own)
            return "duplicates"
        return "documents" if status == RecordStatus.KEPT else "not_sampled"

    def _not_as_surveyed(self, what: str) -> PipelineError:
        problem = f"split {self._split.name} has {what} than were surveyed"
        return PipelineError(f"{problem}; the input has changed; restore it, or give a new --out")


def listed(split: Split, entry: dict[str, Any]) -> dict[str, Any]:
    """What a ledger says, its line by a name that tells whether lines of earlier splits are still to be added."""
    if split.part and "line" in entry:
        entry[LINE_IN_SPLIT] = entry.pop("line")
    return entry


class _Shards(AbstractContextManager["_Shards"]):
    """The shards of a split while they are written: at most one open for train and one for validation.

    A shard is closed by the document with which it reaches ``limit`` bytes, or ROWS_OF_A_SHARD. A context: leaving it
    by an error removes what is not closed.
    """

    def __init__(self, job: Job, split: str, limit: int) -> None:
        self._job, self._split, self._limit = job, split, limit
        self._open: dict[SplitName, ShardWriter] = {}
        self._sizes: dict[SplitName, int] = {}
        self._rows: dict[SplitName, int] = {}
        self._closed: dict[SplitName, list[ShardEntry]] = {name: [] for name in SPLIT_NAMES}

    def add(self, item: tuple[Sequence[SplitName | None], Rows]) -> None:
        """Rows, each with the split that it belongs to."""
        splits, rows = item
        for name, own in rows.by(splits).items():
            assert name is not None, "decided when the record was counted"
            while len(own):
                own = self._add_to(name, own)

    def _add_to(self, name: SplitName, rows: Rows) -> Rows:
        """Write the rows that belong into the open shard; the rest is of the next one."""
        if name not in self._open:
            stem, output = shard_stem(self._split, len(self._closed[name])), self._job.output
            self._open[name] = ShardWriter(self._job.out / name, stem, output.format, output.sidecar)
            self._sizes[name] = self._rows[name] = 0
        sizes = self._sizes[name] + np.cumsum(rows.sizes)
        full = (sizes >= self._limit) | (self._rows[name] + np.arange(1, len(rows) + 1) >= ROWS_OF_A_SHARD)
        closing_row = np.flatnonzero(full & rows.last)[:1].tolist()
        end = closing_row[0] + 1 if closing_row else len(rows)
        self._open[name].add(rows if end == len(rows) else rows.slice(0, end))
        self._sizes[name] = int(sizes[end - 1])
        self._rows[name] += end
        if closing_row:
            self._close(name)
        return rows.slice(end, len(rows))

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
