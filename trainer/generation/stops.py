"""Ending a text before a stop string, while showing every byte as early as it is certain."""

from collections.abc import Sequence
from typing import NamedTuple


class Shown(NamedTuple):
    """What one more byte decides."""

    text: bytes
    """The bytes that are now certain to be shown, in order."""
    found: bool
    """Whether a stop string has just ended: it is not shown, and neither is what would follow."""


class Stops:
    """Incremental search for any of some strings.

    The one that ends first is found; of several that end with the same byte, the longest. Bytes at the end that may be
    the beginning of a stop string are held back until that is decided.
    """

    def __init__(self, stop: Sequence[bytes] = ()) -> None:
        if b"" in stop:
            raise ValueError("an empty stop string would end every text before it begins")
        self._stops = tuple(sorted(set(stop), key=len, reverse=True))
        self._beginnings = frozenset(text[:length] for text in stop for length in range(1, len(text)))
        self._longest = max((len(text) - 1 for text in stop), default=0)
        self.held = b""
        """What is held back: the longest end of the text that begins a stop string."""

    def push(self, byte: int) -> Shown:
        """Take the next byte of the text."""
        held = self.held + bytes((byte,))
        # A stop that ends here is within: all of it but this byte is an end of the text that begins a stop.
        for stop in self._stops:
            if held.endswith(stop):
                self.held = b""
                return Shown(held[: -len(stop)], True)
        begin = max(0, len(held) - self._longest)
        while begin < len(held) and held[begin:] not in self._beginnings:
            begin += 1
        self.held = held[begin:]
        return Shown(held[:begin], False)
