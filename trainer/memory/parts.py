"""The parts of a rank's memory, as a plan works them out and a dry run measures them; free of torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from shared.io.display.quantities import quantity

STATE = ("parameters", "gradients", "moments", "tables", "table_moments")
"""What stays from step to step, and leaves the device with ``parallel.offload``."""
SELDOM = ("teacher",)
"""What few runs have."""
HELP = {
    "parameters": "more ranks, a larger parallel.shard or parallel.offload",
    "gradients": "more ranks, a larger parallel.shard or parallel.offload",
    "moments": "more ranks, a larger parallel.shard or parallel.offload",
    "tables": "more ranks, smaller model.ngrams.rows or parallel.offload",
    "table_moments": "more ranks, smaller model.ngrams.rows or parallel.offload",
    "unsharded": "parallel.keep_gathered = false",
    "teacher": "distillation.embedding = 0",
    "activations": "smaller data.tokens, or parallel.activation_checkpointing = 'selective' or 'full'",
    "logits": "smaller data.tokens",
    "transient": "as many ranks as data.packs, so that no gradients are summed over packs",
}
"""What makes each part smaller."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    parameters: int
    """Its shard, fp32, without tables."""
    gradients: int
    """The same of what learns."""
    moments: int
    """What optimizers keep of parameters other than tables."""
    tables: int
    """Its rows of the n-gram tables, fp32."""
    table_moments: int
    unsharded: int
    """Whole parameters in the dtype that is computed in: of the two neighbouring units that need most, and of what is
    in no unit; of everything with ``parallel.keep_gathered``."""
    teacher: int = 0
    """The embedding of a teacher, whole on each rank, in the dtype of its folder."""
    activations: int = 0
    """What the forward pass of a pack has left for its backward pass."""
    logits: int = 0
    """fp32 [T, V], and as much for their gradient."""
    transient: int = 0
    """What comes and goes in a backward pass. A dry run counts it in the peak alone."""
    peak: int = 0
    """The most at once, as a dry run measures it; parts that lie on the host are none of a GPU's."""

    def parts(self) -> dict[str, int]:
        """All but the peak."""
        return {name: size for name, size in asdict(self).items() if name != "peak"}

    def largest_first(self) -> dict[str, int]:
        """The same, sorted."""
        return dict(sorted(self.parts().items(), key=lambda part: -part[1]))

    def on_device(self, offload: bool) -> int:
        """The sum of the parts on the device; with ``offload`` the state is on the host."""
        return sum(size for part, size in self.parts().items() if not (offload and part in STATE))

    def line(self) -> str:
        """The parts that are there, the largest first."""
        sizes = self.largest_first().items()
        return ", ".join(f"{name.replace('_', ' ')} {quantity(size)}B" for name, size in sizes if size)


def unsharded_elements(units: Sequence[int], everything: int, keep: bool) -> int:
    """Parameters that are whole at once, from those of each unit in order; all of them with ``keep``."""
    return everything if keep else everything - sum(units) + max(map(sum, pairwise(units)), default=sum(units))


def logits_bytes(tokens: int, vocabulary: int) -> int:
    """Of logarithms of probabilities, fp32 [T, V]. While they are made, and while their gradient is, twice as much."""
    return 4 * tokens * vocabulary
