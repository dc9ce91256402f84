"""What a worker does with a split: the documents of the train split, counted into sorted runs.

FOLDER/counts/0000012-00003-000.run  and, when all are there, 0000012-00003.json
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from pipeline.counting.pairs import PairCounter
from pipeline.counting.runs import RunWriter, is_run, run_path
from pipeline.counting.settings import Counting
from pipeline.plan import Split, Unit
from pipeline.records import Records, content_digest
from pipeline.scoring.cut import Document
from pipeline.settings import Job
from pipeline.splits.marker import LEDGERS, MOST_MARKER_BYTES, Counted, Ledger
from pipeline.splits.process import Progress, Sorting
from shared.io.files.atomic import write_atomic
from shared.io.files.json_reader import read_bounded
from shared.shards.content import CONTENT_MODULUS
from shared.shards.manifest import Count, Sha256
from shared.vocabulary import BOS, EOS, byte_tokens, is_special

COUNTS_FOLDER = "counts"
_ENTRY_BYTES = 72
"""Of an entry while runs are added up."""
_END = np.array([EOS], np.int16)


class CountMarker(Counted, extra="forbid"):
    """A split that was counted."""

    content: Sha256
    """Sum over its documents of the train split of what `content_digest` says of them, modulo 2^256."""
    documents: Count
    """Of the train split."""
    bytes: Count
    """Of text in these."""
    pieces: Count
    runs: tuple[Count, ...]
    """Entries of each."""

    def paths(self, folder: Path) -> list[Path]:
        """Its runs."""
        return [run_path(folder / COUNTS_FOLDER / self.split, number) for number in range(len(self.runs))]


@dataclass(frozen=True)
class CountSplit:
    """Counts one split, and leaves a marker; a worker's process gets it with each task."""

    counting: Counting

    def __call__(self, job: Job, split: Unit, run: str, progress: Progress) -> None:
        """Raises PipelineError or DatasetError when the input is not what was planned."""
        assert isinstance(split, Split)
        counting, folder = self.counting, self.counting.folder / COUNTS_FOLDER
        counter = PairCounter(counting.order, counting.newline_reset)
        writer = RunWriter(folder / split.name, counting.entries(_ENTRY_BYTES))
        documents = size = content = 0
        with ExitStack() as stack:
            ledgers = {name: Ledger(job.out / name / f"{split.name}.jsonl", stack) for name in LEDGERS}
            sorting = Sorting(job, split, ledgers, progress)
            for records in sorting.records():
                own = _of_train(records)
                for tokens in token_stream(own):
                    for entries in counter.add(tokens):
                        writer.add(entries)
                documents += len(own)
                size += sum(map(len, own.texts))
                spans = own.spans or repeat(None)
                content += sum(int.from_bytes(content_digest(*record), "big") for record in zip(own.texts, spans))
                progress(sum(records.sizes))
        for entries in counter.finish():
            writer.add(entries)
        writer.close()
        marker = CountMarker(
            split=split.name,
            run=run,
            content=f"{content % CONTENT_MODULUS:064x}",
            counts=sorting.counts(),
            documents=documents,
            bytes=size,
            pieces=counter.pieces,
            runs=tuple(writer.written),
        )
        write_atomic(folder / f"{split.name}.json", marker.model_dump_json(indent=1) + "\n")


def read_count_marker(folder: Path, split: str, run: str) -> CountMarker | None:
    """The marker of a split, if it is there, of this run, and its runs as well."""
    try:
        text = read_bounded(folder / COUNTS_FOLDER / f"{split}.json", MOST_MARKER_BYTES)
        marker = CountMarker.model_validate_json(text)
    except (OSError, ValidationError):
        return None
    whole = all(is_run(path, entries) for path, entries in zip(marker.paths(folder), marker.runs))
    return marker if (marker.split, marker.run) == (split, run) and whole else None


def _of_train(records: Records) -> Records:
    assert records.splits is not None, "decided when the record was counted"
    if all(split == "train" for split in records.splits):
        return records
    return records.take([number for number, split in enumerate(records.splits) if split == "train"])


def token_stream(records: Records) -> Iterator[np.ndarray]:
    """int16 [n] each: the tokens of some records, each from BOS to EOS; short ones together, long ones in parts."""
    texts = [text for text in records.texts if isinstance(text, bytes)]
    if len(texts) == len(records) and records.spans is None:
        if texts:
            yield _joined(texts)
        return
    for record in records:
        document, done = Document(record), 0
        for tokens in document.inputs():
            yield tokens
            done += int(np.count_nonzero(~is_special(tokens)))
            document.drop(done)
        yield _END


def _joined(texts: list[bytes]) -> np.ndarray:
    """int16: whole documents of plain text, one after another."""
    tokens = byte_tokens(b"\0" + b"\0\0".join(texts) + b"\0")
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 2)
    tokens[ends - 1] = EOS
    tokens[np.append(0, ends[:-1])] = BOS
    return tokens
