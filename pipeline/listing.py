"""Looking at the input once: which files there are, their hashes, and where they can be cut."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.plan import (
    PIECES_OF_COMPRESSED,
    Piece,
    SourceFile,
    byte_pieces,
    row_pieces,
    split_size,
)
from pipeline.read.streams import DamagedStream, chunks, compression_of
from pipeline.settings import SPLIT_NAMES, PipelineError, ReadSettings
from shared.shards.dataset import open_dataset
from shared.shards.manifest import MANIFEST_NAME

LINE_SUFFIXES = (".jsonl", ".ndjson")
_NO_TEXT_GROUPS = (
    "7z a bz2 class dll dylib exe jar lz4 o pyc pyd pyo rar so tar tgz wasm whl xz zip",
    "avi bmp flac gif ico jpeg jpg mkv mov mp3 mp4 ogg otf pdf png tif tiff ttf wav webm webp woff woff2",
    "arrow bin db npy npz onnx parquet pickle pkl pt pth safetensors sqlite",
)
NO_TEXT = frozenset(f".{suffix}" for suffixes in _NO_TEXT_GROUPS for suffix in suffixes.split())
"""Suffixes of files in a directory that are no text and are left out."""


@dataclass(frozen=True)
class Listing:
    """The input as it is now."""

    files: tuple[SourceFile, ...]
    split_bytes: int
    skipped: dict[str, int]


@dataclass(frozen=True)
class _Found:
    root: Path
    path: str
    stat: os.stat_result


def list_inputs(
    inputs: Sequence[Path],
    reading: ReadSettings,
    known: Sequence[SourceFile] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Listing:
    """List, hash and survey the inputs, in the order given and sorted inside directories.

    A file that ``known`` holds with the same size and modification time is not read again. ``progress`` is told the
    bytes as they are looked at. Raises PipelineError for an input that cannot be used, DatasetError for a bad dataset.
    """
    skipped: Counter[str] = Counter()
    datasets: list[Path] = []
    found: list[_Found | Path] = []
    for path in inputs:
        folders = dataset_folders(path)
        datasets += folders
        found += folders or _files(path, reading, skipped)
    plain = [f for f in found if isinstance(f, _Found)]
    total = sum(f.stat.st_size for f in plain) + sum(_dataset_bytes(folder) for folder in datasets)
    cut_bytes = split_size(total, reading.split_bytes)
    earlier = {(f.root, f.path, f.size, f.mtime_ns, f.cut_bytes): f for f in known}
    files: list[SourceFile] = []
    for entry in found:
        if isinstance(entry, Path):
            files += _shards(entry, cut_bytes)
        else:
            key = (str(entry.root), entry.path, entry.stat.st_size, entry.stat.st_mtime_ns, cut_bytes)
            files.append(earlier.get(key) or _survey(entry, cut_bytes))
            progress(entry.stat.st_size)
    if not files:
        where = ", ".join(map(str, inputs))
        raise PipelineError(f"{where}: there is nothing to read" + ("; every file was left out" if skipped else ""))
    return Listing(tuple(files), cut_bytes, dict(sorted(skipped.items())))


def dataset_folders(path: Path) -> list[Path]:
    """The datasets that a path stands for: itself, or its train/ and validation/; none if it is something else."""
    if (path / MANIFEST_NAME).is_file():
        return [path]
    return [path / name for name in SPLIT_NAMES if (path / name / MANIFEST_NAME).is_file()]


def _files(path: Path, reading: ReadSettings, skipped: Counter[str]) -> list[_Found]:
    if path.is_dir():
        root = path.resolve()
        return sorted(_walk(root, root, reading, skipped), key=lambda f: f.path)
    if not path.exists():
        raise PipelineError(f"{path}: there is no such file or directory")
    if not path.is_file() or (reason := _no_text(path.name)):
        raise PipelineError(f"{path}: {'not a file' if not path.is_file() else reason}; give text, jsonl or a dataset")
    return [_Found(path.parent.resolve(), path.name, path.stat())]


def _walk(root: Path, folder: Path, reading: ReadSettings, skipped: Counter[str]) -> Iterator[_Found]:
    """Regular files below a folder; no symbolic link is followed, nothing hidden is entered."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise PipelineError(f"{folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        relative = Path(entry.path).relative_to(root).as_posix()
        if entry.is_symlink():
            skipped["symbolic links"] += 1
        elif _excluded(relative, reading):
            skipped["left out by --exclude"] += 1
        elif entry.is_dir():
            if entry.name.startswith(".") or entry.name == "__pycache__":
                skipped["hidden directories and caches"] += 1
            else:
                yield from _walk(root, Path(entry.path), reading, skipped)
        elif not _included(relative, reading):
            skipped["not among --include"] += 1
        elif not entry.is_file() or _no_text(entry.name):
            skipped["no text by their suffix"] += 1
        else:
            try:
                relative.encode()
            except UnicodeEncodeError:
                raise PipelineError(f"{relative!r}: the file name is not UTF-8; rename it or --exclude it") from None
            yield _Found(root, relative, entry.stat())


def _included(relative: str, reading: ReadSettings) -> bool:
    """Whether --include wants a file: a glob matches its whole path (``*`` also matches ``/``) or its name."""
    names = (relative, relative.rpartition("/")[2])
    return not reading.include or any(fnmatchcase(name, glob) for glob in reading.include for name in names)


def _excluded(relative: str, reading: ReadSettings) -> bool:
    """Whether --exclude leaves out a file or a whole directory: a glob matches its path or its name."""
    names = (relative, relative.rpartition("/")[2])
    return any(fnmatchcase(name, glob) for glob in reading.exclude for name in names)


def _no_text(name: str) -> str | None:
    """Why a file is not read, if it is not."""
    path = Path(name.lower())
    if compression_of(path) != "none" and Path(path.stem).suffix not in (*LINE_SUFFIXES, ".txt"):
        return "a compressed file must be .jsonl, .ndjson or .txt inside"
    return f"{path.suffix} is no text" if path.suffix in NO_TEXT else None


def _survey(found: _Found, cut_bytes: int) -> SourceFile:
    """Read a file once: hash it, and count the lines before each cut."""
    path, size = found.root / found.path, found.stat.st_size
    compression = compression_of(path)
    name = path.stem if compression != "none" else path.name
    kind: Literal["jsonl", "text"] = "jsonl" if Path(name.lower()).suffix in LINE_SUFFIXES else "text"
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if kind == "text" or size == 0:
            pieces: tuple[Piece, ...] = (Piece(begin=0, end=size, bytes=size),)
        else:
            total, newlines = _count_lines(chunks(path, compression), cut_bytes)
            distance = cut_bytes
            if compression != "none":
                distance *= -(-total // (cut_bytes * PIECES_OF_COMPRESSED)) or 1
            step = distance // cut_bytes
            pieces = byte_pieces(total, distance, newlines[step - 1 :: step])
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None
    return SourceFile(
        root=str(found.root),
        path=found.path,
        kind=kind,
        compression=compression,
        size=size,
        mtime_ns=found.stat.st_mtime_ns,
        sha256=sha256,
        pieces=pieces,
        cut_bytes=cut_bytes,
    )


def _count_lines(content: Iterator[bytes], cut_bytes: int) -> tuple[int, list[int]]:
    """Bytes of the content, and newlines before each multiple of ``cut_bytes`` that it reaches."""
    total, count, newlines = 0, 0, []
    try:
        for chunk in content:
            at = 0
            while (room := cut_bytes - total % cut_bytes) <= len(chunk) - at:
                count += chunk.count(b"\n", at, at + room)
                newlines.append(count)
                total, at = total + room, at + room
            count += chunk.count(b"\n", at)
            total += len(chunk) - at
    except DamagedStream:
        pass  # reading meets it again and says so
    return total, newlines


def _dataset_bytes(folder: Path) -> int:
    return open_dataset(folder).manifest.totals.bytes


def _shards(folder: Path, cut_bytes: int) -> Iterator[SourceFile]:
    """The shards of one of our datasets, in order."""
    dataset = open_dataset(folder)
    base = folder.resolve()
    for number, entry in enumerate(dataset.manifest.shards):
        path = base / entry.name
        if not path.is_file():
            raise PipelineError(f"{path} is missing; the manifest lists it")
        index, found = dataset.shard_index(number), path.stat()
        yield SourceFile(
            root=str(base.parent),
            path=f"{base.name}/{entry.name}",
            kind="shard",
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            sha256=entry.sha256,
            pieces=row_pieces(index.bytes.tolist(), np.flatnonzero(index.part == 0).tolist(), cut_bytes),
            cut_bytes=cut_bytes,
            shard=number,
            split=dataset.manifest.identity.split,
        )
