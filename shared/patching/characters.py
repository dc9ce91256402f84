"""Where a patch may not start so that characters stay whole: decided by the bytes before, valid UTF-8 or not (law 1).

A lead byte announces 1 to 3 continuation bytes, and as many positions after it are closed. A byte that is no
continuation byte ends that, and is not itself a lead byte then: whatever the bytes, every fourth position is open.
"""

from typing import Any

import numpy as np

from shared.vocabulary import OFFSET, VOCABULARY_SIZE, without_named

LONGEST_CHARACTER = 4
"""Bytes."""
MOST_CLOSED = LONGEST_CHARACTER - 1
"""Closed positions one after the other."""

# C0, C1 and F5 to FF are in no valid text (RFC 3629), so they announce nothing.
_LEADS = {1: range(0xC2, 0xE0), 2: range(0xE0, 0xF0), 3: range(0xF0, 0xF5)}
_ANNOUNCED = np.zeros(VOCABULARY_SIZE, np.uint8)
"""[V], continuation bytes after each id."""
for _count, _bytes in _LEADS.items():
    _ANNOUNCED[_bytes.start + OFFSET : _bytes.stop + OFFSET] = _count


def awaited_after(token: int, awaited: int) -> int:
    """Continuation bytes that are still to come after a token, when ``awaited`` were before it; 0: open."""
    if awaited:
        return awaited - 1 if _is_continuation(token) else 0
    return int(_ANNOUNCED[without_named(token)])


def awaited_bytes(tokens: np.ndarray, awaited: int = 0) -> np.ndarray:
    """uint8 [N + 1]: the same before each of int16 tokens [N], and after the last; the first is ``awaited``.

    The tokens may be of several documents, one after the other: BOS ends a character like any other byte that does.
    """
    before = [_LEADS[awaited].start + OFFSET] if awaited else []  # announces what is still to come
    tokens = np.concatenate([np.array(before, np.int16), tokens])
    found = np.zeros(len(tokens) + 1 + MOST_CLOSED, np.uint8)
    announced = _ANNOUNCED[without_named(tokens)]
    leads = np.flatnonzero(announced)
    following = np.zeros((2, len(leads)), bool)  # whether the first and the second byte after each lead continue it
    padded = np.append(_is_continuation(tokens), (False, False))
    following[0] = padded[leads + 1]
    following[1] = following[0] & padded[leads + 2]
    announced = announced[leads]
    closed = 1 + (following & (announced > np.array([[1], [2]]))).sum(0)  # positions after each lead, if it is one
    effective = _effective(leads, closed)
    leads, announced, closed = leads[effective], announced[effective], closed[effective]
    for place in range(MOST_CLOSED):
        reached = closed > place
        found[leads[reached] + 1 + place] = announced[reached] - place
    return found[len(before) : len(tokens) + 1]


def _effective(leads: np.ndarray, closed: np.ndarray) -> np.ndarray:
    """bool [L]: which lead bytes begin a character; one at a position that an effective one closes does not."""
    linked = np.zeros(len(leads), bool)
    linked[1:] = np.diff(leads) <= closed[:-1]
    if not linked.any():  # as in all valid text
        return ~linked
    numbers = np.arange(len(leads))
    chain = np.maximum.accumulate(np.where(linked, 0, numbers))  # the first lead of those that close each other
    effective: np.ndarray = (numbers - chain) % 2 == 0
    return effective


def _is_continuation(tokens: Any) -> Any:
    """Of an int or an array, as `is_special`."""
    return (tokens >= 0x80 + OFFSET) & (tokens < 0xC0 + OFFSET)
