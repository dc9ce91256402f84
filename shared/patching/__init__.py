"""Where patches begin: rules as pure functions of a document, and the same rules as a stream."""

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.patching.stream import PatchStream

__all__ = ["PatchStream", "PatchingSettings", "patch_lengths"]
