"""Datasets that keep entropies, with documents of every kind, and what other thresholds make of them."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from helpers.pack_examples import ALPHABET, SPECIALS, random_spans
from shared.patching.grid import GRID
from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.in_memory import whole_documents
from shared.shards.manifest import DatasetIdentity, ShardFormat, SidecarType
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard

BYTES = np.append(ALPHABET, np.frombuffer("é€".encode() * 2, np.uint8))
"""With parts of characters of several bytes."""
STORED = PatchingSettings(rule="entropy", theta=3.0, max_length=16).on_grid()


def with_thetas(theta: float, thetas: dict[str, float] | None = None, **changed: object) -> PatchingSettings:
    """Rule entropy with thresholds on the grid."""
    return PatchingSettings.model_validate(
        STORED.model_dump() | {"theta": theta, "thetas": thetas or {}, "grid": False} | changed
    ).on_grid()


def in_pieces(row: Row, cuts: list[int]) -> list[Row]:
    """A document of plain text as rows, cut after patches of these numbers."""
    assert row.patch_lengths is not None
    assert row.entropies is not None
    ends = np.cumsum(row.patch_lengths.astype(np.int64))
    bounds = [0, *ends[cuts].tolist(), len(row.text) + 2]
    found = []
    for part, (low, high) in enumerate(pairwise(bounds)):
        last = part == len(cuts)
        lengths = row.patch_lengths[(ends > low) & (ends <= high)]
        text = row.text[max(low - 1, 0) : high - 1 - last]
        found.append(Row(row.id, row.subset, text, part, lengths, row.entropies[low : high - last]))
    return found


def scored_document(number: int, rng: np.random.Generator, specials: bool, patching: PatchingSettings) -> list[Row]:
    """A document of up to 90 bytes, one in four in up to four rows, some of which are shorter than a patch."""
    text = rng.choice(BYTES, rng.integers(0, 90)).tobytes()
    spans = random_spans(len(text), rng) if specials and number % 3 == 0 else None
    row = Row(str(number), ("a", "b")[number % 2], text, spans=spans)
    tokens = row.tokens(True)
    entropies = (rng.random(len(tokens) - 1) * 5).astype(np.float32)
    entropies[rng.integers(0, len(entropies), 3)] = rng.choice(GRID, 3)  # on a threshold of the grid: not above it
    lengths = patch_lengths(tokens, patching.for_subset(row.subset), entropies)
    whole = Row(row.id, row.subset, text, 0, lengths, entropies, spans=spans)
    inside = len(lengths) - 1 - (lengths[-1] == 1)  # patches after which a row may end
    if spans is not None or number % 4 or inside < 3:
        return [whole]
    cuts = np.sort(rng.choice(np.arange(inside), min(3, inside), replace=False)).tolist()
    return in_pieces(whole, cuts)


def scored_dataset(
    folder: Path,
    seed: int,
    sidecar: SidecarType = "uint8",
    format: ShardFormat = "arrow",
    specials: bool = False,
    patching: PatchingSettings = STORED,
    count: int = 60,
    split: str = "train",
) -> Dataset:
    """Documents in three shards."""
    rng = np.random.default_rng(seed)
    documents = [scored_document(number, rng, specials, patching) for number in range(count)]
    entries = []
    for shard in range(3):
        rows = [row for document in documents[shard::3] for row in document]
        entries.append(write_shard(folder, f"shard-{shard:05d}", rows, format, sidecar))
    names = SPECIALS if specials else ()
    identity = DatasetIdentity.model_validate(
        {
            "split": split,
            "format": format,
            "sidecar": sidecar,
            "patching": patching,
            "source": "a test",
            "specials": names,
        }
    )
    commit_dataset(folder, identity, entries)
    return open_dataset(folder)


def cut_documents(dataset: Dataset, patching: PatchingSettings) -> list[Row]:
    """The documents in order, with the patches that other thresholds make of the entropies that are kept."""
    found = []
    for row in whole_documents(dataset, entropies=True):
        lengths = patch_lengths(row.tokens(True), patching.for_subset(row.subset), row.entropies)
        found.append(Row(row.id, row.subset, row.text, 0, lengths, spans=row.spans))
    return found
