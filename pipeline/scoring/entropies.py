"""Entropies of chosen documents, to be read as often as needed in bounded memory: from a sidecar, or scored once."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

from pipeline.read.formats.datasets import documents_at
from pipeline.records import chunks_of
from pipeline.scoring.load_scorer import load_scorer
from pipeline.settings import ScoringSettings
from shared.errors import DatasetError
from shared.io.progress import ByteProgress
from shared.patching import PatchingSettings
from shared.patching.grid import dequantise, quantise
from shared.shards.dataset import Dataset
from shared.shards.manifest import DatasetIdentity, NumericsClass
from shared.vocabulary import BOS, byte_tokens

if TYPE_CHECKING:
    from shared.models.scoring import Inputs, Scorer

PIECE = 2**20
"""Entropies that are read at a time."""


@dataclass(frozen=True)
class Documents:
    """Documents of one dataset that have text, in its order."""

    dataset: Dataset
    starts: np.ndarray
    """int64 [N], the row of the dataset in which each begins."""
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
        ends = np.flatnonzero(self.dataset.index.last) + 1
        return ends[np.searchsorted(ends, self.starts, side="right")]


def documents_of(dataset: Dataset) -> Documents:
    """All documents that have text. Raises DatasetError."""
    if specials := dataset.manifest.identity.specials:
        raise DatasetError(
            f"{dataset.folder} has the special ids {', '.join(specials)}, which begin patches by themselves; "
            "calibrate on plain text, what the model was first trained on"
        )
    index = dataset.index
    starts = np.flatnonzero(index.part == 0)
    sizes = np.add.reduceat(index.bytes, starts) if len(starts) else starts
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    return Documents(dataset, starts, sizes, index.subset[starts])


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
        dataset, index = chosen.dataset, chosen.dataset.index
        held, values = (-1, -1), [np.zeros(0, np.float32)]
        for number, start, stop in zip(numbers.tolist(), chosen.starts.tolist(), chosen.stops.tolist()):
            for row in range(start, stop):
                at = int(index.shard[row]), int(index.batch[row])
                if at != held:
                    held, values = at, dataset.entropies(*at)
                found = values[int(index.row[row])]
                if len(found) != (wanted := int(index.bytes[row]) + (row == start)):
                    raise DatasetError(
                        f"{dataset.shard_path(at[0])}: batch {at[1]} row {int(index.row[row])} has {len(found)} "
                        f"entropies, its text needs {wanted}"
                    )
                nats = dequantise(found) if found.dtype == np.uint8 else found
                yield Piece(number, nats, row == start, row == stop - 1)


class ScoredEntropies:
    """Entropies that a model gives, kept in a nameless file that is gone with this object."""

    def __init__(self, documents: Documents, scorer: "Scorer", folder: Path, quantised: bool) -> None:
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


def _inputs(documents: Documents) -> "Iterator[Inputs]":
    """Documents of plain text, as the scorer reads them."""
    from shared.models.scoring import Inputs

    for record in documents_at(documents.dataset, documents.starts, documents.stops):
        body = map(byte_tokens, chunks_of(record.text))
        yield Inputs(record.tokens + 1, chain([np.array([BOS], np.int16)], body))


class EntropySource:
    """Where entropies come from: a dataset that keeps those of the model, or the model, loaded when it is needed."""

    def __init__(self, entropy_model: Path, sha256: str, scoring: ScoringSettings, folder: Path) -> None:
        """``entropy_model``: folder of the entropy model, ``folder``: for the entropies that are scored."""
        self.sha256 = sha256
        self.numerics: NumericsClass | None = None
        """Of the entropies that were opened first."""
        self._entropy_model, self._scoring, self._folder = entropy_model, scoring, folder
        self._scorer: Scorer | None = None

    def is_kept(self, dataset: DatasetIdentity, draft: PatchingSettings) -> bool:
        """Whether a dataset's sidecar decides as the model itself would."""
        if dataset.entropy_model is None or dataset.entropy_model.sha256 != self.sha256:
            return False
        keys = {"dtype", "stream_length", "threads"}
        if dataset.entropy_model.numerics.model_dump(include=keys) != self._scoring.model_dump(include=keys):
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
            self._scorer, numerics = load_scorer(self._entropy_model, self._scoring)
            self.numerics = self.numerics or numerics
        return ScoredEntropies(documents, self._scorer, self._folder, draft.grid and draft.rule == "entropy")
