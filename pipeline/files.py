"""The files of an input as a plan holds them: columns of a table, of which a row is an object while it is looked at."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.settings import SPLIT_NAMES, PipelineError, SplitName
from pipeline.stamp import Stamp
from shared.io.files.atomic import atomic_file
from shared.io.files.digests import canonical_json, file_sha256
from shared.io.stores.locations import is_url

TABLE_NAME = re.compile(r"files-[0-9a-f]{64}\.arrow")
"""Of the file of a table in the folder of a run: it says the sha256 of its content."""


def table_sha256(name: str) -> str:
    """What the name of a table says."""
    return name.removeprefix("files-").removesuffix(".arrow")


Kind = Literal["jsonl", "json", "text", "parquet", "arrow", "webdataset", "wet", "shard"]
"""How a file is read."""
Compression = Literal["none", "gzip", "zstd", "bzip2", "xz"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


def cuttable(kind: Kind, compression: Compression, remote: bool) -> bool:
    """Whether several splits may share a file of this format. The only list of what can be cut.

    A compressed file is cut where its frames begin; remote ones only by a seek table, which zstd alone has.
    """
    if kind in ("jsonl", "json"):
        plain = compression == "none" and not (remote and kind == "json")  # whose beginning says whether it has lines
        return plain or compression == "zstd" or (compression == "gzip" and not remote)
    return kind in ("parquet", "arrow", "shard") and compression == "none" and not (remote and kind == "arrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of the snapshotted input."""

    root: str
    """Absolute folder or URL that the relative path starts from; no part of the identity."""
    path: str
    kind: Kind
    """By its name, or its content where the name says nothing: whoever reads it looks again."""
    compression: Compression = "none"
    stamp: Stamp
    span: int
    """What is cut: bytes on disk; of our own shards, bytes of text."""
    shard: int = 0
    """Number in its dataset, for our own shards."""
    sha256: str = ""
    """Of our own shards, whose manifest says it."""
    split: SplitName | None = None
    """Set where the input has decided already which split its records are in."""
    query: str = ""
    """What follows the path in a URL, as signed ones have it; no part of the identity, and never stored."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.stamp.size

    @property
    def full_path(self) -> str:
        """Where it is opened. May hold a signature: messages show ``shown``."""
        return f"{self.root}/{self.path}{self.query}"

    @property
    def shown(self) -> str:
        """Where it lies, for messages."""
        return f"{self.root}/{self.path}"


_SCHEMA = pa.schema(
    [
        ("root", pa.uint16()),
        ("path", pa.string()),
        ("kind", pa.uint8()),
        ("compression", pa.uint8()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("changed_ns", pa.int64()),
        ("version", pa.string()),
        ("span", pa.int64()),
        ("shard", pa.int32()),
        ("sha256", pa.string()),
        ("split", pa.uint8()),
        ("query", pa.string()),
        ("cuttable", pa.bool_()),
    ]
)
_IDENTITY = ["path", "kind", "compression", "size", "span", "sha256", "split"]
"""Columns of what makes files the same."""
_ROWS_AT_ONCE = 2**13
_QUERY = _SCHEMA.get_field_index("query")


class Files(Sequence[SourceFile]):
    """The files of a plan, as columns of a table."""

    def __init__(self, table: pa.Table, roots: tuple[str, ...]) -> None:
        self.table, self.roots = table, roots
        self._batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=_ROWS_AT_ONCE)
        self._starts = np.cumsum([0, *map(len, self._batches)])

    @classmethod
    def of(cls, files: Iterable[SourceFile]) -> "Files":
        """The table of some files, of which no more than some thousand are held as objects."""
        roots: dict[str, int] = {}
        batches, rows = [], list[tuple[Any, ...]]()

        def close() -> None:
            columns = [pa.array(column, field.type) for column, field in zip(zip(*rows), _SCHEMA)]
            batches.append(pa.record_batch(columns, _SCHEMA))
            rows.clear()

        for file in files:
            at = file.stamp
            rows.append(
                (
                    roots.setdefault(file.root, len(roots)),
                    file.path,
                    KINDS.index(file.kind),
                    COMPRESSIONS.index(file.compression),
                    at.size,
                    at.mtime_ns,
                    at.changed_ns,
                    at.version,
                    file.span,
                    file.shard,
                    file.sha256,
                    0 if file.split is None else 1 + SPLIT_NAMES.index(file.split),
                    file.query,
                    cuttable(file.kind, file.compression, is_url(file.root)),
                )
            )
            if len(rows) == _ROWS_AT_ONCE:
                close()
        if rows:
            close()
        return cls(pa.Table.from_batches(batches, _SCHEMA), tuple(roots))

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, at: int) -> SourceFile: ...
    @overload
    def __getitem__(self, at: slice) -> list[SourceFile]: ...
    def __getitem__(self, at: int | slice) -> SourceFile | list[SourceFile]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        at = at + len(self) if at < 0 else at
        if not 0 <= at < len(self):
            raise IndexError(at)
        batch = int(np.searchsorted(self._starts, at, side="right")) - 1
        row = at - int(self._starts[batch])
        values = {name: column[row].as_py() for name, column in zip(_SCHEMA.names, self._batches[batch].columns)}
        return SourceFile(
            root=self.roots[values["root"]],
            path=values["path"],
            kind=KINDS[values["kind"]],
            compression=COMPRESSIONS[values["compression"]],
            stamp=Stamp(values["size"], values["mtime_ns"], values["version"], values["changed_ns"]),
            span=values["span"],
            shard=values["shard"],
            sha256=values["sha256"],
            split=None if values["split"] == 0 else SPLIT_NAMES[values["split"] - 1],
            query=values["query"],
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Files) and self.roots == other.roots and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> np.ndarray:
        """Numbers of all files."""
        return np.asarray(self.table[name].to_numpy())

    def below_a_folder(self) -> np.ndarray:
        """Of each file whether it lies in a folder below its input; bool [files]."""
        return np.asarray(pc.match_substring(self.table["path"], "/").to_numpy(zero_copy_only=False))

    def named_before(self) -> np.ndarray:
        """Of each file whether it lies where an earlier one does, as files do that two inputs have; bool [files]."""
        digests, found = bytearray(), np.zeros(len(self), bool)
        for batch in self._batches:
            for root, *rest in zip(*(batch.column(name).to_pylist() for name in ("root", "path", "query"))):
                digests += hashlib.sha256(f"{self.roots[root].rstrip('/')}/{''.join(rest)}".encode()).digest()[:16]
        places = np.frombuffer(digests, "S16")
        order = np.argsort(places, kind="stable")
        found[order[1:][places[order[1:]] == places[order[:-1]]]] = True
        return found

    def without(self, files: np.ndarray) -> "Files":
        """The others than those that are marked, bool [files]."""
        return Files(self.table.filter(pa.array(~files)), self.roots)

    def folders_of_shards(self) -> list[Path]:
        """Those that hold shards of our own, in order."""
        shards = self.table.filter(pc.equal(self.table["kind"], KINDS.index("shard")))
        folders = pc.replace_substring_regex(shards["path"], "/[^/]*$", "")
        found = {(root.as_py(), folder.as_py()): None for root, folder in zip(shards["root"], folders)}
        return sorted(Path(self.roots[root]) / folder for root, folder in found)

    def first_difference(self, before: "Files") -> str:
        """The first file that is not what it was in an earlier listing, and what became of it; empty if none is."""
        both = min(len(self), len(before))
        differ = np.zeros(both, bool)
        for name in _IDENTITY:
            ours, theirs = self.table[name].slice(0, both), before.table[name].slice(0, both)
            differ |= np.asarray(pc.not_equal(ours, theirs).to_numpy(zero_copy_only=False), bool)
        at = int(np.argmax(differ)) if differ.any() else both
        now, old = (files[at] if at < len(files) else None for files in (self, before))
        if now is not None and old is not None and now.path == old.path:
            grown = f"has {now.size:,} bytes, recorded {old.size:,}"
            return f"{now.shown} {grown if now.size != old.size else 'is of another format, split or content'}"
        if old is not None and not self._has(old.path):
            return f"{old.shown} is no longer there"
        if now is not None:
            return f"{now.shown} {'comes in another order' if before._has(now.path) else 'was not there before'}"
        return "" if old is None else f"{old.shown} comes in another order"

    def _has(self, path: str) -> bool:
        return bool(pc.any(pc.equal(self.table["path"], path)).as_py())

    def digest(self) -> str:
        """Of what makes these files the same, wherever they lie and whenever they were written."""
        state = hashlib.sha256()
        for batch in self._batches:
            for row in batch.select(_IDENTITY).to_pylist():
                state.update(canonical_json([*row.values()]).encode() + b"\n")
        return state.hexdigest()

    def touched_since(self, before: "Files") -> np.ndarray:
        """Of each file whether its times or its version differ from those in an earlier listing of the same files.

        bool [files].
        """
        equal = [pc.equal(self.table[name], before.table[name]) for name in ("mtime_ns", "changed_ns", "version")]
        same = pc.and_(pc.and_(equal[0], equal[1]), equal[2])
        return ~np.asarray(same.to_numpy(zero_copy_only=False), bool)

    @cached_property
    def name(self) -> str:
        """Of the file of the table: it tells the content."""
        state = hashlib.sha256()
        self._write(_Sink(state.update))
        return f"files-{state.hexdigest()}.arrow"

    def save(self, folder: Path) -> None:
        """Write the table under its name, some rows at a time.

        Without queries: signatures are secrets, and who goes on with the run lists its input anew.
        """
        with atomic_file(folder / self.name) as file:
            self._write(_Sink(file.write))

    def _write(self, sink: "_Sink") -> None:
        named = _SCHEMA.with_metadata({f"{number:05d}": root for number, root in enumerate(self.roots)})
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), named) as file:
            for batch in self._batches:
                kept = batch.set_column(_QUERY, _SCHEMA.field(_QUERY), pa.repeat("", len(batch)))
                file.write_batch(pa.record_batch(kept.columns, named))


class _Sink(io.RawIOBase):
    """What Arrow writes into, where no file of its own is wanted: nothing is closed by it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write, self._written = write, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(data)
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written


