"""What the name of a file says of its format: a hint where its content can be looked at, else what is believed."""

from dataclasses import dataclass

from pipeline.files import Compression, Kind
from pipeline.read.streams import SUFFIXES

KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".jl": "jsonl",
    ".ldjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".parq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".wet": "wet",
}
"""Kinds by suffix; any other file is a text, unless its suffix or its content says that it is none."""
_NO_TEXT_GROUPS = (
    "7z a class dll dylib exe jar lz4 o pyc pyd pyo rar so warc wasm whl zip",
    "avi bmp flac gif ico jpeg jpg mkv mov mp3 mp4 ogg otf pdf png tif tiff ttf wav webm webp woff woff2",
    "bin db npy npz onnx pickle pkl pt pth safetensors sqlite",
)
NO_TEXT = frozenset(f".{suffix}" for suffixes in _NO_TEXT_GROUPS for suffix in suffixes.split())
"""Suffixes of files in a directory that are no text and are left out."""
_TEXT_GROUPS = (
    "txt text md markdown rst tex org adoc log srt vtt html htm xhtml xml svg yaml yml toml ini cfg conf",
    "py pyi c h cc cpp cxx hpp hh cs java kt scala go rs js mjs ts tsx jsx css scss rb php pl pm lua r jl m swift",
    "sh bash zsh bat ps1 sql hs ml mli fs clj ex exs erl el lisp scm f f90 f95 pas d nim zig v vhd asm s cmake diff",
)
TEXTS = frozenset(f".{suffix}" for suffixes in _TEXT_GROUPS for suffix in suffixes.split()) - KINDS.keys()
"""Suffixes that are believed when they say text, whatever the encoding, unless the content is another format's."""
TABLES = frozenset(f".{suffix}" for suffix in ["csv", "tsv", "xls", "xlsx", "ods", "orc", "avro"])
"""Suffixes of tables in formats that are not read: as one text such a file is what nobody wants."""
_OWN_FILES = frozenset({"_success", "_metadata", "_common_metadata", "thumbs.db", "desktop.ini"})
_OWN_BEGINNINGS = ("_committed_", "_started_")
_OWN_ENDS = ("~", ".swp", ".swo", ".bak", ".orig", ".tmp", ".part", ".partial", ".crdownload", ".incomplete", ".crc")

BY_SUFFIX, HIDDEN_FILE, OWN_FILE = (
    "no text by their suffix",
    "hidden files",
    "copies, marks and notes of other programs",
)
TABLE = "tables in formats that are not read (CSV, Excel, ORC, Avro): convert them to Parquet or JSON lines"


@dataclass(frozen=True, slots=True)
class Format:
    """How a file is read."""

    kind: Kind
    compression: Compression = "none"


@dataclass(frozen=True)
class Named:
    """What the name of a file says."""

    kind: Kind | None
    """None where it says nothing, or that the file is a text."""
    compression: Compression
    suffix: str
    """In lower case, under that of the compression; empty where there is none, or only a number."""

    @property
    def known(self) -> bool:
        """Whether the suffix is one that says what is in a file."""
        return self.kind is not None or self.suffix in TEXTS

    @property
    def clear(self) -> bool:
        """Whether the name is believed where looking at the content would cost a request."""
        return self.suffix != ""


def named(name: str) -> Named:
    """What a name says; ``a.jsonl.gz`` of its two suffixes."""
    stem, suffix = _cut(name.lower().rpartition("/")[2])
    compression: Compression = "gzip" if suffix == ".tgz" else SUFFIXES.get(suffix, "none")
    if suffix != ".tgz" and compression != "none":
        suffix = _cut(stem)[1]
    if suffix[1:].isdigit():
        suffix = ""
    return Named(KINDS.get(suffix), compression, suffix)


def _cut(name: str) -> tuple[str, str]:
    """Stem and suffix, as pathlib has them: a path object for each of a million names takes a minute."""
    at = name.rfind(".")
    return (name[:at], name[at:]) if 0 < at < len(name) - 1 else (name, "")


def name_left_out(name: str) -> str | None:
    """Why a file in a directory is not read whatever it holds, if its name says so."""
    lower = name.lower()
    if lower.startswith("."):
        return HIDDEN_FILE
    marked = lower in _OWN_FILES or lower.startswith(_OWN_BEGINNINGS) or (lower[0] == lower[-1] == "#")
    if marked or lower.endswith(_OWN_ENDS):
        return OWN_FILE
    return suffix_left_out(name)


def suffix_left_out(name: str) -> str | None:
    """The same of a file that was given by name: hidden files may be."""
    suffix = named(name).suffix
    if suffix in TABLES:
        return TABLE
    return BY_SUFFIX if suffix in NO_TEXT else None
