"""Everything about a folder of targets that can be checked without the teacher."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shared.distillation.targets_folder import (
    SUFFIX,
    ShardArrays,
    ShardTargets,
    Targets,
    open_targets,
    targets_name,
)
from shared.errors import DatasetError, IdentityError
from shared.shards.cache import FileCache
from shared.shards.dataset import Dataset
from shared.vocabulary import VOCABULARY_SIZE

TOLERANCE = {"float16": 4e-3, "float32": 1e-4}
"""How far from 1 the sum of a target's probabilities may be: rounded to float16, ln p is off by up to 0.05% of it."""
TOGETHER = 1 << 16
"""Targets that are looked at together."""


def verify_targets(
    folder: Path | str, dataset: Dataset, progress: Callable[[int], object], cache: FileCache | None = None
) -> Iterator[str]:
    """What is wrong with the targets of a dataset, one line each. ``progress`` is called with targets checked.

    ``cache``: for those behind a URL.
    """
    try:
        targets = open_targets(folder, dataset, cache)
        listed = list(_unlisted_files(targets, dataset))
    except (DatasetError, IdentityError) as error:
        yield str(error)
        return
    yield from listed
    counts, sizes, largest, flops = 0, 0, 0.0, 0.0
    for number, shard in enumerate(targets.shards()):
        problem = targets.damaged_file(number)
        try:
            yield from [problem] if problem is not None else _shard_problems(targets, number, shard, dataset, progress)
        except (DatasetError, IdentityError) as error:
            yield str(error)
        counts, sizes = counts + shard.targets, sizes + shard.bytes
        largest, flops = max(largest, shard.largest_rest), flops + shard.flops
    manifest = targets.manifest
    for name, found, wanted in (
        ("targets", counts, manifest.targets),
        ("targets", dataset.totals.tokens, manifest.targets),
        ("documents", dataset.totals.documents, manifest.documents),
        ("bytes", dataset.totals.bytes, manifest.bytes),
        ("bytes_on_disk", sizes, manifest.bytes_on_disk),
        ("largest_rest", largest, manifest.largest_rest),
        ("flops", flops, manifest.flops),
    ):
        if found != wanted:
            yield f"{targets.where}: {name} of all shards: {found}, targets.json says {wanted}"


def _unlisted_files(targets: Targets, dataset: Dataset) -> Iterator[str]:
    """Files in a folder of this machine that belong to no shard of the dataset."""
    known = {targets_name(name) for name, _ in dataset.content_hashes()}
    if not isinstance(targets.where, Path):
        return
    for name in sorted(path.name for path in targets.where.glob(f"*{SUFFIX}")):
        if name not in known:
            yield f"{targets.where}/{name}: no shard of {dataset.where} has this name"


def _shard_problems(
    targets: Targets, number: int, shard: ShardTargets, dataset: Dataset, progress: Callable[[int], object]
) -> Iterator[str]:
    """The first wrong target of a shard whose file is whole, and figures that are not those of its targets."""
    path = f"{targets.where}/{shard.name}"
    places, arrays = targets.arrays(number)
    symbols, largest = VOCABULARY_SIZE + len(dataset.specials), 0.0
    for first in range(0, shard.targets, TOGETHER):
        part = slice(first, first + TOGETHER)
        for wrong, what in _wrong_targets(arrays, part, symbols, TOLERANCE[targets.identity.form.dtype]):
            document = int(np.searchsorted(places.documents, first + wrong, side="right")) - 1
            yield f"{path}: target {first + wrong - places.documents[document]} of document {document} {what}"
            return
        largest = max(largest, float(np.exp(arrays.rest[part].astype(np.float64)).max(initial=0.0)))
        progress(len(arrays.rest[part]))
    if largest != shard.largest_rest:
        yield f"{path}: largest_rest is {largest}, its table says {shard.largest_rest}"


def _wrong_targets(arrays: ShardArrays, part: slice, symbols: int, tolerance: float) -> Iterator[tuple[int, str]]:
    """The first target of a part for each thing that may be wrong with it."""
    ids, logs = arrays.symbols[part], arrays.logs[part].astype(np.float64)
    sums = np.exp(logs).sum(1) + np.exp(arrays.end[part].astype(np.float64)) + np.exp(arrays.rest[part].astype(float))
    for broken, what in (
        (((ids < 0) | (ids >= symbols)).any(1), f"has a symbol that is none of the {symbols}"),
        ((np.diff(np.sort(ids, 1), axis=1) == 0).any(1), "has a symbol twice"),
        (~(logs[:, 1:] <= logs[:, :-1]).all(1), "has symbols that are not the most probable first"),
        (~(np.abs(sums - 1) <= tolerance), "has probabilities that do not sum to 1"),
    ):
        for wrong in np.flatnonzero(broken)[:1].tolist():
            yield wrong, what
