"""Which data, how it is packed, and what the parameters are before any of it."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from trainer.settings.section import Section


class DataSettings(Section):
    """Which data, and how large a step is."""

    free: ClassVar[tuple[str, ...]] = ("path", "workers")

    path: Path
    """Folder with the datasets train/ and validation/."""
    tokens: int = Field(gt=2)
    """T_max: tokens of a pack, the micro-batch of one rank."""
    patches: int | None = Field(default=None, gt=1)
    """P_max: patches of a pack; None sets it from the dataset's mean patch size."""
    packs: int = Field(gt=0)
    """G: packs of one optimizer step, over all ranks; the number of ranks must divide it."""
    lanes: int = Field(default=64, gt=0)
    """Documents that are read side by side, so that steps do not dwell on one that is longer than a pack."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of the bytes by subset; a subset not named keeps its natural share."""
    workers: int = Field(default=1, ge=0)
    """Loader processes of each rank; 0 loads in the rank itself."""


class StartSettings(Section):
    """What the parameters are before the first step."""

    decides: ClassVar[bool] = False

    model: Path | None = None
    """A model folder whose parameters the run begins with; None draws them from the seed. A run that has a checkpoint
    goes on from that."""
