"""From raw decisions to patches: the one sequential definition that storing and generating share (law 2).

In order of position t: a patch starts at t if t <= 1, or the token before is special, or t - prev >= max_length,
or the rule wants it and t - prev >= min_length; prev is the latest start, forced ones included. Where characters are
kept whole, the last two hold at open positions only (characters.py), and max_length - 3 stands for max_length.
"""

from collections.abc import Sequence

import numpy as np

from shared.patching.characters import awaited_bytes
from shared.patching.rules import decisions
from shared.patching.settings import PatchingSettings
from shared.vocabulary import is_special


def patch_lengths(tokens: np.ndarray, patching: PatchingSettings, entropies: np.ndarray | None = None) -> np.ndarray:
    """uint16 [P]: lengths of the patches of a document; they sum to its N tokens, and the first (BOS) is 1.

    tokens int16 [N] = [BOS, b1..bn, EOS]; entropies float32 [N - 1] nats for rules that need them. The last patch holds
    EOS and may be EOS alone. Raises ValueError when the rule lacks its entropies.
    """
    return patch_lengths_together([tokens], patching, None if entropies is None else [entropies])[0]


def patch_lengths_together(
    documents: Sequence[np.ndarray],
    patching: PatchingSettings,
    entropies: Sequence[np.ndarray] | None = None,
    thetas: Sequence[float] | None = None,
) -> list[np.ndarray]:
    """The same for several documents at once, which costs little more than one when they are short.

    thetas: nats, the threshold of each document, where they differ from that of the settings.
    """
    counts = np.array([len(tokens) for tokens in documents])
    if patching.needs_entropy:
        for number, count in enumerate(counts.tolist()):
            given = "none" if entropies is None else len(entropies[number])
            if given != count - 1:
                raise ValueError(f"rule {patching.rule!r} needs {count - 1} entropies for {count} tokens, got {given}")
    values = np.concatenate(entropies) if patching.needs_entropy and entropies is not None else None
    lengths, patches = patch_lengths_flat(np.concatenate(documents), counts, patching, values, thetas)
    if len(counts) == 1:  # splitting takes longer than cutting a short document
        return [lengths]
    return np.split(lengths, np.cumsum(patches)[:-1])


def patch_lengths_flat(
    tokens: np.ndarray,
    counts: np.ndarray,
    patching: PatchingSettings,
    entropies: np.ndarray | None = None,
    thetas: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The same for documents that lie one after the other: uint16 [P], and int64 [D] patches of each document.

    tokens: int16 [N] of all; counts: int64 [D], tokens of each. entropies: float32 [N - D], for rules that need them.
    """
    firsts = np.cumsum(counts) - counts
    position_type = np.int32 if len(tokens) < 2**31 else np.int64  # of half the width: a remainder takes half the time
    positions = np.arange(len(tokens), dtype=position_type) - np.repeat(firsts.astype(position_type), counts)
    values = theta = None
    if patching.needs_entropy:
        values = np.full(len(tokens), np.nan, np.float32)  # EOS is no input: its NaN opens no patch
        inputs = np.ones(len(tokens), bool)
        inputs[firsts + counts - 1] = False
        values[inputs] = entropies
        theta = None if thetas is None else np.repeat(np.array(thetas, np.float32), counts)
    forced = positions < 2
    forced[1:] |= is_special(tokens[:-1])
    wanted = decisions(tokens, positions, patching, values, theta)
    closed = awaited_bytes(tokens)[:-1] > 0 if patching.whole_characters else None
    starts = patch_starts(wanted, forced, patching, closed)
    lengths = _distances(starts, len(tokens)).astype(np.uint16)
    return lengths, _distances(np.searchsorted(starts, firsts), len(starts))


def _distances(starts: np.ndarray, end: int) -> np.ndarray:
    """int64: from each to the next, and from the last to the end."""
    found: np.ndarray = np.append(starts[1:], end) - starts
    return found


def patch_starts(
    wanted: np.ndarray, forced: np.ndarray, patching: PatchingSettings, closed: np.ndarray | None
) -> np.ndarray:
    """int64 [P]: where patches start, given what the rule wants, what is forced and what is closed, bool [N] each.

    The tokens may be of several documents one after the other: that a document begins with a start is forced. No
    position is both forced and closed. ``closed``: None where all are open.
    """
    if closed is not None:
        wanted = wanted & ~closed
    if patching.min_length > 1:
        return _walk(wanted, forced, patching, closed)
    starts = np.flatnonzero(wanted | forced)
    if closed is None:
        return _split_long(starts, len(wanted), patching.cut_length)
    return _split_at_open(starts, closed, patching.cut_length)


def _split_long(starts: np.ndarray, total: int, longest: int) -> np.ndarray:
    """int64: the same starts, with a further one every ``longest`` positions inside patches that are too long.

    With min_length 1 a forced cut never suppresses a wanted start, so every patch can be split by itself.
    """
    lengths = _distances(starts, total)
    pieces = -(-lengths // longest)
    first_piece = np.cumsum(pieces) - pieces
    piece = np.arange(pieces.sum()) - np.repeat(first_piece, pieces)
    begins: np.ndarray = np.repeat(starts, pieces) + piece * longest
    return begins


def _split_at_open(starts: np.ndarray, closed: np.ndarray, longest: int) -> np.ndarray:
    """int64: the same where cuts fall on open positions only, so that each depends on the one before.

    From every open position of a long patch the next cut is known. Following that from all starts at once, and twice
    as far each time, takes as many rounds as the number of pieces has binary digits.
    """
    lengths = _distances(starts, len(closed))
    long = lengths > longest
    if not long.any():
        return starts
    places = np.flatnonzero(np.repeat(long, lengths) & ~closed[starts[0] :]) + starts[0]
    patch = np.searchsorted(starts, places, side="right")
    none = len(places)  # stands for: no further cut in this patch
    step = np.append(np.searchsorted(places, places + longest), none)
    step[:-1][np.append(patch, -1)[step[:-1]] != patch] = none
    reached = np.append(places == starts[patch - 1], False)
    while (step < none).any():
        reached[step[reached]] = True
        step = step[step]
    return np.sort(np.concatenate([starts[~long], places[reached[:-1]]]))


def _walk(wanted: np.ndarray, forced: np.ndarray, patching: PatchingSettings, closed: np.ndarray | None) -> np.ndarray:
    """int64 [P]: starts when a minimum length makes each depend on the one before; one step a candidate, not a byte."""
    total, shortest, longest = len(wanted), patching.min_length, patching.cut_length
    starts, start = [0], 0
    candidates = np.append(np.flatnonzero(wanted | forced)[1:], total)
    # In blocks: as Python integers all candidates of a document of gigabytes would take many times its size.
    for block in np.array_split(candidates, len(candidates) // 65_536 + 1):
        for candidate, must in zip(block.tolist(), forced.take(block, mode="clip").tolist()):
            while (cut := start + longest) < candidate:
                if closed is not None:
                    while cut < candidate and closed[cut]:
                        cut += 1
                    if cut == candidate:
                        break
                start = cut
                starts.append(start)
            if candidate < total and (candidate - start >= shortest or must):
                start = candidate
                starts.append(start)
    return np.array(starts, np.int64)
