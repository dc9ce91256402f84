"""Entropies of chosen documents, to be read as often as needed in bounded memory: from a sidecar, or scored once."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from pipeline.read.formats.datasets import documents_at
from pipeline.records import chunks_of
from pipeline.scoring.load_scorer import load_scorer
from pipeline.scoring.options import scoring_of
from pipeline.settings import ScoringSettings
from shared.errors import DatasetError
from shared.inputs import DocumentScorer, Inputs
from shared.io.display.progress import ByteProgress
from shared.patching import PatchingSettings
from shared.patching.grid import dequantise, quantise
from shared.randomness import Permutation, stream_key
from shared.shards.dataset import Dataset
from shared.shards.manifest import DatasetIdentity, NumericsClass
from shared.shards.runs import ROW_BITS, Runs
from shared.vocabulary import BOS, byte_tokens

PIECE = 2**20
"""Entropies that are read at a time."""
MOST_DOCUMENTS = 2**22
"""That samples are drawn from, about; of a larger dataset these come from runs that are drawn at random (law 9)."""
FEWEST_DOCUMENTS = 2**12
"""Of each subset, so that a rare one has enough for a threshold of its own."""
DRAWN_TOGETHER = 2**12
ROW_MASK = 2**ROW_BITS - 1


@dataclass(frozen=True)
class Documents:
    """Documents of one dataset that have text, in its order."""

    dataset: Dataset
    starts: np.ndarray
    """int64 [N], where each begins: shard * 2**ROW_BITS + row."""
    bytes: np.ndarray
    """int64 [N], of text."""
    subset: np.ndarray
    """int32 [N], code into the dataset's subset_names."""

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, numbers: np.ndarray) -> "Documents":
        """Those of these numbers, int64 in order."""
        return Documents(self.dataset, self.starts[numbers], self.bytes[numbers], self.subset[numbers])

    @property
    def names(self) -> tuple[str, ...]:
        return self.dataset.subset_names

    @cached_property
    def stops(self) -> np.ndarray:
        """int64 [N], the row after the last of each."""
        shards = self.starts >> ROW_BITS
        stops = np.zeros_like(self.starts)
        for shard in np.unique(shards).tolist():
            own, before = shards == shard, shard << ROW_BITS
            ends = np.flatnonzero(self.dataset.shard_index(shard).last) + 1 + before
            stops[own] = ends[np.searchsorted(ends, self.starts[own], side="right")]
        return stops


def documents_of(dataset: Dataset) -> Documents:
    """All documents that have text, of a large dataset those of some runs, drawn at random. Raises DatasetError."""
    if specials := dataset.manifest.identity.specials:
        raise DatasetError(
            f"{dataset.folder} has the special ids {', '.join(specials)}, which begin patches by themselves; "
            "calibrate on plain text, what the model was first trained on"
        )
    chosen = [_drawn(dataset.runs(code), _share(dataset, code), code) for code in range(len(dataset.subset_names))]
    places = np.concatenate([np.zeros((0, 4), np.int64), *chosen])
    shards, columns = places[:, 0], [np.zeros((3, 0), np.int64)]
    for shard in np.unique(shards).tolist():
        index = dataset.shard_index(shard)
        for _, row, rows, code in places[shards == shard].tolist():
            starts = row + np.flatnonzero(index.part[row : row + rows] == 0)
            sizes = np.add.reduceat(index.bytes[: row + rows], starts, dtype=np.int64)
            columns.append(np.stack([starts + (shard << ROW_BITS), sizes, np.full_like(starts, code)])[:, sizes > 0])
    starts, sizes, subsets = np.concatenate(columns, axis=1)
    order = np.argsort(starts)
    return Documents(dataset, starts[order], sizes[order], subsets[order].astype(np.int32))


def place_of(dataset: Dataset, reference: int) -> tuple[int, int, int]:
    """Shard, batch, and row in the batch of a reference."""
    shard, row = reference >> ROW_BITS, reference & ROW_MASK
    index = dataset.shard_index(shard)
    return shard, int(index.batch[row]), int(index.row[row])


