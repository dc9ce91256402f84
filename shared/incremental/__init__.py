"""Models over documents that grow: a few bytes at a time, each costing what it adds and not what lies before it.

`DecodingState` is what generation uses; its logits equal those of the models on the whole document.
"""

from shared.incremental.documents import Advance, DecodingState
from shared.incremental.slots import LONGEST_ADVANCE

__all__ = ["LONGEST_ADVANCE", "Advance", "DecodingState"]
