"""The same rules one token at a time, as generation meets them; decisions equal those behind stored lengths (law 2)."""

import numpy as np

from shared.patching.characters import awaited_after
from shared.patching.rules import SPACE_LIKE, first_rise_start
from shared.patching.settings import PatchingSettings
from shared.vocabulary import BOS, is_special, without_named


class PatchStream:
    """Boundaries of one document while it grows."""

    def __init__(self, patching: PatchingSettings) -> None:
        if not patching.patched:
            raise ValueError("rule 'none' makes no patches")
        if patching.rule == "bpe":
            raise ValueError("rule 'bpe' looks at later bytes; its patches cannot be found byte by byte")
        self.patching = patching
        self._position = -1  # of the latest token
        self._start = 0  # of the current patch
        self._awaited = 0  # continuation bytes before the next character, where characters are kept whole
        self._space_like = True
        self._entropy = np.float32("nan")

    def push(self, token: int, entropy: float | None = None) -> bool:
        """Take the token at the next position t; say whether a patch starts at t + 1.

        entropy is H(token t + 1 | tokens <= t) in nats, needed by the rules on entropy. The first token must be BOS.
        """
        if self._position < 0 and token != BOS:
            raise ValueError(f"a document begins with BOS ({BOS}), got {token}")
        if self.patching.needs_entropy and entropy is None:
            raise ValueError(f"rule {self.patching.rule!r} needs the entropy after each token")
        self._position += 1
        following = self._position + 1
        wanted = self._wants(token, following, entropy)
        if self.patching.whole_characters:
            self._awaited = awaited_after(token, self._awaited)
        length = following - self._start
        long_enough = length >= self.patching.cut_length or (wanted and length >= self.patching.min_length)
        starts = following == 1 or is_special(token) or (long_enough and not self._awaited)
        if starts:
            self._start = following
        return starts

    def _wants(self, token: int, following: int, entropy: float | None) -> bool:
        """Whether the rule wants a start at ``following``, after ``token``; remembers what the next call needs."""
        rule = self.patching.rule
        if rule == "byte":
            return True
        if rule == "static":
            assert self.patching.stride is not None
            return (following - 1) % self.patching.stride == 0
        if rule == "space":
            before, self._space_like = self._space_like, bool(SPACE_LIKE[without_named(token)])
            return following >= 2 and self._space_like and not before
        return self._entropy_wants(following, np.float32(entropy))

    def _entropy_wants(self, following: int, entropy: np.float32) -> bool:
        above = bool(entropy > np.float32(self.patching.theta))
        if self.patching.rule == "entropy":
            return above
        rounded = np.float32(np.dtype(self.patching.entropy_dtype).type(entropy))
        rise = rounded - self._entropy
        self._entropy = rounded
        if following < first_rise_start(self.patching):
            return self.patching.reference_starts and following == 2
        if self.patching.rule == "monotonic":
            return bool(rise > np.float32(self.patching.theta))
        return above and bool(rise > np.float32(self.patching.theta_rise))
