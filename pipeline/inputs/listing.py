"""Which files an input has, as a plan: nothing is read of them but where a name says nothing of the format."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.files import KINDS, Files, SourceFile
from pipeline.inputs.finding import OWN_FOLDER, Found, Search, seen
from pipeline.plan import Plan, split_size
from pipeline.settings import PipelineError, ReadSettings
from pipeline.stamp import Stamp
from shared.io.stores.locations import without_query
from shared.shards.document import DEFAULT_SUBSET
from shared.shards.open import open_dataset

NAMED_BEFORE = "an earlier input has them"


def list_inputs(
    inputs: Sequence[Path | str],
    reading: ReadSettings,
    out: Path | None = None,
) -> Plan:
    """List the inputs, in the order given and sorted inside directories, and cut them into splits by size.

    A file that several of them have is listed once, where it comes first.
    ``out``: the folder of the run, left out where it lies inside the input. Raises PipelineError for an
    input that cannot be used, DatasetError for a bad dataset.
    """
    search = Search(reading, out)

    def found() -> Iterator[SourceFile]:
        for text in inputs:
            for entry in search.find(str(text)):
                if out is not None and _location(entry).startswith(f"{out}/"):
                    search.left_out.add(OWN_FOLDER, str(out))
                elif isinstance(entry, Path):
                    yield from _shards(entry)
                else:
                    yield _file(entry)

    files = Files.of(found())
    if len(inputs) > 1 and (again := files.named_before()).any():
        for number in np.flatnonzero(again).tolist():
            search.left_out.add(NAMED_BEFORE, files[number].path)
        files = files.without(again)
    if not len(files):
        where = ", ".join(without_query(str(text)) for text in inputs)
        raise PipelineError(f"{where}: there is nothing to read{seen(search.left_out) or ': no file is there'}")
    left_out = search.left_out
    return Plan(
        files,
        split_size(int(files.column("span").sum()), reading.split_bytes),
        skipped=dict(sorted(left_out.counts.items())),
        examples=dict(sorted(left_out.names.items())),
        idle=_idle(files, reading, left_out.globs),
    )


def _idle(files: Files, reading: ReadSettings, matched: Collection[str]) -> tuple[str, ...]:
    """The options that make no difference to what is read of these files."""
    found = [
        f"--{option} {glob}: it matches nothing in a directory"
        for option, globs in (("include", reading.include), ("exclude", reading.exclude))
        for glob in globs
        if glob not in matched
    ]
    if reading.document_bytes is not None and not (files.column("kind") == KINDS.index("text")).any():
        found.append("--document-bytes: it cuts text files, and there are none")
    if reading.subset_from == "directory":
        shards = files.column("kind") == KINDS.index("shard")
        if not np.any(files.below_a_folder() & ~shards):
            found.append(
                "--subset-from directory: no file lies in a folder below an input, so every record is in the "
                f"subset {DEFAULT_SUBSET!r}; give the folder above these folders as the input"
            )
    return tuple(found)


def _location(entry: Found | Path) -> str:
    return entry.location if isinstance(entry, Found) else str(entry.resolve())


def _file(found: Found) -> SourceFile:
    return SourceFile(
        root=found.root,
        path=found.path,
        kind=found.format.kind,
        compression=found.format.compression,
        stamp=found.stamp,
        span=found.stamp.size,
        split=found.split,
        query=found.query,
    )


def _shards(folder: Path) -> Iterator[SourceFile]:
    """The shards of one of our datasets, in order."""
    dataset = open_dataset(folder)
    base, split = folder.resolve(), dataset.manifest.identity.split
    for number, entry in enumerate(dataset.shards()):
        path = base / entry.name
        if not path.is_file():
            raise PipelineError(f"{path} is missing; the manifest lists it")
        yield SourceFile(
            root=str(base.parent),
            path=f"{base.name}/{entry.name}",
            kind="shard",
            stamp=Stamp.of(path.stat()),
            span=entry.totals.bytes,
            sha256=entry.sha256,
            shard=number,
            split=split,
        )
