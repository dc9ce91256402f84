"""Contexts as numbers: what was read last, up to where the context was opened, in one integer for each position.

The element of a context is the id of a token as an entropy model sees it, 9 bits wide; 0 stands for none. The newest
element has the highest bits, so that a shorter context is the same number with its lower bits cleared, and sorted
numbers have the contexts that end alike side by side. R rows, N tokens of each, K elements of a context.
"""

import numpy as np

from shared.vocabulary import NEWLINE, OFFSET, without_named

BITS = 9
"""Of an element."""
HIGHEST_ORDER = 6
"""Elements of a context at most: with the symbol that follows they still fit into 63 bits."""


def context_keys(tokens: np.ndarray, order: int, newline_reset: bool) -> np.ndarray:
    """uint64 [R, N]: the longest context at each token, of at most ``order`` elements.

    It begins with the last special id at or before the token, or, with ``newline_reset``, the last newline, if that is
    nearer than ``order`` elements.

    Args:
        tokens: int16 [R, N], that follow one another in each row; 0 stands for none, before a document begins.
    """
    elements: np.ndarray = without_named(tokens).astype(np.uint64)
    keys: np.ndarray = elements << np.uint64(BITS * (order - 1))
    for back in range(1, order):
        keys[:, back:] |= elements[:, :-back] << np.uint64(BITS * (order - 1 - back))
    opening = (elements < OFFSET) & (elements > 0)
    if newline_reset:
        opening |= elements == NEWLINE
    rows, columns = opening.nonzero()
    for after in range(min(order - 1, keys.shape[1])):
        inside = columns + after < keys.shape[1]
        keys[rows[inside], columns[inside] + after] &= shortened(order, after + 1)
    return keys


def shortened(order: int, elements: int) -> np.uint64:
    """Of contexts of up to ``order`` elements the bits of the newest ones: what a context of so many keeps."""
    return np.uint64((1 << BITS * order) - (1 << BITS * (order - elements)))
