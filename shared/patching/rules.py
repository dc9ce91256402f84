"""Where a rule would like a patch to start: one raw decision for each token of a document.

A decision about position t looks at tokens and entropies before t only (law 1). Length limits come after (lengths.py).
The entropy of token i as an input is H(token i + 1 | tokens <= i) in nats.
"""

import numpy as np

from shared.patching.settings import PatchingSettings
from shared.vocabulary import OFFSET, VOCABULARY_SIZE, without_named


def _space_like() -> np.ndarray:
    """bool [V]: ids after which SpaceByte ends a patch: all but letters, digits and UTF-8 continuation bytes."""
    inside_words = set(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") | set(range(0x80, 0xC0))
    return np.array([token - OFFSET not in inside_words for token in range(VOCABULARY_SIZE)])


SPACE_LIKE = _space_like()


def first_rise_start(patching: PatchingSettings) -> int:
    """The earliest start that a rule on rises can decide: 3, since a rise needs two entropies after BOS's own."""
    return 4 if patching.reference_starts and patching.rule == "entropy_rise" else 3


def rounded(entropies: np.ndarray, patching: PatchingSettings) -> np.ndarray:
    """float32 [N - 1]: entropies as a rule on rises sees them, rounded to the dtype in its identity."""
    return entropies.astype(patching.entropy_dtype).astype(np.float32)


CONTEXT = 2
"""Tokens, and entropies, before a token that a decision about it may look at."""


def decisions(
    tokens: np.ndarray,
    positions: np.ndarray,
    patching: PatchingSettings,
    entropies: np.ndarray | None = None,
    theta: np.ndarray | None = None,
) -> np.ndarray:
    """bool [N]: whether the rule wants a patch to start at each token. NaN never opens a patch.

    At positions 0 and 1, where a patch always starts, the answer means nothing; nor for the first CONTEXT tokens when
    they are not a document's first.

    Args:
        tokens: int16 [N], of one document or of several one after the other.
        positions: int64 [N], of each token in its document.
        entropies: float32 [N] nats, of each token as an input; that of EOS, which is none, is not looked at.
        theta: float32 [N] nats, where tokens have thresholds of their own.
    """
    wanted = np.zeros(len(tokens), bool)
    if patching.needs_entropy:
        if entropies is None or len(entropies) != len(tokens):
            found = "none" if entropies is None else len(entropies)
            raise ValueError(f"rule {patching.rule!r} needs an entropy for each of {len(tokens)} tokens, got {found}")
        limit = np.full(1, patching.theta, np.float32) if theta is None else theta[1:]
        _entropy_decisions(wanted, positions, entropies.astype(np.float32, copy=False), patching, limit)
    elif patching.rule == "byte":
        wanted[:] = True
    elif patching.rule == "static":
        # A stride is there with this rule (checked by PatchingSettings), which the type of the field cannot say. Of a
        # stride of 1 every position is a start: hence 1 % stride.
        np.equal(positions % patching.stride, 1 % patching.stride, out=wanted)  # type: ignore[operator]
    elif patching.rule == "space":
        space_like = SPACE_LIKE[without_named(tokens)]
        wanted[2:] = space_like[1:-1] & ~space_like[:-2]
    else:
        raise ValueError(f"rule {patching.rule!r} decides about no single token")
    return wanted


def _entropy_decisions(
    wanted: np.ndarray, positions: np.ndarray, entropies: np.ndarray, patching: PatchingSettings, theta: np.ndarray
) -> None:
    """Fill ``wanted`` from float32 entropies, in place; ``theta`` is that of each token but the first, or of all."""
    if patching.rule == "entropy":
        wanted[1:] = entropies[:-1] > theta
        return
    values = rounded(entropies, patching)
    rise = values[1:-1] - values[:-2]  # rise[j] decides about token j + 2
    limit = theta if len(theta) == 1 else theta[1:]
    if patching.rule == "monotonic":
        wanted[2:] = rise > limit
    else:
        wanted[2:] = (entropies[1:-1] > limit) & (rise > np.float32(patching.theta_rise))
    wanted[positions < first_rise_start(patching)] = False
    if patching.reference_starts:
        wanted[positions == 2] = True
