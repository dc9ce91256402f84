"""The one unit of work: a split becomes shards, a list of what was left out, and last a marker.

The product follows from the split, the job and the numerics class alone: not from who does it, when, or how often.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cutting import document_rows
from pipeline.marker import (
    DEAD_LETTERS,
    EMPTY_RECORDS,
    Counts,
    Ledger,
    Marker,
    shard_stem,
    split_name,
    write_marker,
)
from pipeline.plan import LARGEST_SPLIT, Plan, Split
from pipeline.read import read_split
from pipeline.records import DeadLetter, Record, sampled, split_of
from pipeline.settings import Job, SplitName
from shared.shards.document import Row
from shared.shards.manifest import ShardEntry
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens

if TYPE_CHECKING:
    from shared.scoring import Scorer

Progress = Callable[[int], None]


def process_split(
    job: Job, plan: Plan, number: int, run: str, scorer: "Scorer | None" = None, progress: Progress = lambda _: None
) -> Marker:
    """Read, score, cut and write one split, and commit it. ``progress`` is told the input bytes as they are used up.

    Raises PipelineError or DatasetError when the input is not what was planned.
    """
    split = plan.splits[number]
    name = split_name(number)
    with ExitStack() as stack:
        dead = Ledger(job.out / DEAD_LETTERS / f"{name}.jsonl", stack)
        empty = Ledger(job.out / EMPTY_RECORDS / f"{name}.jsonl", stack)
        sorting = _Sorting(job, plan, split, dead, empty, progress)
        shards = _write_shards(job, number, max(plan.split_bytes, LARGEST_SPLIT), scored(sorting.records(), scorer))
    marker = Marker(split=number, run=run, counts=sorting.counts(), shards=shards)
    write_marker(job.out, marker)
    return marker


class _Sorting:
    """Gives every record of a split its fate, and counts them."""

    def __init__(self, job: Job, plan: Plan, split: Split, dead: Ledger, empty: Ledger, progress: Progress) -> None:
        self._reading, self._plan, self._split = job.reading, plan, split
        self._dead_letters, self._empty_records, self._progress = dead, empty, progress
        self._counts = dict.fromkeys(Counts.model_fields, 0)

    def records(self) -> Iterator[Record]:
        """The records that become documents."""
        for found in read_split(self._plan, self._split, self._reading):
            self._counts["records"] += 1
            fate = self._fate(found)
            self._counts[fate] += 1
            if isinstance(found, Record) and fate == "documents":
                self._counts["document_bytes"] += len(found.text)
                yield found
            self._progress(found.size)

    def counts(self) -> Counts:
        return Counts(**self._counts)

    def _fate(self, found: Record | DeadLetter) -> str:
        if isinstance(found, DeadLetter):
            self._dead_letters.add(found.as_json())
            return "dead"
        if not found.text:
            self._empty_records.add({**found.place.as_json(), "id": found.id})
            return "empty"
        if not sampled(found, self._reading.seed, self._plan.sample_threshold):
            return "not_sampled"
        return "documents"


def scored(records: Iterable[Record], scorer: "Scorer | None") -> Iterator[tuple[Record, np.ndarray | None]]:
    """Each record with its entropies, float32 [n + 1] nats, or None without a scorer."""
    if scorer is None:
        yield from ((record, None) for record in records)
        return
    waiting: deque[Record] = deque()

    def tokens() -> Iterator[np.ndarray]:
        for record in records:
            waiting.append(record)
            yield document_tokens(record.text)

    for entropies in scorer.score(tokens()):
        yield waiting.popleft(), entropies


def _write_shards(
    job: Job, split: int, limit: int, documents: Iterator[tuple[Record, np.ndarray | None]]
) -> dict[SplitName, list[ShardEntry]]:
    """Write the documents of a split: train streams through, validation, the small part, is collected on the way.

    A shard is closed by the document with which it reaches ``limit`` bytes: that and one document bound the memory.
    """
    shards: dict[SplitName, list[ShardEntry]] = {"train": [], "validation": []}
    validation: list[Row] = []
    held = 0

    def write(name: SplitName, rows: Iterable[Row]) -> None:
        stem = shard_stem(split, len(shards[name]))
        shards[name].append(write_shard(job.out / name, stem, rows, job.output.format, job.output.sidecar))

    def train() -> Iterator[tuple[Row, int]]:
        """Train rows, each with the bytes of its document if it is the last one's end."""
        nonlocal validation, held
        for record, entropies in documents:
            rows = list(document_rows(record, job.output.patching, entropies))
            if split_of(record, job.reading) == "train":
                yield from ((row, len(record.text) if row is rows[-1] else 0) for row in rows)
                continue
            validation += rows
            held += len(record.text)
            if held >= limit:
                write("validation", validation)
                validation, held = [], 0

    def one_shard(first: tuple[Row, int]) -> Iterator[Row]:
        size = 0
        for row, ended in chain([first], stream):
            yield row
            size += ended
            if ended and size >= limit:
                return

    stream = train()
    for first in stream:
        write("train", one_shard(first))
    if validation:
        write("validation", validation)
    return shards
