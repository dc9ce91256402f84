"""The manifest of a dataset: what made it, what it holds in all, and the checksums of its tables. Free of torch and
pyarrow.

It stays small however large the dataset is: what is known of each shard is in the tables (tables.py).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter, not_
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.dataclasses import dataclass

from shared.errors import DatasetError
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import digest
from shared.io.files.path_kinds import what_is
from shared.io.stores.locations import below, is_url, read_whole
from shared.patching.settings import PatchingSettings
from shared.settings import NamesSpecials, Settings, other_version, refused_as
from shared.shards.document import LONGEST_SUBSET

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION: Literal[2] = 2
"""Of datasets; version 1 had one large manifest."""
ENTROPY_MODEL_FOLDER = "entropy_model"
TOKENIZER_FOLDER = "tokenizer"

LONGEST_NAME = 200
"""Characters of a file's name, which gets endings."""
NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
NO_NAMES = (".", "..")
# Limits of what is believed of a file from elsewhere, far beyond what this code writes: sums of such counts stay within
# int64, and an index of so many rows within memory.
MOST_MANIFEST_BYTES = 2**26
MOST_COUNT = 2**40
"""Of anything in one shard."""
MOST_ROWS = 2**24
"""Of one shard."""
HISTOGRAMS = {"patch_length_histogram": 65, "entropy_histogram": 256}
"""Entries of each, where it is not empty."""

