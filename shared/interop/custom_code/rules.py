"""Where patches end, one id at a time: a patch ends with an id if the next one begins another."""

import numpy as np

WORDS = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") | frozenset(range(0x80, 0xC0))
"""Bytes inside words and characters; SpaceByte's patches end with the first of any others."""


class Rule:
    """The patches of one text while it grows. What decides about a byte came before it."""

    def __init__(self, patching: dict) -> None:
        self.rule = patching["rule"]
        self.theta, self.rise = patching["theta"], patching["theta_rise"]
        self.stride = patching["stride"]
        self.shortest, self.longest = patching["min_length"], patching["max_length"]
        self.whole_characters = patching.get("whole_characters", False)
        self.rounded = np.dtype(patching["entropy_dtype"]).type
        self.reference_starts = patching["reference_starts"]
        self.position, self.begin, self.awaited = -1, 0, 0
        self.between_words, self.entropy = True, np.float32("nan")

    def ends(self, token: int, entropy: float | None) -> bool:
        """Whether a patch ends with the next id of the text; ``entropy`` (nats) is that of the one after it."""
        self.position += 1
        following, byte = self.position + 1, token - 4 if 4 <= token < 260 else None
        wanted = self._wants(byte, following, entropy)
        length, cut = following - self.begin, self.longest
        if self.whole_characters:
            cut -= 3  # the longest character has three bytes after its first
            self.awaited = self._awaited(byte)
        long_enough = length >= cut or (wanted and length >= self.shortest)
        found = following == 1 or byte is None or (long_enough and not self.awaited)
        if found:
            self.begin = following
        return found

    def _wants(self, byte: int | None, following: int, entropy: float | None) -> bool:
        if self.rule == "byte":
            return True
        if self.rule == "static":
            return (following - 1) % self.stride == 0
        if self.rule == "space":
            before, self.between_words = self.between_words, byte not in WORDS
            return following >= 2 and self.between_words and not before
        above = np.float32(entropy) > np.float32(self.theta)
        if self.rule == "entropy":
            return bool(above)
        before, self.entropy = self.entropy, np.float32(self.rounded(np.float32(entropy)))
        rise, late = self.entropy - before, self.reference_starts and self.rule == "entropy_rise"
        if following < 3 + late:
            return self.reference_starts and following == 2
        if self.rule == "monotonic":
            return bool(rise > np.float32(self.theta))
        return bool(above and rise > np.float32(self.rise))

    def _awaited(self, byte: int | None) -> int:
        """Continuation bytes that a character still wants."""
        if self.awaited:
            return self.awaited - 1 if byte is not None and 0x80 <= byte < 0xC0 else 0
        if byte is None:
            return 0
        return (0xC2 <= byte < 0xE0) + 2 * (0xE0 <= byte < 0xF0) + 3 * (0xF0 <= byte < 0xF5)
