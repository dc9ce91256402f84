"""Well-formed UTF-8 one byte at a time, as tables (RFC 3629: nothing overlong, no surrogates, at most U+10FFFF)."""

from collections.abc import Iterable

import numpy as np

from shared.vocabulary import EOS, OFFSET, VOCABULARY_SIZE

# States are what may follow: between characters; one, two or three more bytes of any kind; and after the lead bytes
# whose next byte is limited further.
BETWEEN, ONE, TWO, THREE, AFTER_E0, AFTER_ED, AFTER_F0, AFTER_F4 = range(8)
STATES = 8

_FOLLOWING: dict[int, list[tuple[Iterable[int], int]]] = {
    BETWEEN: [
        (range(0x00, 0x80), BETWEEN),
        (range(0xC2, 0xE0), ONE),
        ((0xE0,), AFTER_E0),
        ((*range(0xE1, 0xED), 0xEE, 0xEF), TWO),
        ((0xED,), AFTER_ED),
        ((0xF0,), AFTER_F0),
        (range(0xF1, 0xF4), THREE),
        ((0xF4,), AFTER_F4),
    ],
    ONE: [(range(0x80, 0xC0), BETWEEN)],
    TWO: [(range(0x80, 0xC0), ONE)],
    THREE: [(range(0x80, 0xC0), TWO)],
    AFTER_E0: [(range(0xA0, 0xC0), ONE)],
    AFTER_ED: [(range(0x80, 0xA0), ONE)],
    AFTER_F0: [(range(0x90, 0xC0), TWO)],
    AFTER_F4: [(range(0x80, 0x90), TWO)],
}
_BYTES_LEFT = {BETWEEN: 0, ONE: 1, TWO: 2, THREE: 3, AFTER_E0: 2, AFTER_ED: 2, AFTER_F0: 3, AFTER_F4: 3}
"""Until the character is whole."""
LONGEST = 4  # bytes of a character


def _tables() -> tuple[np.ndarray, bytes, np.ndarray]:
    """Which byte may follow in which state, bool [S, 256]; the state after it, S * 256 bytes; and which ids may follow
    when at most r bytes are left, r from 0 to LONGEST, bool [S, LONGEST + 1, V].
    """
    accepted = np.zeros((STATES, 256), bool)
    after = np.full((STATES, 256), BETWEEN, np.uint8)
    allowed = np.zeros((STATES, LONGEST + 1, VOCABULARY_SIZE), bool)
    for state, ranges in _FOLLOWING.items():
        for values, following in ranges:
            some = np.array([*values])
            accepted[state, some] = True
            after[state, some] = following
            allowed[state, 1 + _BYTES_LEFT[following] :, OFFSET + some] = True
    allowed[BETWEEN, :, EOS] = True
    for state in range(STATES):
        # What cannot follow ends the character; it is then looked at as the beginning of one.
        after[state, ~accepted[state]] = after[BETWEEN, ~accepted[state]]
        for room in range(_BYTES_LEFT[state]):
            allowed[state, room] = allowed[state, LONGEST]  # too late to finish the character
    allowed.setflags(write=False)
    return accepted, after.tobytes(), allowed


_ACCEPTED, _AFTER, _ALLOWED = _tables()


class Utf8State:
    """How far into a character a text is.

    Any bytes may be pushed, a prompt that is not UTF-8 too. A byte that cannot follow ends the unfinished character and
    is taken as the beginning of the next one; if it cannot begin one it is skipped. That is how
    ``bytes.decode("utf-8", "replace")`` goes on, which puts one U+FFFD for each unfinished character and each skipped
    byte. So after a prompt that ends inside a character, that character has to be finished first.
    """

    __slots__ = ("_state",)

    def __init__(self, text: Iterable[int] = b"") -> None:
        self._state = BETWEEN
        for byte in text:
            self.push(byte)

    def push(self, byte: int) -> None:
        """Take the next byte of the text."""
        self._state = _AFTER[self._state << 8 | byte]

    def accepts(self, byte: int) -> bool:
        """Whether well-formed text may go on with this byte."""
        return bool(_ACCEPTED[self._state, byte])

    def allowed(self, room: int = LONGEST) -> np.ndarray:
        """bool [V], not to be written to: the bytes that well-formed text may go on with, and EOS between characters.

        Where at most ``room`` bytes will be written, no character is begun that would not be whole by then.
        """
        allowed: np.ndarray = _ALLOWED[self._state, min(room, LONGEST)]
        return allowed

    @property
    def complete(self) -> bool:
        """Whether the text ends between characters."""
        return self._state == BETWEEN
