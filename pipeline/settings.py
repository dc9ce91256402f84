"""What a preprocessing run is told, as immutable values, one for each concern. Free of torch."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from operator import eq, not_
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from shared.errors import PatchworkError
from shared.io.stores.store import UrlStore
from shared.patching.settings import PatchingSettings
from shared.settings import Settings, SpecialName
from shared.shards.manifest import NumericsClass, ShardFormat, SidecarType
from shared.text.chat import ANSWERING, END, ROLES

SplitName = Literal["train", "validation"]
InputFormat = Literal["jsonl", "json", "text", "parquet", "arrow", "webdataset", "wet"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation")


class PipelineError(PatchworkError):
    """A request that cannot be carried out: one line that names the file or option and what would be right."""


class ChatSettings(Settings):
    """How records become chats (see `shared.text.chat`)."""

    roles: tuple[SpecialName, ...] = Field(default=ROLES, min_length=1)
    """That a turn may have. The special ids of the dataset are these, in order, and the one that ends turns."""
    learn: tuple[str, ...] = Field(default=(ANSWERING,), min_length=1)
    """Roles whose turns are training targets."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if END in self.roles or len(set(self.roles)) < len(self.roles):
            raise ValueError(f"--roles {', '.join(self.roles)}: each once, and none is {END!r}, which ends turns")
        for role in self.learn:
            if role not in self.roles:
                raise ValueError(f"--learn {role}: --roles names {', '.join(self.roles)}")
        return self

    @property
    def specials(self) -> tuple[str, ...]:
        """Names of the special ids, in order."""
        return (*self.roles, END)


# Keys that came later are left out of the identity at their defaults, so that datasets made before keep theirs.


class ReadSettings(Settings):
    """Which records there are, and which of them go where."""

    text_column: str = "text"
    id_column: str = "id"
    subset_column: str | None = None
    """None: the first of ``SUBSET_COLUMNS`` that the record has."""
    subset_from: Literal["column", "directory"] = "column"
    """directory: the first folder below the input names the subset of every file in it."""
    subset: str | None = Field(default=None, min_length=1, pattern=r"^[^\x00]*$")
    """One subset for all records."""
    chat: ChatSettings | None = Field(default=None, exclude_if=not_)
    """Records are chats: messages, or a prompt and its response. None: texts."""
    document_bytes: int | None = Field(default=None, ge=64, le=2**24, exclude_if=not_)
    """Text files are cut at blank lines into documents of at least so many bytes; None: a file is one document."""
    meta: bool = False
    """Pass the remaining columns through as canonical JSON."""
    split_key: str | None = None
    """Column whose value decides between train and validation; None, or a record without it: the content decides."""
    validation_fraction: float = Field(default=0.05, ge=0, le=1)
    dedup: bool = False
    """Of records with equal text, keep the first."""
    sample_bytes: int | None = Field(default=None, gt=0)
    """Keep a seeded sample of at most this many bytes of text."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    include: tuple[str, ...] = ()
    """Globs on relative paths; empty means everything."""
    exclude: tuple[str, ...] = ()
    split_bytes: int | None = Field(default=None, gt=0)
    """Bytes of one split; None: an eighth of the input, at least 1 MiB and at most 64 MiB."""
    max_ratio: int = Field(default=1000, gt=0)
    """Decompressed bytes per compressed byte beyond which a file is refused as a decompression bomb."""

    max_window: int = Field(default=2**31, ge=2**20, le=2**31, exclude_if=partial(eq, 2**31))
    """Bytes of earlier content that a compressed file may refer to; decompressing holds so many, if there are."""
    input_format: InputFormat | None = Field(default=None, exclude_if=not_)
    """The format of every input file; None: each is looked at."""
    named_splits: Literal["keep", "ignore"] = Field(default="keep", exclude_if=partial(eq, "keep"))
    """keep: beside files named train, those named validation go to validation, and those named test are left out."""

    @model_validator(mode="after")
    def _one_subset(self) -> Self:
        given = [self.subset is not None, self.subset_column is not None, self.subset_from == "directory"]
        if sum(given) > 1:
            raise ValueError("--subset, --subset-column and --subset-from directory exclude one another")
        return self


class ScoringSettings(Settings):
    """How the entropy model is run over the documents."""

    stream_length: int = Field(default=4096, gt=0, multiple_of=64)
    """Tokens of one forward pass; fixed, because the length reaches the numerics."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(default=1, gt=0)
    """Threads of each worker; they reach the numerics, too."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


class OutputSettings(Settings):
    """What is made of the records."""

    patching: PatchingSettings
    format: ShardFormat = "arrow"
    sidecar: SidecarType = "none"
    scoring: ScoringSettings | None = None
    """None when no network runs: no entropies are needed, or a model counts, which none of these settings reaches."""
    entropy_model_sha256: str | None = None
    """None when no entropies are needed."""


class ExecutorSettings(Settings):
    """Who does the work. Nothing here reaches a single byte of the product."""

    executor: Literal["ray", "inline"] = "ray"
    workers: int | None = Field(default=None, gt=0)
    """At most so many. None: as many as CPUs over threads of a worker, or as the GPUs have shares for; on a cluster
    that was joined, those of nodes that come later, too."""
    min_workers: int | None = Field(default=None, gt=0)
    """Asked of a cluster at once, even if it must grow for them. None: as many as it has room for."""
    gpus_per_worker: float | None = Field(default=None, gt=0, le=1)
    """None: a whole GPU for each worker that scores, where there are GPUs."""
    ray_address: str | None = None
    """Ray cluster to join; None: the one that RAY_ADDRESS names, else one is started on this machine."""


class RayWorkers(Settings):
    """Workers on a Ray cluster, for work that is no run. Nothing here reaches a single byte of the product."""

    most: int | None = Field(default=None, gt=0)
    """None: as many as the cluster has room for."""
    address: str | None = None
    """Of the cluster; None: the one that RAY_ADDRESS names, else one is made on this machine."""
    threads: int = Field(default=1, gt=0)
    """CPUs of each."""
    gpus: float | None = Field(default=0.0, ge=0, le=1)
    """Share of a GPU for each; None: a whole one where the cluster has any."""


class RunStore(Settings):
    """The object store of a run."""

    url: str
    conditional: bool = True
    """Whether it keeps two creators of one key apart."""

    def open(self) -> UrlStore:
        store = UrlStore(self.url)
        store.conditional = self.conditional
        return store


class Job(Settings):
    """Everything that a worker needs besides the plan and the number of its split."""

    out: Path
    """Folder of the run; of a run on a store, of the process that reads this."""
    reading: ReadSettings
    output: OutputSettings
    store: RunStore | None = None
    """Where the run is written, unless that is ``out``."""
    entropy_model: Path | None = None
    """Folder of the entropy model."""
    setup: Callable[[Any], NumericsClass] | None = None
    """What a worker opens before its first unit of a work of a package above this one; it is given this job, and says
    the numerics class that it found."""

    @property
    def where(self) -> str:
        """The run, for messages: below the current folder as one would type it there."""
        if self.store is not None:
            return self.store.url
        with suppress(FileNotFoundError, ValueError):  # the current folder was removed, or the run is elsewhere
            return str(self.out.relative_to(Path.cwd()))
        return str(self.out)


def numerics_differences(recorded: NumericsClass, found: NumericsClass) -> str:
    """How two numerics classes differ, as the end of a sentence."""
    ours, theirs = recorded.model_dump(), found.model_dump()
    return ", ".join(f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if ours[key] != theirs[key])
