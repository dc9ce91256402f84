"""The file in which calibration hands its thresholds on, with what they were found on (law 7)."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.settings import PipelineError
from shared.files import write_atomic
from shared.model_settings import Settings
from shared.patching import PatchingSettings
from shared.shards.manifest import NumericsClass, SidecarType, first_problem


class CalibrationIdentity(Settings):
    """Everything that decides the thresholds."""

    patcher: str
    """sha256 of the entropy model."""
    dataset: str
    """Fingerprint of the documents it was calibrated on."""
    rule: Literal["entropy", "monotonic", "entropy_rise"]
    target: float
    """Mean patch size asked for, in bytes."""
    theta_rise: float | None
    min_length: int
    max_length: int
    per_subset: bool
    sidecar: SidecarType
    sample_bytes: int
    seed: int
    stream_length: int
    threads: int
    dtype: str


class PatchingFile(Settings):
    """Thresholds, and how they came about."""

    patching: PatchingSettings
    identity: CalibrationIdentity
    numerics: NumericsClass
    mean_patch_size: float
    """In bytes, realised on the sample."""
    subsets: dict[str, float]
    """The same for each subset of the sample."""

    def save(self, path: Path) -> None:
        write_atomic(path, self.model_dump_json(indent=1) + "\n")


def load_patching(path: Path) -> PatchingFile:
    """Read what calibrate wrote. Raises PipelineError."""
    try:
        return PatchingFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PipelineError(f"--patching {path} cannot be read: {error.strerror}; calibrate writes it") from None
    except ValidationError as error:
        raise PipelineError(f"--patching {path}: {first_problem(error)}") from None
