"""One row of a shard: a document, or a part of a huge one."""

from dataclasses import dataclass

import numpy as np

LONGEST_PART = 64 * 2**20
"""Bytes of text in one row at most; a longer document becomes consecutive rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """A document, or part ``part`` of one (BOS belongs to the first part, EOS to the last)."""

    id: str
    subset: str
    text: bytes
    part: int = 0
    patch_lengths: np.ndarray | None = None
    """uint16 [P]; sums to the part's bytes, plus 1 in the first part (BOS) and in the last (EOS). None: unpatched."""
    entropies: np.ndarray | None = None
    """float32 nats for the sidecar, one for each input token of this part (BOS lies in the first part, EOS in none)."""
    meta: str | None = None
    """JSON that came with the record, passed through."""
