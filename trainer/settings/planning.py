"""What --plan reckons with; training itself reads none of it."""

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from shared.layers.devices import DEVICES, find_device
from shared.settings import Unit
from trainer.settings.section import Section


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

    @field_validator("device")
    @classmethod
    def _known(cls, device: str | None) -> str | None:
        if device is not None and find_device(device) is None:
            raise ValueError(f"{device!r} is not known; give one of {', '.join(known.name for known in DEVICES)}")
        return device
