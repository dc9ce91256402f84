"""Which data, how it is packed, and what the parameters are before any of it."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, field_validator, model_validator

from shared.io.stores.locations import Location
from shared.patching.settings import LONGEST_PATCH
from shared.settings import Settings, Unit
from trainer.settings.learning import InBytes, InSteps, Length
from trainer.settings.section import Folder, Section


class PatchPhase(Settings):
    """A part of a run with patches of its own size."""

    model_config = ConfigDict(allow_inf_nan=False)

    at: Length = 0.0
    """Where it begins."""
    size: Annotated[float, Unit("bytes")] | None = Field(default=None, gt=0, le=LONGEST_PATCH)
    """Mean patch size, as the table ``data.patch_sizes`` names it."""
    theta: Annotated[float, Unit("nats")] | None = None
    """Instead: the threshold of all subsets."""
    patches: Annotated[int, Unit("patches")] | None = Field(default=None, gt=2, le=2**24)
    """P_max; None sets it from the mean patch size."""

    @model_validator(mode="after")
    def _one_threshold(self) -> "PatchPhase":
        if (self.size is None) == (self.theta is None):
            raise ValueError("give either size, of the table data.patch_sizes, or theta")
        return self

    @property
    def key(self) -> str:
        """What it says of its thresholds, for messages."""
        return "theta" if self.size is None else "size"


class DataSettings(Section):
    """Which data, and how large a step is."""

    excluded_from_identity: ClassVar[tuple[str, ...]] = (
        *("path", "datasets", "workers", "cache", "cache_bytes"),
        "patch_sizes",  # the thresholds themselves are in the identity
    )

    path: Location | None = None
    """Folder or URL with the datasets train/ and validation/."""
    datasets: dict[str, Location] = Field(default_factory=dict)
    """Several such folders by name, instead of ``path``: their subsets are NAME/subset."""
    tokens: Annotated[int, Unit("tokens")] = Field(gt=2, le=2**24)
    """T_max: size of a pack, the micro-batch of one rank."""
    patches: Annotated[int, Unit("patches")] | None = Field(default=None, gt=1, le=2**24)
    """P_max: the most in a pack; None sets it from the dataset's mean patch size."""
    patch_schedule: tuple[PatchPhase, ...] = Field(default=(), max_length=256)
    """Phases of a run whose patch size changes, in order: each begins ``at`` a share of the run, or {steps = N}, or
    {bytes = N}, the first with the run. It has patches of a ``size`` (bytes) that ``patch_sizes`` has, or of a
    ``theta`` (nats), and at most ``patches`` a pack. The data must keep entropies; they find the patches."""
    patch_sizes: Folder | None = None
    """Table of thresholds by patch size, which `python -m pipeline calibrate --sizes` writes."""
    packs: Annotated[int, Unit("packs")] = Field(gt=0, le=2**20)
    """G: packs of one optimizer step, over all ranks; the number of ranks must divide it."""
    streams: Annotated[int, Unit("documents")] = Field(default=64, gt=0, le=2**16)
    """How many are read side by side, so that steps do not dwell on one that is longer than a pack."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of the bytes by subset or dataset; what is not named keeps its natural share; all are divided by
    their sum."""
    repeats: dict[str, Annotated[int, Field(gt=0, le=10**6), Unit("passes")]] = Field(default_factory=dict)
    """By subset or dataset, after how many passes it is left out; what is not named is repeated as long as the run
    goes."""
    workers: Annotated[int, Unit("processes")] = Field(default=1, ge=0, le=256)
    """Loader processes of each rank; 0 loads in the rank itself."""
    cache: Folder | None = None
    """Folder for files of datasets behind URLs, shared by all ranks of a machine; None: in the user's cache folder."""
    cache_bytes: Annotated[int, Unit("bytes")] = Field(default=64 * 2**30, gt=0, lt=2**62)
    """What that folder may hold; files in use are never removed, whatever their size."""

    @field_validator("datasets")
    @classmethod
    def _named(cls, datasets: dict[str, Path | str]) -> dict[str, Path | str]:
        for name in datasets:
            if not name or "/" in name or not name.isprintable():
                raise ValueError(f"{name!r} cannot be the name of a dataset: it comes before the / of its subsets")
        return datasets

    @model_validator(mode="after")
    def _phases(self) -> "DataSettings":
        phases = self.patch_schedule
        if any(phase.size is not None for phase in phases) != (self.patch_sizes is not None):
            raise ValueError("patch_schedule with a size and patch_sizes, the table that has it, go together")
        if phases and self.patches is not None:
            raise ValueError("patches is said by each phase of patch_schedule; leave it out here")
        if phases and start_of(phases[0].at) != 0:
            raise ValueError("patch_schedule.0.at: the first phase begins with the run; leave it out")
        for number, (before, after) in enumerate(pairwise(phases), 1):
            if number > 1 and type(before.at) is not type(after.at):
                raise ValueError(f"patch_schedule.{number}.at: all phases begin at shares, or at steps, or at bytes")
            if start_of(after.at) <= start_of(before.at):
                raise ValueError(
                    f"patch_schedule.{number}.at is {start_of(after.at):g}, and must be greater than "
                    f"{start_of(before.at):g}, where the phase before begins"
                )
        return self

    def identity_dict(self) -> dict[str, Any]:
        """Without phases where there are none, so that identities of other runs stay what they are."""
        values = super().identity_dict()
        if not self.patch_schedule:
            del values["patch_schedule"]
        return values

    @model_validator(mode="after")
    def _one_way(self) -> "DataSettings":
        if (self.path is None) != bool(self.datasets):
            raise ValueError("give either path, for one dataset, or datasets, for several by name")
        return self


def start_of(length: Length) -> float:
    """A length as a number, of whatever unit."""
    return length.steps if isinstance(length, InSteps) else length.bytes if isinstance(length, InBytes) else length


class StartSettings(Section):
    """What the parameters are before the first step."""

    affects_result: ClassVar[bool] = False

    model: Folder | None = None
    """What gives the parameters that the run begins with: a model folder, a checkpoint (RUN/checkpoints/step-N), or a
    run, whose best checkpoint it is, or whose newest where none is kept as the best. None draws them from the seed. A
    run that has a checkpoint of its own resumes from that."""
