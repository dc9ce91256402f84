"""The manifest of a dataset: what it holds, what made it, and the figures that verify it. Plain JSON, free of torch."""

import re
from collections.abc import Iterable
from operator import not_
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from shared.errors import DatasetError
from shared.io.files import write_atomic
from shared.io.found import what_is
from shared.io.identity import digest
from shared.io.storage import below, is_url, read_whole
from shared.patching.settings import PatchingSettings
from shared.settings import NamesSpecials, Settings, refused_as
from shared.shards.document import LONGEST_SUBSET

MANIFEST_NAME = "manifest.json"
ENTROPY_MODEL_FOLDER = "entropy_model"
TOKENIZER_FOLDER = "tokenizer"

LONGEST_NAME = 200
"""Characters of a file's name, which gets endings."""
_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
# Limits of what is believed of a file from elsewhere, far beyond what this code writes: sums of such counts stay within
# int64, and an index of so many rows within memory.
MOST_MANIFEST_BYTES = 2**30
MOST_COUNT = 2**40
"""Of anything in one shard."""
MOST_ROWS = 2**24
"""Of one shard."""
HISTOGRAMS = {"patch_length_histogram": 65, "entropy_histogram": 256}
"""Entries of each, where it is not empty."""

Count = Annotated[int, Field(strict=True, ge=0, le=2**62)]
ShardCount = Annotated[int, Field(strict=True, ge=0, le=MOST_COUNT)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def _plain_name(name: str) -> str:
    if not 0 < len(name) <= LONGEST_NAME or name in (".", "..") or _NOT_IN_NAMES.search(name):
        raise ValueError(f"{name[:80]!r} is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
SubsetName = Annotated[str, StringConstraints(pattern=r"^[^\x00]+$", max_length=LONGEST_SUBSET)]

ShardFormat = Literal["arrow", "webdataset"]
SidecarType = Literal["none", "uint8", "float32"]


class NumericsClass(Settings):
    """Within one such class shards are byte-identical whatever the number of workers (law 5)."""

    device: str
    """Device type and, on a CPU, the instruction set that torch uses."""
    dtype: Literal["float32", "bfloat16"]
    torch: str
    attention: str
    stream_length: int = Field(ge=1, le=1 << 30)
    threads: int = Field(ge=1, le=4096)
    """Threads of each worker."""
    probe: str
    """sha256 of the entropies of a fixed stream; empty where nothing was scored yet (an imported model)."""


class EntropyModelIdentity(Settings):
    """The entropy model whose folder is copied into the dataset as entropy_model/."""

    sha256: str
    numerics: NumericsClass


class DatasetIdentity(NamesSpecials):
    """What made a dataset (law 7), and the names of the special ids in its spans."""

    model_config = ConfigDict(serialize_by_alias=True)

    format_version: Literal[1] = 1
    split: Literal["train", "validation"]
    format: ShardFormat
    sidecar: SidecarType
    patching: PatchingSettings
    entropy_model: EntropyModelIdentity | None = Field(validation_alias="patcher", serialization_alias="patcher")
    """What scored it; the manifest's own name is kept, since it is part of every fingerprint."""
    source: str
    """Digest of the snapshotted inputs and of every option that decides which record goes where."""

    def decides(self, patching: PatchingSettings) -> bool:
        """Whether the sidecar decides where patches of these settings begin, as the model's entropies would (law 2).

        A uint8 sidecar says which thresholds of its grid an entropy is above, and nothing exact of rises.
        """
        if not patching.needs_entropy or self.sidecar == "float32":
            return True
        return self.sidecar == "uint8" and patching.rule == "entropy" and patching.grid


class Sums(Settings):
    """Counts that add up field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{key: getattr(self, key) + getattr(other, key) for key in type(self).model_fields})


class SubsetTotals(Sums):
    """Figures of one subset."""

    documents: Count = 0
    rows: Count = 0
    bytes: Count = 0
    patches: Count = 0
    """Patches other than BOS; 0 when unpatched."""
    specials: Count = Field(default=0, exclude_if=not_)
    """Named special ids between the bytes."""
    ignored: Count = Field(default=0, exclude_if=not_)
    """Bytes, named special ids and EOS that are no targets, since the loss of their span is off."""
    ignored_bytes: Count = Field(default=0, exclude_if=not_)
    """The bytes among them."""

    @property
    def problem(self) -> str | None:
        """Why no shard has these figures; None if one can."""
        for key, figure, key_most, most in (
            ("documents", self.documents, "rows", self.rows),
            ("ignored_bytes", self.ignored_bytes, "bytes", self.bytes),
            ("ignored", self.ignored, "tokens", self.tokens),
            *((key, getattr(self, key), "what a shard holds", MOST_COUNT) for key in type(self).model_fields),
            ("rows", self.rows, "what a shard holds", MOST_ROWS),
        ):
            if figure > most:
                return f"{key} is {figure}, more than {key_most}, {most}"
        return None

    @property
    def tokens(self) -> int:
        """Inputs: text bytes, named special ids, and BOS."""
        return self.bytes + self.specials + self.documents

    @property
    def targets(self) -> int:
        """What one pass learns: text bytes, named special ids and EOS where the loss is on."""
        return self.tokens - self.ignored

    @property
    def target_bytes(self) -> int:
        """Bytes of text among the targets."""
        return self.bytes - self.ignored_bytes

    @property
    def mean_patch_size(self) -> float:
        """Text bytes over patches other than BOS."""
        return self.bytes / self.patches if self.patches else float("nan")


class ShardEntry(Settings):
    """One shard file with its companions."""

    name: FileName
    """File name inside the dataset folder; the index is NAME.index, the sidecar NAME.entropy."""
    bytes_on_disk: Count
    sha256: Sha256
    index_sha256: Sha256
    sidecar_sha256: Sha256 | None
    content_hash: Sha256
    """Sum over documents of sha256(subset, NUL, text) modulo 2^256, in hex: independent of order and of sharding. See
    `ContentHash` for documents with spans."""
    subsets: dict[SubsetName, SubsetTotals]
    patch_length_histogram: list[ShardCount]
    """65 counts of patches (BOS left out): of length 1, 2, ... 64, then all longer ones. Empty when unpatched."""
    entropy_histogram: list[ShardCount]
    """Entropies by sidecar grid value 0..255. Empty when nothing was scored."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, size in HISTOGRAMS.items():
            if (found := len(getattr(self, key))) not in (0, size):
                raise ValueError(f"{self.name}: {key} has {found} entries; it has {size} or none")
        for name, figures in self.subsets.items():
            if (problem := figures.problem) is not None:
                raise ValueError(f"{self.name}: subset {name!r}: {problem}")
        return self

    @property
    def rows(self) -> int:
        return sum(totals.rows for totals in self.subsets.values())


def totals_by_subset(entries: Iterable[ShardEntry]) -> dict[str, SubsetTotals]:
    """What shards hold by subset, subsets in sorted order."""
    totals: dict[str, SubsetTotals] = {}
    for entry in entries:
        for name, figures in entry.subsets.items():
            totals[name] = totals.get(name, SubsetTotals()) + figures
    return dict(sorted(totals.items()))


class Manifest(Settings):
    """Everything about a finished dataset."""

    identity: DatasetIdentity
    shards: list[ShardEntry]

    @model_validator(mode="after")
    def _different(self) -> Self:
        names: set[str] = set()
        for entry in self.shards:
            if entry.name in names:
                raise ValueError(f"the shard {entry.name!r} is listed more than once")
            names.add(entry.name)
        return self

    @property
    def subsets(self) -> dict[str, SubsetTotals]:
        """Totals by subset, subsets in sorted order."""
        return totals_by_subset(self.shards)

    @property
    def patching(self) -> PatchingSettings:
        """The rule by which the documents are cut into patches."""
        return self.identity.patching

    @property
    def totals(self) -> SubsetTotals:
        return sum(self.subsets.values(), SubsetTotals())

    @property
    def content(self) -> int:
        """The content hashes of all shards together: the same for the same documents, however cut and ordered."""
        return sum(int(shard.content_hash, 16) for shard in self.shards) % 2**256

    @property
    def fingerprint(self) -> str:
        """Digest of identity and content; what loaders and checkpoints record."""
        return digest({"identity": self.identity.model_dump(), "shards": [shard.sha256 for shard in self.shards]})

    def save(self, folder: Path) -> None:
        write_atomic(folder / MANIFEST_NAME, self.model_dump_json(indent=1) + "\n")


def load_manifest(folder: Path | str) -> Manifest:
    """Read the manifest of a dataset in a folder or behind a URL.

    Raises DatasetError when there is none, or when it is not one of this version, StorageError when it cannot be read.
    """
    path = below(folder, MANIFEST_NAME)
    try:
        text = read_whole(path, MOST_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(not_a_dataset(folder)) from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    with refused_as(DatasetError, f"{path}: "):
        return Manifest.model_validate_json(text)


def not_a_dataset(folder: Path | str) -> str:
    """Why there is no finished dataset in a folder or behind a URL: what is there instead."""
    lacks = f"is not a finished dataset: it has no {MANIFEST_NAME}"
    if isinstance(folder, str) and is_url(folder):
        return f"{folder} {lacks}"
    found = what_is(folder)
    if found == "is the folder of a dataset's train/ and validation/":
        return f"{folder} is the folder above a dataset's splits: name one, {folder}/train or {folder}/validation"
    if found == "is a folder of something else":
        return f"{folder} {lacks}"
    return f"{folder} does not exist" if found == "does not exist" else f"{folder} is not a dataset: it {found}"
