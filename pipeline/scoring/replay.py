"""Whether boundaries follow from stored entropies alone (law 2)."""

from shared.patching.settings import PatchingSettings
from shared.shards.manifest import SidecarType


def replayable(patching: PatchingSettings, sidecar: SidecarType) -> bool:
    """Whether stored entropies decide exactly as the original ones did."""
    if not patching.needs_entropy:
        return patching.patched
    return sidecar == "float32" or (sidecar == "uint8" and patching.rule == "entropy" and patching.grid)
