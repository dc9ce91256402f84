"""How a model is spread over ranks, what is computed again, and where its state lies."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shared.settings import Unit
from trainer.settings.section import Section


class ParallelSettings(Section):
    """How the model is spread and what is recomputed."""

    excluded_from_identity: ClassVar[tuple[str, ...]] = (
        "shard",
        "activation_checkpointing",
        "keep_gathered",
        "offload",
        "compile",
        "dry_run",
    )

    shard: Annotated[int, Unit("ranks")] | None = Field(default=None, gt=0, le=2**20)
    """How many share one copy of the model; it must divide the number of ranks, and copies sum their gradients. None:
    one copy over all ranks. As many as a node has keeps the gathering of parameters inside it."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What a block keeps for its backward pass. none: everything; full: its input, all else is computed again;
    selective: also its attention and the products that are no wider, about a third of everything."""
    keep_gathered: bool = False
    """Parameters stay whole from a step's first forward to its last backward: less traffic, and the memory of one whole
    copy on every rank. Otherwise each unit is gathered when it is needed."""
    offload: bool = False
    """Parameters, gradients and moments lie in the host's memory, also those of n-gram tables, and the host updates
    them; the device holds what it computes with."""
    compile: bool = False
    """Compile all blocks, on a GPU cross-attention too: faster steps after half a minute; needs a C++ compiler on
    CPUs."""
    float8: bool = False
    """Products of the global transformer in float8, on Hopper GPUs and newer; needs torchao. Affects the result."""
    dry_run: bool = True
    """Before the first step, go forward and back through the largest packs without learning: shows what does not fit or
    compile, and prints memory by part. Takes about as long as two steps."""

    def sharded(self, ranks: int, dtype: str) -> bool:
        """Whether FSDP has anything to do: one rank that computes in the dtype of its masters needs none of it."""
        return ranks > 1 or dtype != "float32" or self.offload
