"""Prompts that begin alike are read once: states after whole parts of prompts, the ones used last within a bound."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from shared.incremental import DecodingState
from trainer.serving.memory import PART, StateSize


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt that has been read."""

    tokens: int
    """How many, a multiple of PART: there a prompt that is read from BOS is cut too, so the sums are the same."""
    document: DecodingState
    """One row; to be forked before it reads on."""
    patches: int
    """That begin with one of its tokens or with the one after them."""
    size: int
    """Bytes at most."""


class PrefixCache:
    """The least recently used prefix leaves when a new one needs its room. For one thread."""

    def __init__(self, size: StateSize, memory: int) -> None:
        """``memory`` in bytes; with 0 nothing is kept."""
        self._size, self._memory = size, memory
        self._kept: OrderedDict[bytes, Prefix] = OrderedDict()
        self.reserved = 0
        """Bytes of all that is kept, at most."""

    def __len__(self) -> int:
        """Prefixes that are kept."""
        return len(self._kept)

    def longest(self, tokens: np.ndarray, theta: float | None) -> Prefix | None:
        """The longest one that is kept of a prompt int16 [N] cut with this threshold; never all of the prompt, whose
        last token is left to the batch.
        """
        found = None
        if self._kept:
            for key in self._keys(tokens[:-1], theta):
                if key not in self._kept:
                    break
                self._kept.move_to_end(key)
                found = self._kept[key]
        return found

    def keep(self, tokens: np.ndarray, theta: float | None, document: DecodingState, patches: int) -> None:
        """Remember the state after these tokens int16 [N], a multiple of PART, unless it is there."""
        size = self._size.row_bytes(len(tokens))
        if size > self._memory or not len(tokens) or len(tokens) % PART:
            return
        *_, key = self._keys(tokens, theta)
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        while self.reserved + size > self._memory:
            _, oldest = self._kept.popitem(last=False)
            self.reserved -= oldest.size
        self._kept[key] = Prefix(len(tokens), document.fork(), patches, size)
        self.reserved += size

    @staticmethod
    def _keys(tokens: np.ndarray, theta: float | None) -> Iterator[bytes]:
        """Of each whole part of a prompt, with all parts before it."""
        digest = sha256(repr(theta).encode())
        for end in range(PART, len(tokens) + 1, PART):
            digest.update(tokens[end - PART : end].tobytes())
            yield digest.digest()
