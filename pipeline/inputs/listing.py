"""Looking at the input once: which files there are, what identifies them, and where they can be cut."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.inputs.finding import OWN_FOLDER, Found, Search, seen
from pipeline.inputs.survey import survey_file
from pipeline.plan import Plan, SourceFile, group, row_pieces, split_size
from pipeline.read.format_names import Format
from pipeline.settings import PipelineError, ReadSettings
from pipeline.stamp import Stamp
from shared.io.storage import without_query
from shared.shards.open import open_dataset


def list_inputs(
    inputs: Sequence[Path | str],
    reading: ReadSettings,
    known: Sequence[SourceFile] = (),
    progress: Callable[[int], None] = lambda _: None,
    out: Path | None = None,
) -> Plan:
    """List, identify and survey the inputs, in the order given and sorted inside directories, and group them in splits.

    Local files are hashed; of remote ones nothing but a footer is read, and the beginning where the name is unclear. A
    file that ``known`` holds with the same stamp is not read again. ``progress`` is told the bytes as they are looked
    at. ``out``: the folder of the run, which is no part of its input even where it lies in it. Raises PipelineError for
    an input that cannot be used, DatasetError for a bad dataset.
    """
    earlier = {(file.root, file.path): file for file in known}

    def format_before(root: str, path: str, at: Stamp) -> Format | None:
        file = earlier.get((root, path))
        return Format(file.kind, file.compression) if file is not None and file.stamp == at else None

    search = Search(reading, format_before, out)
    everything = [entry for text in inputs for entry in search.find(str(text))]
    found = [entry for entry in everything if out is None or not _location(entry).startswith(f"{out}/")]
    if len(found) < len(everything):
        search.left_out.add(OWN_FOLDER, str(out))
    cut_bytes = split_size(sum(map(_bytes, found)), reading.split_bytes)
    files: list[SourceFile] = []
    for entry in found:
        if isinstance(entry, Path):
            files += _shards(entry, cut_bytes, earlier)
        else:
            before = earlier.get((entry.root, entry.path))
            wanted = (entry.stamp, entry.format.kind, entry.split, entry.query, cut_bytes)
            if before is None or _surveyed(before) != wanted:
                before = survey_file(entry, cut_bytes, reading)
            files.append(before)
            progress(entry.stamp.size)
    if not files:
        where = ", ".join(without_query(str(text)) for text in inputs)
        raise PipelineError(f"{where}: there is nothing to read{seen(search.left_out) or ': no file is there'}")
    left_out = search.left_out
    return Plan(
        files=tuple(files),
        splits=group(files, cut_bytes),
        split_bytes=cut_bytes,
        skipped=dict(sorted(left_out.counts.items())),
        examples=dict(sorted(left_out.names.items())),
        idle=_idle(files, reading, left_out.globs),
    )


def _idle(files: Sequence[SourceFile], reading: ReadSettings, matched: Collection[str]) -> tuple[str, ...]:
    """The options that make no difference to what is read of these files."""
    found = [
        f"--{option} {glob}: it matches nothing in a directory"
        for option, globs in (("include", reading.include), ("exclude", reading.exclude))
        for glob in globs
        if glob not in matched
    ]
    if reading.document_bytes is not None and not any(file.kind == "text" for file in files):
        found.append("--document-bytes: it cuts text files, and there are none")
    if reading.subset_from == "directory" and not any("/" in file.path for file in files if file.kind != "shard"):
        found.append("--subset-from directory: no file lies in a folder below an input")
    return tuple(found)


def _surveyed(file: SourceFile) -> tuple[object, ...]:
    """All that was found out about a file, and what it was looked at for."""
    return file.stamp, file.kind, file.split, file.query, file.cut_bytes


def _bytes(entry: Found | Path) -> int:
    return entry.stamp.size if isinstance(entry, Found) else open_dataset(entry).manifest.totals.bytes


def _location(entry: Found | Path) -> str:
    return entry.location if isinstance(entry, Found) else str(entry.resolve())


def _shards(folder: Path, cut_bytes: int, earlier: Mapping[tuple[str, str], SourceFile]) -> Iterator[SourceFile]:
    """The shards of one of our datasets, in order; the index of one that was planned with before is not read again."""
    dataset = open_dataset(folder)
    base, split = folder.resolve(), dataset.manifest.identity.split
    for number, entry in enumerate(dataset.shards()):
        path = base / entry.name
        if not path.is_file():
            raise PipelineError(f"{path} is missing; the manifest lists it")
        root, name, at = str(base.parent), f"{base.name}/{entry.name}", Stamp.of(path.stat())
        before = earlier.get((root, name))
        wanted = (at, "shard", split, "", cut_bytes, entry.sha256, number)
        if before is not None and (*_surveyed(before), before.sha256, before.shard) == wanted:
            yield before
            continue
        index = dataset.shard_index(number)
        yield SourceFile(
            root=root,
            path=name,
            kind="shard",
            **vars(at),
            sha256=entry.sha256,
            pieces=row_pieces(index.bytes.tolist(), np.flatnonzero(index.part == 0).tolist(), cut_bytes),
            cut_bytes=cut_bytes,
            shard=number,
            split=split,
        )
