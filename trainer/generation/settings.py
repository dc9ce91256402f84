"""How to go on from a prompt. Free of torch: a command line is checked before a model is opened."""

from typing import Annotated

from pydantic import Field

from shared.settings import Settings
from trainer.generation.sampling import SamplingSettings


class GenerateSettings(Settings):
    """How to go on from a prompt; the same for every row of a batch."""

    length: int = Field(ge=0)
    """Bytes to write at most."""
    sampling: SamplingSettings = SamplingSettings()
    stop: tuple[Annotated[bytes, Field(min_length=1)], ...] = ()
    """The text ends before the first of these that is written; see ``Stops``."""
    utf8: bool = False
    """Write well-formed UTF-8 only; see ``Utf8State``."""
    subset: str | None = None
    """Whose threshold places the patches, where subsets have their own."""
    theta: float | None = Field(default=None, allow_inf_nan=False)
    """A threshold instead of the recorded ones, in nats."""
    draft: int = Field(default=0, ge=0)
    """Bytes that the local decoder drafts past a boundary before the full model checks them; 0: none."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Report ln of the probability of each byte, and of so many likeliest ids in its place."""
