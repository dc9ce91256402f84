"""A table of thresholds by the mean patch size that they give: what `calibrate --sizes` writes, and a run reads whose
patch size changes while it trains. Free of torch.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from shared.errors import ConfigError
from shared.io.files.json_reader import read_bounded
from shared.patching.settings import LONGEST_PATCH, PatchingSettings
from shared.settings import Settings, other_version, refused_as

FORMAT_VERSION: Literal[1] = 1
MOST_SIZES = 64
MOST_BYTES = 64 << 20
"""Of such a file: some dozen bytes for each subset and size."""
BEGINNING = re.compile(rb'\{\s*"patch_sizes":\s*\[')
"""How the file begins, by which `shared.io.files.outputs.Output` knows it."""
Size = Annotated[float, Field(gt=0, le=LONGEST_PATCH)]
"""A mean patch size in bytes."""


class PatchSize(Settings):
    """The thresholds for one size."""

    model_config = ConfigDict(allow_inf_nan=False)

    size: Size
    """Asked for: the name of this entry."""
    mean_patch_size: Size
    """In bytes, realised on the text that the thresholds were chosen on."""
    held_out: Size | None
    """The same on documents that took no part in the choice; None where there were none."""
    patching: PatchingSettings


class PatchSizes(Settings):
    """Thresholds for several sizes, of one rule and one entropy model."""

    patch_sizes: tuple[PatchSize, ...] = Field(min_length=1, max_length=MOST_SIZES)
    """In ascending order."""
    entropy_model: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """sha256 of the entropy model."""
    made_by: dict[str, str | int | float | bool | None]
    """Everything that decides the thresholds, so that the same command knows that they are current."""
    format_version: Literal[1] = FORMAT_VERSION

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = [entry.size for entry in self.patch_sizes]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"patch_sizes must ascend, found {', '.join(f'{size:g}' for size in sizes)}")
        first = self.patch_sizes[0].patching
        for entry in self.patch_sizes:
            if not entry.patching.needs_entropy:
                raise ValueError(f"patch_sizes: rule {entry.patching.rule!r} has no threshold")
            if without_thresholds(entry.patching) != without_thresholds(first):
                raise ValueError(f"patch_sizes: those for {entry.size:g} differ from the first in more than thresholds")
        return self

    def entry(self, size: float) -> PatchSize | None:
        """The thresholds for a size; None where the table has not got it."""
        return next((entry for entry in self.patch_sizes if entry.size == size), None)


def without_thresholds(patching: PatchingSettings) -> dict[str, object]:
    """What settings that differ in their thresholds alone have in common."""
    return patching.model_dump(mode="json", exclude={"theta", "thetas", "grid"})


def load_patch_sizes(path: Path) -> PatchSizes:
    """Read what `calibrate --sizes` wrote. Raises ConfigError."""
    try:
        content = read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; `calibrate --sizes` writes it") from None
    if problem := other_version(path, content, FORMAT_VERSION, "calibrate again"):
        other_file = f"{path} is not a table of patch sizes; create one with `calibrate --sizes`"
        raise ConfigError(problem if BEGINNING.match(content) else other_file)
    with refused_as(ConfigError, f"{path}: "):
        return PatchSizes.model_validate_json(content)
