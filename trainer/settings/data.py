"""Which data, how it is packed, and what the parameters are before any of it."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from shared.io.stores.locations import Location
from shared.settings import Unit
from trainer.settings.section import Folder, Section


class DataSettings(Section):
    """Which data, and how large a step is."""

    excluded_from_identity: ClassVar[tuple[str, ...]] = ("path", "datasets", "workers", "cache", "cache_bytes")

    path: Location | None = None
    """Folder or URL with the datasets train/ and validation/."""
    datasets: dict[str, Location] = Field(default_factory=dict)
    """Several such folders by name, instead of ``path``: their subsets are NAME/subset."""
    tokens: Annotated[int, Unit("tokens")] = Field(gt=2, le=2**24)
    """T_max: size of a pack, the micro-batch of one rank."""
    patches: Annotated[int, Unit("patches")] | None = Field(default=None, gt=1, le=2**24)
    """P_max: the most in a pack; None sets it from the dataset's mean patch size."""
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
    def _one_way(self) -> "DataSettings":
        if (self.path is None) != bool(self.datasets):
            raise ValueError("give either path, for one dataset, or datasets, for several by name")
        return self


class StartSettings(Section):
    """What the parameters are before the first step."""

    affects_result: ClassVar[bool] = False

    model: Folder | None = None
    """What gives the parameters that the run begins with: a model folder, a checkpoint (RUN/checkpoints/step-N), or a
    run, whose best checkpoint it is, or whose newest where none is kept as the best. None draws them from the seed. A
    run that has a checkpoint of its own resumes from that."""