def _share(dataset: Dataset, subset: int) -> int:
    """Documents of a subset among MOST_DOCUMENTS of the dataset; at least FEWEST_DOCUMENTS."""
    own, whole = list(dataset.subsets.values())[subset].documents, dataset.totals.documents
    return own if whole <= MOST_DOCUMENTS else max(own * MOST_DOCUMENTS // whole, FEWEST_DOCUMENTS)


def _drawn(runs: Runs, documents: int, subset: int) -> np.ndarray:
    """int64 [R, 4]: shard, first row, rows and subset of runs in a seeded order until they have so many documents."""
    order = Permutation(len(runs), stream_key(0, "documents", subset))
    chosen, held = [np.zeros(0, np.int64)], 0
    for first in range(0, len(runs), DRAWN_TOGETHER):
        some = order(np.arange(first, min(first + DRAWN_TOGETHER, len(runs))))
        before = held + np.cumsum(runs.documents[some], dtype=np.int64) - runs.documents[some]
        chosen.append(some[before < documents])
        held = int(before[-1] + runs.documents[some[-1]])
        if held >= documents:
            break
    numbers = np.concatenate(chosen)
    places = (runs.shard[numbers], runs.row[numbers], runs.rows[numbers], np.full_like(numbers, subset))
    return np.stack(places, axis=1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next entropies of a document. The pieces of a document follow one another."""

    document: int
    entropies: np.ndarray
    """float32 nats, one for each input token: that of BOS comes with the first piece."""
    first: bool
    last: bool


class Entropies(Protocol):
    """Entropies of some documents, numbered in order."""

    documents: Documents

    def pieces(self, numbers: np.ndarray) -> Iterator[Piece]:
        """Those of the documents of these numbers (int64, in order). Raises DatasetError."""
        ...


class StoredEntropies:
    """Entropies as a dataset's sidecar keeps them; of a uint8 sidecar the middle of each cell of its grid."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def pieces(self, numbers: np.ndarray) -> Iterator[Piece]:
        chosen = self.documents.take(numbers)
        dataset = chosen.dataset
        held, values = (-1, -1), [np.zeros(0, np.float32)]
        for number, start, stop in zip(numbers.tolist(), chosen.starts.tolist(), chosen.stops.tolist()):
            for place in range(start, stop):
                *at, row = place_of(dataset, place)
                if tuple(at) != held:
                    held = at[0], at[1]
                    values = dataset.entropies(*held)
                found = values[row]
                wanted = int(dataset.shard_index(held[0]).bytes[place & ROW_MASK]) + (place == start)
                if len(found) != wanted:
                    raise DatasetError(
                        f"{dataset.shard_path(held[0])}: batch {held[1]} row {row} has {len(found)} "
                        f"entropies, its text needs {wanted}"
                    )
                nats = dequantise(found) if found.dtype == np.uint8 else found
                yield Piece(number, nats, place == start, place == stop - 1)


class ScoredEntropies:
    """Entropies that a model gives, kept in a nameless file that is gone with this object."""

    def __init__(self, documents: Documents, scorer: DocumentScorer, folder: Path, quantised: bool) -> None:
        """Score all documents. ``quantised``: keep of each only its place on the sidecar grid.

        Raises DatasetError.
        """
        self.documents = documents
        self._quantised = quantised
        self._dtype = np.dtype(np.uint8 if quantised else np.float32)
        self._begins = np.append(0, np.cumsum(documents.bytes + 1)) * self._dtype.itemsize
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as we do)
        with ByteProgress("Scoring", int(documents.bytes.sum())) as progress:
            begins = True
            for nats, last in scorer.score_pieces(_inputs(documents)):
                self._file.write((quantise(nats) if quantised else nats).tobytes())
                progress.update(len(nats) - begins)  # that of BOS is of no byte
                begins = last
        self._file.flush()
        written = os.fstat(self._file.fileno()).st_size
        assert written == self._begins[-1], f"{written} bytes of entropies, {self._begins[-1]} expected"

    def pieces(self, numbers: np.ndarray) -> Iterator[Piece]:
        for number in numbers.tolist():
            begin, end = int(self._begins[number]), int(self._begins[number + 1])
            step = PIECE * self._dtype.itemsize
            for at in range(begin, end, step):
                data = os.pread(self._file.fileno(), min(step, end - at), at)
                values = np.frombuffer(data, self._dtype)
                nats = dequantise(values) if self._quantised else values
                yield Piece(number, nats, at == begin, at + step >= end)


def _inputs(documents: Documents) -> Iterator[Inputs]:
    """Documents of plain text, as the scorer reads them."""
    for record in documents_at(documents.dataset, documents.starts, documents.stops):
        body = map(byte_tokens, chunks_of(record.text))
        yield Inputs(record.tokens + 1, chain([np.array([BOS], np.int16)], body))


class EntropySource:
    """Where entropies come from: a dataset that keeps those of the model, or the model, loaded when it is needed."""

    def __init__(self, entropy_model: Path, sha256: str, scoring: ScoringSettings, folder: Path) -> None:
        """``entropy_model``: folder of the entropy model, ``folder``: for the entropies that are scored."""
        self.sha256 = sha256
        self.numerics: NumericsClass | None = None
        """Of the entropies that were opened first; None of those of a model that counts."""
        self._entropy_model, self._scoring, self._folder = entropy_model, scoring, folder
        self._scorer: DocumentScorer | None = None

    def is_kept(self, dataset: DatasetIdentity, draft: PatchingSettings) -> bool:
        """Whether a dataset's sidecar decides as the model itself would."""
        if dataset.entropy_model is None or dataset.entropy_model.sha256 != self.sha256:
            return False
        keys, numerics = {"dtype", "stream_length", "threads"}, dataset.entropy_model.numerics
        if numerics is not None and numerics.model_dump(include=keys) != self._scoring.model_dump(include=keys):
            return False
        return dataset.decides(draft)

    def entropies(self, documents: Documents, draft: PatchingSettings) -> Entropies:
        """Those of these documents. Raises DatasetError, ModelFileError or PipelineError."""
        identity = documents.dataset.manifest.identity
        if self.is_kept(identity, draft):
            assert identity.entropy_model is not None
            self.numerics = self.numerics or identity.entropy_model.numerics
            return StoredEntropies(documents)
        if self._scorer is None:
            self._scorer, numerics = load_scorer(self._entropy_model, scoring_of(self._entropy_model, self._scoring))
            self.numerics = self.numerics or numerics
        return ScoredEntropies(documents, self._scorer, self._folder, draft.grid and draft.rule == "entropy")
