"""The manifest of a dataset: what it holds, what made it, and the figures that verify it. Plain JSON, free of torch."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from shared.files import write_atomic
from shared.found import what_is
from shared.identity import digest
from shared.model_settings import NamesSpecials, Settings
from shared.patching.settings import PatchingSettings
from shared.storage import below, is_url, read_whole

MANIFEST_NAME = "manifest.json"
PATCHER_FOLDER = "patcher"
TOKENIZER_FOLDER = "tokenizer"

ShardFormat = Literal["arrow", "webdataset"]
SidecarType = Literal["none", "uint8", "float32"]


class DatasetError(ValueError):
    """A dataset or shard that is missing, damaged or not what was expected; the message names the file."""


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


class PatcherIdentity(Settings):
    """The entropy model whose folder is copied into the dataset as patcher/."""

    sha256: str
    numerics: NumericsClass


class DatasetIdentity(NamesSpecials):
    """What made a dataset (law 7), and the names of the special ids in its spans."""

    format_version: Literal[1] = 1
    split: Literal["train", "validation"]
    format: ShardFormat
    sidecar: SidecarType
    patching: PatchingSettings
    patcher: PatcherIdentity | None
    source: str
    """Digest of the snapshotted inputs and of every option that decides which record goes where."""


class Sums(Settings):
    """Counts that add up field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{key: getattr(self, key) + getattr(other, key) for key in type(self).model_fields})


def _is_zero(count: int) -> bool:
    return not count


class SubsetTotals(Sums):
    """Figures of one subset."""

    documents: int = 0
    rows: int = 0
    bytes: int = 0
    patches: int = 0
    """Patches other than BOS; 0 when unpatched."""
    specials: int = Field(default=0, exclude_if=_is_zero)
    """Named special ids between the bytes."""
    unlearnt: int = Field(default=0, exclude_if=_is_zero)
    """Bytes, named special ids and EOS that are no targets, since the loss of their span is off."""
    unlearnt_bytes: int = Field(default=0, exclude_if=_is_zero)
    """The bytes among them."""

    @property
    def tokens(self) -> int:
        """Inputs: text bytes, named special ids, and BOS."""
        return self.bytes + self.specials + self.documents

    @property
    def targets(self) -> int:
        """What one pass learns: text bytes, named special ids and EOS where the loss is on."""
        return self.tokens - self.unlearnt

    @property
    def learnt_bytes(self) -> int:
        """Bytes of text among the targets."""
        return self.bytes - self.unlearnt_bytes

    @property
    def mean_patch_size(self) -> float:
        """Text bytes over patches other than BOS."""
        return self.bytes / self.patches if self.patches else float("nan")


class ShardEntry(Settings):
    """One shard file with its companions."""

    name: str
    """File name inside the dataset folder; the index is NAME.index, the sidecar NAME.entropy."""
    bytes_on_disk: int
    sha256: str
    index_sha256: str
    sidecar_sha256: str | None
    content_hash: str
    """Sum over documents of sha256(subset, NUL, text) modulo 2^256, in hex: independent of order and of sharding. See
    `ContentHash` for documents with spans."""
    subsets: dict[str, SubsetTotals]
    patch_length_histogram: list[int]
    """65 counts of patches (BOS left out): of length 1, 2, ... 64, then all longer ones. Empty when unpatched."""
    entropy_histogram: list[int]
    """Entropies by sidecar grid value 0..255. Empty when nothing was scored."""


class Manifest(Settings):
    """Everything about a finished dataset."""

    identity: DatasetIdentity
    shards: list[ShardEntry]

    @property
    def subsets(self) -> dict[str, SubsetTotals]:
        """Totals by subset, subsets in sorted order."""
        totals: dict[str, SubsetTotals] = {}
        for shard in self.shards:
            for name, figures in shard.subsets.items():
                totals[name] = totals.get(name, SubsetTotals()) + figures
        return dict(sorted(totals.items()))

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
        text = read_whole(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(not_a_dataset(folder)) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DatasetError(f"{path}: {first_problem(error)}") from None


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


def first_problem(error: ValidationError, key: str | None = None) -> str:
    """The first thing that validation found, as one line: key (as the caller has it, or as found), what, value."""
    problem: Any = error.errors(include_url=False)[0]
    if key is None:
        key = ".".join(str(part) for part in problem["loc"])
    shown = repr(problem.get("input"))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    return f"{key}: {message}" + (f" (got {shown})" if len(shown) <= 80 and problem["type"] != "missing" else "")