MOST_SUM = 2**62
"""Of counts of a dataset."""
Count = Annotated[int, Field(strict=True, ge=0, le=MOST_SUM)]
ShardCount = Annotated[int, Field(strict=True, ge=0, le=MOST_COUNT)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def _plain_name(name: str) -> str:
    if not 0 < len(name) <= LONGEST_NAME or name in NO_NAMES or NOT_IN_NAMES.search(name):
        raise ValueError(f"{name[:80]!r} is not a plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
SubsetName = Annotated[str, StringConstraints(pattern=r"^[^\x00]+$", max_length=LONGEST_SUBSET)]

TableName = Literal["shards", "runs", "histograms"]
TABLE_NAMES: tuple[TableName, ...] = get_args(TableName)
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
    numerics: NumericsClass | None
    """None for one that counts: its entropies are the same on every machine."""

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the entropies' computation."""
        return "float32" if self.numerics is None else self.numerics.dtype


class DatasetIdentity(NamesSpecials):
    """What made a dataset (law 7), and the names of the special ids in its spans."""

    split: Literal["train", "validation"]
    format: ShardFormat
    sidecar: SidecarType
    patching: PatchingSettings
    entropy_model: EntropyModelIdentity | None = None
    """What scored it."""
    source: str
    """Digest of the snapshotted inputs and of every option that decides which record goes where."""

    def decides(self, patching: PatchingSettings) -> bool:
        """Whether the sidecar decides where patches of these settings begin, as the model's entropies would (law 2).

        A uint8 sidecar says which thresholds of its grid an entropy is above, and nothing exact of rises.
        """
        if not patching.needs_entropy or self.sidecar == "float32":
            return True
        return self.sidecar == "uint8" and patching.rule == "entropy" and patching.grid


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class SubsetTotals:
    """Figures of one subset. Small: every process holds those of all subsets (law 9)."""

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
        for key, figure, what, most in limits({key: getattr(self, key) for key in TOTALS}):
            if figure > most:
                return f"{key} is {figure}, more than {what}, {most}"
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


TOTALS = tuple(SubsetTotals.__dataclass_fields__)
"""Its keys."""


def summed(totals: Iterable[SubsetTotals]) -> SubsetTotals:
    """Figures of several subsets or shards together."""
    return SubsetTotals(**dict(zip(TOTALS, map(sum, zip(*map(attrgetter(*TOTALS), totals))))))


def limits(figures: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    """Limits of the figures of a shard: key, figure, and what it is at most, in words and as a number.

    ``figures`` of one shard, or of many, as an array for each key of SubsetTotals; then so are the numbers.
    """
    yield "documents", figures["documents"], "rows", figures["rows"]
    yield "ignored_bytes", figures["ignored_bytes"], "bytes", figures["bytes"]
    tokens = figures["bytes"] + figures["specials"] + figures["documents"]
    yield "ignored", figures["ignored"], "tokens", tokens
    for key in TOTALS:
        yield key, figures[key], "what a shard holds", MOST_COUNT
    yield "rows", figures["rows"], "what a shard holds", MOST_ROWS


class ShardFiles(Settings):
    """The files of one shard."""

    name: FileName
    """File name inside the dataset folder; the index is NAME.index, the sidecar NAME.entropy."""
    bytes_on_disk: Count
    sha256: Sha256
    index_bytes: Count
    index_sha256: Sha256
    sidecar_bytes: Count | None
    """None without a sidecar."""
    sidecar_sha256: Sha256 | None
    content_hash: Sha256
    """Sum over documents of sha256(subset, NUL, text) modulo 2^256, in hex: independent of order and of sharding. See
    `ContentHash` for documents with spans."""


class Shard(ShardFiles):
    """One shard of a finished dataset."""

    totals: SubsetTotals
    """Of all subsets."""


class RunRecord(NamedTuple):
    """The documents of one subset that begin in one record batch of a shard; their rows are consecutive."""

    subset: ShardCount
    """Number of its name among those of the shard, in sorted order."""
    batch: ShardCount
    row: ShardCount
    """The first, in the shard."""
    rows: ShardCount
    """Those that continue a document in later batches are counted here."""
    documents: ShardCount
    tokens: ShardCount
    """Inputs."""
    patches: ShardCount
    """Other than BOS, as in the totals."""
    targets: ShardCount


class ShardEntry(ShardFiles):
    """One shard as its writer leaves it: what the tables of the dataset are made of."""

    subsets: dict[SubsetName, SubsetTotals]
    runs: list[RunRecord]
    """By subset, then by row."""
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
        if self.runs and (most := max(run.subset for run in self.runs)) >= len(self.subsets):
            raise ValueError(f"{self.name}: a run of subset number {most}, but it has {len(self.subsets)} subsets")
        return self

    @property
    def totals(self) -> SubsetTotals:
        """Of all subsets."""
        return summed(self.subsets.values())


class TableFile(Settings):
    """A table of the dataset, as its file was written."""

    rows: Count
    bytes: Count
    sha256: Sha256


class DatasetTotals(Settings):
    """What a dataset, or several together, hold by subset, and what made them."""

    identity: DatasetIdentity
    subsets: dict[SubsetName, SubsetTotals]
    """Totals by subset, in sorted order."""

    @property
    def patching(self) -> PatchingSettings:
        """The rule by which the documents are cut into patches."""
        return self.identity.patching

    @property
    def totals(self) -> SubsetTotals:
        """Of all subsets."""
        return summed(self.subsets.values())


class Manifest(DatasetTotals):
    """A finished dataset."""

    format_version: Literal[2] = FORMAT_VERSION
    bytes_on_disk: Count
    """Of its shards."""
    content_hash: Sha256
    """Of all documents: the same for the same documents, however cut and ordered."""
    patch_length_histogram: list[Count]
    """As of a shard, of all together."""
    entropy_histogram: list[Count]
    tables: dict[TableName, TableFile]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if missing := set(TABLE_NAMES) - self.tables.keys():
            raise ValueError(f"tables: {', '.join(sorted(missing))} missing")
        if list(self.subsets) != sorted(self.subsets):
            raise ValueError("subsets are not in sorted order")
        if (tokens := sum(totals.tokens + totals.rows + totals.patches for totals in self.subsets.values())) > MOST_SUM:
            raise ValueError(f"subsets: their counts come to {tokens}; all together are at most {MOST_SUM}")
        for key, size in HISTOGRAMS.items():
            if (found := len(getattr(self, key))) not in (0, size):
                raise ValueError(f"{key} has {found} entries; it has {size} or none")
        return self

    @property
    def shard_count(self) -> int:
        return self.tables["shards"].rows

    @property
    def content(self) -> int:
        return int(self.content_hash, 16)

    @property
    def fingerprint(self) -> str:
        """Digest of identity and content; what loaders and checkpoints record.

        Of all tables: shards say what there is, runs in which order a seed takes it.
        """
        tables = {name: table.sha256 for name, table in self.tables.items()}
        return digest({"format_version": self.format_version, "identity": self.identity.model_dump(), **tables})

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
    if problem := other_version(path, text, FORMAT_VERSION, "preprocess the corpus again"):
        raise DatasetError(problem)
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
    if found == "does not exist":
        above = Path(folder).parent
        if what_is(above) == "is a dataset":
            where = f", {above.parent}" if above.name in {"train", "validation"} else ""
            return f"{folder} does not exist, as {above} is one dataset: give the folder that has train/ in it{where}"
        return f"{folder} does not exist: a dataset was expected, or the folder above its train/ and validation/"
    return f"{folder} is not a dataset: it {found}"
