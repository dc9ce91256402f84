"""One row of a shard: a document, or a part of a huge one."""

from dataclasses import dataclass

import numpy as np

from shared.shards.spans import Spans
from shared.vocabulary import BOS, EOS, byte_tokens

LONGEST_PART = 64 * 2**20
"""Bytes of text in one row at most; a longer document becomes consecutive rows. A row is in memory as a whole, several
times over while it is written: this bounds a worker whatever a document's length."""
MOST_TOKENS = 2 * LONGEST_PART
"""Bytes and special ids between them in one row at most."""
LONGEST_NAMES = LONGEST_PART
"""UTF-8 bytes of a row's id and meta together at most."""
PACKED_BYTES = 2**16
"""Of text and metadata in a batch that several subsets share. Where they have weights of their own, their documents are
wanted at different times, and each time the whole batch is decompressed. Such text compresses a twelfth worse."""
DEFAULT_SUBSET = "default"
"""Of texts whose subset nothing names."""
LONGEST_SUBSET = 1000
"""Characters of the name of a subset at most."""


@dataclass(frozen=True, slots=True)
class Row:
    """A document, or part ``part`` of one (BOS belongs to the first part, EOS to the last)."""

    id: str
    subset: str
    text: bytes
    part: int = 0
    patch_lengths: np.ndarray | None = None
    """uint16 [P]; sums to the part's body, plus 1 in the first part (BOS) and in the last (EOS). None: unpatched."""
    entropies: np.ndarray | None = None
    """float32 nats for the sidecar, one for each input token of this part (BOS lies in the first part, EOS in none)."""
    meta: str | None = None
    """JSON that came with the record, passed through."""
    spans: Spans | None = None
    """Special ids between the bytes, and which tokens are targets; None: plain text. Of all parts or of none."""

    @property
    def size(self) -> int:
        """Tokens of the body: bytes and the special ids between them."""
        return len(self.text) + (self.spans.special_count if self.spans is not None else 0)

    def tokens(self, last: bool) -> np.ndarray:
        """int16: the row's own tokens, with BOS in a first part and EOS if it is the ``last``."""
        body = byte_tokens(self.text) if self.spans is None else self.spans.tokens(self.text)
        return np.concatenate([np.array([BOS][self.part :], np.int16), body, np.array([EOS] * last, np.int16)])

    def target_mask(self, last: bool) -> np.ndarray:
        """bool: which of ``tokens`` are targets. BOS, which nothing predicts, is none."""
        body = np.ones(self.size, bool) if self.spans is None else self.spans.target_mask()
        end = self.spans is None or self.spans.last_loss
        return np.concatenate([np.array([False][self.part :], bool), body, np.array([end] * last, bool)])

    def targets(self, last: bool) -> int:
        """Tokens of the row that are targets: EOS among them if it is the ``last`` and follows a target."""
        return len(self.text) + last if self.spans is None else int(self.target_mask(last).sum())

    @property
    def target_bytes(self) -> int:
        """Bytes of text among the targets."""
        return len(self.text) if self.spans is None else self.spans.target_bytes()
