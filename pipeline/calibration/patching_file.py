"""The file in which calibration hands its thresholds on, with what they were found on (law 7)."""

import re
from operator import not_
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.settings import PipelineError
from shared.io.files.json_reader import read_bounded
from shared.io.files.outputs import Output
from shared.patching import PatchingSettings
from shared.patching.sizes import BEGINNING
from shared.settings import Settings, other_version, refused_as
from shared.shards.manifest import NumericsClass, SidecarType

FORMAT_VERSION: Literal[2] = 2
"""Version 1 called the entropy model a patcher."""
EntropyRule = Literal["entropy", "monotonic", "entropy_rise"]
TENTH = "a tenth"
MOST_BYTES = 64 << 20
"""Of such a file: some hundred bytes a subset."""
PATCHING = re.compile(rb'\{\s*"patching":\s*\{\s*"rule":\s*"')
"""How the file begins, by which `shared.io.files.outputs.Output` knows it."""


class CalibrationIdentity(Settings):
    """Everything that decides the thresholds."""

    entropy_model: str
    """sha256 of the entropy model."""
    dataset: str
    """Fingerprint of the documents it was calibrated on."""
    rule: EntropyRule
    target: float
    """Mean patch size asked for, in bytes."""
    theta_rise: float | None
    min_length: int
    max_length: int
    whole_characters: bool = Field(default=False, exclude_if=not_)
    per_subset: bool
    sidecar: SidecarType
    sample_bytes: int
    """Text to count on; 0 for all of it."""
    seed: int
    stream_length: int
    threads: int
    dtype: str
    entropies: Literal["scored", "stored"] = "scored"
    """stored: those of the dataset's own sidecar."""
    held_out: str = "nothing"
    """On what the sizes were checked: the fingerprint of the validation split, or TENTH of the documents."""
    parity: str | None = None
    """What documents that say the same in other subsets have in common."""
    parity_to: str | None = None
    """The subset that the others follow."""


class HeldOut(Settings):
    """Mean patch sizes, in bytes, on documents that took no part in the choice of thresholds."""

    documents: int
    bytes: int
    mean_patch_size: float
    """Of these documents."""
    subsets: dict[str, float]
    """Of them by subset, together with those that were sampled from each subset by itself."""


class ParityFigures(Settings):
    """One subset beside the one that it follows, over the documents that both have."""

    documents: int
    bytes: int
    size_before: float
    """Mean patch size with the one threshold for all bytes."""
    size: float
    """Mean patch size with the subset's own."""
    ratio_before: float
    """Patches over those of the same documents in the other subset, both with the one threshold."""
    ratio: float
    """The same with a threshold for each."""
    held_out: float | None
    """The same on held-out documents; None where none are in both subsets."""


class PatchingFile(Settings):
    """Thresholds, and how they came about."""

    patching: PatchingSettings
    identity: CalibrationIdentity
    format_version: Literal[2] = FORMAT_VERSION
    numerics: NumericsClass | None
    """Of the entropies; None of those of a model that counts."""
    mean_patch_size: float
    """In bytes, realised on the sample."""
    subsets: dict[str, float]
    """The same for each subset of the sample."""
    held_out: HeldOut | None = None
    parity: dict[str, ParityFigures] = Field(default_factory=dict)
    """By subset."""

    def save(self, out: Output) -> None:
        out.write(self.model_dump_json(indent=1) + "\n")


def load_patching(path: Path) -> PatchingFile:
    """Read what calibrate wrote. Raises PipelineError."""
    try:
        content = read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise PipelineError(f"--patching {path} cannot be read: {error.strerror}; calibrate writes it") from None
    if BEGINNING.match(content):
        raise PipelineError(
            f"--patching {path} is a table of sizes, for data.patch_sizes of a recipe; calibrate without --sizes finds "
            "the thresholds of one dataset"
        )
    if problem := other_version(path, content, FORMAT_VERSION, "calibrate again"):
        raise PipelineError(f"--patching {problem}")
    with refused_as(PipelineError, f"--patching {path}: "):
        return PatchingFile.model_validate_json(content)
