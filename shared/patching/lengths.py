"""From raw decisions to patches: the one sequential definition that storing and generating share (law 2).

In order of position t: a patch starts at t if t <= 1, or the token before is special, or t - prev >= max_length,
or the rule wants it and t - prev >= min_length; prev is the latest start, forced ones included.
"""

import numpy as np

from shared.patching.rules import decisions
from shared.patching.settings import PatchingSettings
from shared.vocabulary import OFFSET


def patch_lengths(tokens: np.ndarray, patching: PatchingSettings, entropies: np.ndarray | None = None) -> np.ndarray:
    """uint16 [P]: lengths of the patches of a document; they sum to its N tokens, and the first (BOS) is 1.

    tokens int16 [N] = [BOS, b1..bn, EOS]; entropies float32 [N - 1] nats for rules that need them. The last patch holds
    EOS and may be EOS alone. Raises ValueError when the rule lacks its entropies.
    """
    forced = np.zeros(len(tokens), bool)
    forced[:2] = True
    forced[1:] |= tokens[:-1] < OFFSET
    wanted = decisions(tokens, patching, entropies)
    starts = patch_starts(wanted, forced, patching.min_length, patching.max_length)
    return np.diff(starts, append=len(tokens)).astype(np.uint16)


def patch_starts(wanted: np.ndarray, forced: np.ndarray, min_length: int, max_length: int) -> np.ndarray:
    """int64 [P]: where patches start, given what the rule wants and what is forced, bool [N] each; position 0 is forced."""
    if min_length == 1:
        return _split_long(np.flatnonzero(wanted | forced), len(wanted), max_length)
    return _walk(wanted, forced, min_length, max_length)


def _split_long(starts: np.ndarray, total: int, max_length: int) -> np.ndarray:
    """int64: the same starts, with a further one every max_length positions inside patches that are too long.

    With min_length 1 a forced cut never suppresses a wanted start, so every patch can be split by itself.
    """
    lengths = np.diff(starts, append=total)
    pieces = -(-lengths // max_length)
    first_piece = np.cumsum(pieces) - pieces
    piece = np.arange(pieces.sum()) - np.repeat(first_piece, pieces)
    return np.repeat(starts, pieces) + piece * max_length


def _walk(wanted: np.ndarray, forced: np.ndarray, min_length: int, max_length: int) -> np.ndarray:
    """int64 [P]: starts when a minimum length makes each depend on the one before; one step a patch."""
    total = len(wanted)
    next_wanted = _next_true(wanted)
    next_forced = _next_true(forced)
    starts, start = [0], 0
    while True:
        earliest = min(start + min_length, total)
        start = min(next_forced[start + 1], next_wanted[earliest], start + max_length)
        if start >= total:
            return np.array(starts, np.int64)
        starts.append(start)


def _next_true(mask: np.ndarray) -> list[int]:
    """For each position 0..N the first true position at or after it; N where there is none."""
    total = len(mask)
    marked = np.append(np.where(mask, np.arange(total), total), total)
    return np.minimum.accumulate(marked[::-1])[::-1].tolist()