def load_files(path: Path) -> Files:
    """The table in a file. Raises PipelineError for one that is missing or not what its name says."""
    try:
        if not TABLE_NAME.fullmatch(path.name) or file_sha256(path) != table_sha256(path.name):
            raise PipelineError(f"{path} is not what its name says: it is damaged; give a new --out")
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        metadata = table.schema.metadata or {}
        roots = tuple(metadata[number].decode() for number in sorted(metadata))
        table = table.replace_schema_metadata(None)
        limits = {"root": len(roots), "kind": len(KINDS), "compression": len(COMPRESSIONS), "split": 3}
        if table.schema != _SCHEMA or any(column.null_count for column in table.columns):
            raise PipelineError(f"{path} has other columns than the files of a run; give a new --out")
        files = Files(table, roots)
        for name, limit in limits.items():
            if len(files) and int(files.column(name).max()) >= limit:
                raise PipelineError(
                    f"{path}: column {name!r} has the unknown value {files.column(name).max()}; give a new --out"
                )
        for name in ("size", "span", "shard"):
            if len(files) and not 0 <= int(files.column(name).min()) <= int(files.column(name).max()) < 2**56:
                raise PipelineError(f"{path}: {name} is out of range; give a new --out")
        return files
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} cannot be read: {' '.join(str(error).split())}; give a new --out") from None
