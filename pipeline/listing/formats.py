"""Which format a file is in, by its name."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.plan import Kind
from pipeline.read.streams import Compression, compression_of

KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tar": "webdataset",
    ".wet": "wet",
}
"""Kinds by suffix; any other file is a text, unless its suffix says that it is none."""
MAY_BE_COMPRESSED = (".jsonl", ".ndjson", ".txt", ".tar", ".wet")
_NO_TEXT_GROUPS = (
    "7z a bz2 class dll dylib exe gz jar lz4 o pyc pyd pyo rar so tgz warc wasm whl xz zip zst",
    "avi bmp flac gif ico jpeg jpg mkv mov mp3 mp4 ogg otf pdf png tif tiff ttf wav webm webp woff woff2",
    "bin db npy npz onnx pickle pkl pt pth safetensors sqlite",
)
NO_TEXT = frozenset(f".{suffix}" for suffixes in _NO_TEXT_GROUPS for suffix in suffixes.split())
"""Suffixes of files in a directory that are no text and are left out."""


@dataclass(frozen=True)
class Format:
    """How a file is read."""

    kind: Kind
    compression: Compression = "none"


def format_of(name: str) -> Format | None:
    """The format of a file with this name; None for one that holds no text."""
    path = PurePosixPath(name.lower())
    compression = compression_of(path)
    if compression != "none":
        path = PurePosixPath(path.stem)
        if path.suffix not in MAY_BE_COMPRESSED:
            return None
    elif path.suffix in NO_TEXT:
        return None
    return Format(KINDS.get(path.suffix, "text"), compression)


def why_not(name: str) -> str:
    """Why a file without a format is not read."""
    suffix = PurePosixPath(name.lower()).suffix
    if compression_of(PurePosixPath(name.lower())) != "none":
        return f"a compressed file must be {', '.join(MAY_BE_COMPRESSED)} inside"
    return f"{suffix} is no text"
