"""How a model is spread over ranks and what is computed again."""

from typing import ClassVar, Literal

from trainer.settings.section import Section


class ParallelSettings(Section):
    """How the model is spread and what is recomputed."""

    decides: ClassVar[bool] = False

    activation_checkpointing: Literal["none", "full"] = "none"
    """full: a block's activations are computed again in the backward pass instead of being kept."""
    keep_gathered: bool = False
    """Parameters stay whole from a step's first forward to its last backward: less traffic, and the memory of one whole
    copy on every rank. Otherwise each unit is gathered when it is needed."""
    compile: bool = False
    """Compile the blocks of windowed stacks: faster steps after half a minute; needs a C++ compiler on CPUs."""
