"""Looking at the input once: which files there are, what identifies them, and where they can be cut."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.listing.finding import Found, dataset_folders, find
from pipeline.listing.survey import survey_file
from pipeline.plan import SourceFile, row_pieces, split_size
from pipeline.settings import PipelineError, ReadSettings
from shared.shards.dataset import open_dataset

__all__ = ["Listing", "dataset_folders", "list_inputs"]

OWN_FOLDER = "the folder of this run"


@dataclass(frozen=True)
class Listing:
    """The input as it is now."""

    files: tuple[SourceFile, ...]
    split_bytes: int
    skipped: dict[str, int]


def list_inputs(
    inputs: Sequence[Path | str],
    reading: ReadSettings,
    known: Sequence[SourceFile] = (),
    progress: Callable[[int], None] = lambda _: None,
    out: Path | None = None,
) -> Listing:
    """List, identify and survey the inputs, in the order given and sorted inside directories.

    Local files are hashed; of remote ones nothing but a footer is read. A file that ``known`` holds with the same size
    and modification time or version is not read again. ``progress`` is told the bytes as they are looked at.
    ``out``: the folder of the run, which is no part of its input even where it lies in it. Raises PipelineError for an
    input that cannot be used, DatasetError for a bad dataset.
    """
    skipped: Counter[str] = Counter()
    everything = [entry for text in inputs for entry in find(str(text), reading, skipped)]
    found = [entry for entry in everything if out is None or not _location(entry).startswith(f"{out}/")]
    if len(found) < len(everything):
        skipped[OWN_FOLDER] += 1
    sizes = [entry.stamp.size if isinstance(entry, Found) else _dataset_bytes(entry) for entry in found]
    cut_bytes = split_size(sum(sizes), reading.split_bytes)
    earlier = {(f.root, f.path, f.size, f.mtime_ns, f.version, f.split, f.cut_bytes): f for f in known}
    files: list[SourceFile] = []
    for entry in found:
        if isinstance(entry, Path):
            files += _shards(entry, cut_bytes, earlier)
        else:
            at = entry.stamp
            key = (entry.root, entry.path, at.size, at.mtime_ns, at.version, entry.split, cut_bytes)
            files.append(earlier.get(key) or survey_file(entry, cut_bytes, reading))
            progress(at.size)
    if not files:
        where = ", ".join(map(str, inputs))
        raise PipelineError(f"{where}: there is nothing to read" + ("; every file was left out" if skipped else ""))
    return Listing(tuple(files), cut_bytes, dict(sorted(skipped.items())))


def _location(entry: Found | Path) -> str:
    return entry.location if isinstance(entry, Found) else str(entry.resolve())


def _dataset_bytes(folder: Path) -> int:
    return open_dataset(folder).manifest.totals.bytes


def _shards(folder: Path, cut_bytes: int, earlier: Mapping[Any, SourceFile]) -> Iterator[SourceFile]:
    """The shards of one of our datasets, in order; the index of one that was planned with before is not read again."""
    dataset = open_dataset(folder)
    base, split = folder.resolve(), dataset.manifest.identity.split
    for number, entry in enumerate(dataset.manifest.shards):
        path = base / entry.name
        if not path.is_file():
            raise PipelineError(f"{path} is missing; the manifest lists it")
        root, name, found = str(base.parent), f"{base.name}/{entry.name}", path.stat()
        before = earlier.get((root, name, found.st_size, found.st_mtime_ns, "", split, cut_bytes))
        if before is not None and (before.sha256, before.shard) == (entry.sha256, number):
            yield before
            continue
        index = dataset.shard_index(number)
        yield SourceFile(
            root=root,
            path=name,
            kind="shard",
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            sha256=entry.sha256,
            pieces=row_pieces(index.bytes.tolist(), np.flatnonzero(index.part == 0).tolist(), cut_bytes),
            cut_bytes=cut_bytes,
            shard=number,
            split=split,
        )
