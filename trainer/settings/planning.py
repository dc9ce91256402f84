"""What --plan reckons with; training itself reads none of it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from shared.layers.devices import DEVICES, find_device
from shared.patching.settings import LONGEST_PATCH
from shared.settings import Unit
from shared.stack_settings import LONGEST_WINDOW
from trainer.settings.section import Section


class TargetsPlanSettings(Section):
    """The targets of a teacher that are not made yet: options of `python -m pipeline targets`, and its tokens."""

    top: Annotated[int, Unit("symbols")] = Field(default=8, ge=1, le=256)
    """K, symbols of each target."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of logarithms."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the teacher's weights and products."""
    context: Annotated[int, Unit("tokens")] | None = Field(default=None, ge=2, le=LONGEST_WINDOW)
    """Of a window of a long document; None: as the command takes them, 1024 as a rule."""
    token_bytes: Annotated[float, Unit("bytes")] | None = Field(default=None, ge=1, le=LONGEST_PATCH)
    """Mean length of the teacher's tokens; None: that of a patch."""


class PlanSettings(Section):
    """The machine and the data that a recipe is meant for."""

    affects_result: ClassVar[bool] = False

    ranks: Annotated[int, Unit("ranks")] = Field(default=1, gt=0, le=2**20)
    """R, one a device."""
    device: str | None = None
    """Name of the accelerator, as in shared/layers/devices.py ("H200"); None: a CPU, about which nothing is said."""
    utilisation: float = Field(default=0.4, gt=0, le=1)
    """Share of the device's peak that useful FLOPs reach."""
    patch_size: Annotated[float, Unit("bytes")] = Field(default=4.5, ge=1, le=65535)
    """Mean length of a patch, where the dataset is not there to say it."""
    document_bytes: Annotated[int, Unit("bytes")] | None = Field(default=None, gt=0, lt=2**40)
    """Length of a document; None: as long as a pack, which is the most that attention can cost."""

    targets: TargetsPlanSettings = TargetsPlanSettings()

    @field_validator("device")
    @classmethod
    def _known(cls, device: str | None) -> str | None:
        if device is not None and find_device(device) is None:
            raise ValueError(f"{device!r} is not known; give one of {', '.join(known.name for known in DEVICES)}")
        return device
