"""How much a CPU takes at a time in attention, free of torch so that FLOPs can be counted without it."""

BAND = 64
"""Queries of a tile where there is a window. The bits of a row depend on its place in a tile and on how many keys the
tile has, so a segment that begins at a multiple of this gets the same ones wherever it lies."""

WHOLE = 128
"""Queries of a tile where there is no window."""

STRIP = 32
"""Tokens that read patches together."""

WIDEST_STRIP = 2 * STRIP
"""Patches that a strip may read; where one reads more, every token gathers its own patch."""


def carried_length(window: int) -> int:
    """How many keys before a tile a window can reach, rounded up to whole tiles."""
    return -(-(window - 1) // BAND) * BAND
