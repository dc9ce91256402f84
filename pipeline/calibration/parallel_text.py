"""Documents that say the same in several subsets: which they are, and how many patches each subset needs for them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.calibration.patching_file import ParityFigures
from pipeline.scoring.entropies import Documents, place_of
from pipeline.settings import PipelineError
from shared.io.display.tables import aligned
from shared.io.files.json_reader import parse_json

NO_KEY = 0


@dataclass(frozen=True)
class Pairs:
    """Documents of one subset, and the ones that say the same in the subset that it follows."""

    documents: np.ndarray
    """int64 [N], their numbers."""
    partners: np.ndarray
    """int64 [N], the number of each one's partner."""


def parallel_key(by: str, identifier: str, subset: str, meta: str | None) -> str | None:
    """What a document has in common with those that say the same in other subsets; None if it has no such thing.

    ``by``: ``id`` is the document's id without the subset's name in it, ``id:SEP`` the id before its last SEP, anything
    else a column of the JSON in ``meta``, which has none where it is not JSON.
    """
    if by == "id":
        return _without_word(identifier, subset)
    if by.startswith("id:"):
        key, separator, _ = identifier.rpartition(by.removeprefix("id:"))
        return key if separator else None
    try:
        fields = parse_json(meta) if meta is not None else {}
    except ValueError:  # of a shard that others wrote: ours are checked when they are written
        fields = {}
    value = fields.get(by) if isinstance(fields, dict) else None
    return None if value is None else json.dumps(value, sort_keys=True)


def _without_word(text: str, word: str) -> str | None:
    """The text without the first place where a word stands between ends, punctuation or spaces."""
    at = text.find(word) if word else -1
    while at >= 0:
        end = at + len(word)
        if not text[at - 1 : at].isalnum() and not text[end : end + 1].isalnum():
            return text[:at] + text[end:]
        at = text.find(word, at + 1)
    return None


def parallel_keys(documents: Documents, by: str) -> np.ndarray:
    """uint64 [N]: hash of the key of each document; NO_KEY where there is none.

    Raises PipelineError when two of a subset have the same; DatasetError.
    """
    dataset = documents.dataset
    keys = np.zeros(len(documents), np.uint64)
    held, columns = (-1, -1), None
    for number, start in enumerate(documents.starts.tolist()):
        *at, row = place_of(dataset, start)
        if columns is None or tuple(at) != held:
            held = at[0], at[1]
            columns = dataset.batch(*held)
        key = parallel_key(by, columns.id(row), columns.subset(row), columns.meta(row))
        if key is not None:
            keys[number] = max(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"), NO_KEY + 1)
    order = np.lexsort((keys, documents.subset))
    alike = (np.diff(keys[order]) == 0) & (np.diff(documents.subset[order]) == 0) & (keys[order][1:] != NO_KEY)
    if alike.any():
        first, second = (_id(documents, int(order[np.argmax(alike) + more])) for more in (0, 1))
        name = documents.names[documents.subset[order[np.argmax(alike)]]]
        raise PipelineError(
            f"--parity {by}: in subset {name!r} of {dataset.folder} the documents {first!r} and {second!r} have the "
            "same key; it must tell documents of a subset apart"
        )
    return keys


def pair(documents: Documents, keys: np.ndarray, pivot: str) -> dict[str, Pairs]:
    """The documents of each subset that the subset ``pivot`` has, too, by subset, those with none left out.

    ``keys`` uint64 [N].
    """
    if pivot not in documents.names:
        return {}
    keyed = keys != NO_KEY
    own = np.flatnonzero(keyed & (documents.subset == documents.names.index(pivot)))
    pairs = {}
    for code, name in enumerate(documents.names):
        if name != pivot:
            others = np.flatnonzero(keyed & (documents.subset == code))
            _, left, right = np.intersect1d(keys[others], keys[own], assume_unique=True, return_indices=True)
            if len(left):
                pairs[name] = Pairs(others[left], own[right])
    return pairs


def figures(
    documents: Documents, pairs: Pairs, before: np.ndarray, after: np.ndarray, held_out: float | None
) -> ParityFigures:
    """What parity has changed; ``before`` and ``after``: int64 [N] patches of every document."""
    size = int(documents.bytes[pairs.documents].sum())
    return ParityFigures(
        documents=len(pairs.documents),
        bytes=size,
        size_before=size / int(before[pairs.documents].sum()),
        size=size / int(after[pairs.documents].sum()),
        ratio_before=ratio(pairs, before),
        ratio=ratio(pairs, after),
        held_out=held_out,
    )


def ratio(pairs: Pairs, patches: np.ndarray) -> float:
    """Patches of a subset over those of its partners; ``patches``: int64 [N] of every document."""
    return int(patches[pairs.documents].sum()) / int(patches[pairs.partners].sum())


def table(rows: dict[str, ParityFigures], pivot: str) -> str:
    """A line for each subset."""
    heads = [
        "subset",
        "documents",
        "bytes",
        "bytes/patch before",
        "after",
        f"patches/{pivot} before",
        "after",
        "held out",
    ]
    lines = []
    for name, row in rows.items():
        held_out = "-" if row.held_out is None else f"{row.held_out:.3f}"
        sizes = [f"{row.size_before:.3f}", f"{row.size:.3f}", f"{row.ratio_before:.3f}", f"{row.ratio:.3f}", held_out]
        lines.append([name, f"{row.documents:,}", f"{row.bytes:,}", *sizes])
    return aligned(heads, lines)


def without_pairs(by: str, pivot: str, folder: Path, keys: np.ndarray) -> PipelineError:
    """What is wrong when no document of a dataset has a partner; ``keys`` uint64 [N] of all."""
    if (keys != NO_KEY).any():
        return PipelineError(f"--parity {by}: no document of {folder} has the same key as one of subset {pivot!r}")
    what = f"a column {by!r} (preprocess --meta keeps columns)"
    if by == "id":
        what = "an id with its subset's name in it"
    elif by.startswith("id:"):
        what = f"an id with {by.removeprefix('id:')!r} in it"
    return PipelineError(f"--parity {by}: no document of {folder} has {what}")


def _id(documents: Documents, number: int) -> str:
    shard, batch, row = place_of(documents.dataset, int(documents.starts[number]))
    return documents.dataset.batch(shard, batch).id(row)
