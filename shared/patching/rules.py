"""Where a rule would like a patch to start: one raw decision for each token of a document.

A decision about position t looks at tokens and entropies before t only (law 1). Length limits come after (lengths.py).
N tokens of a document [BOS, b1..bn, EOS]; entropies [N - 1], entropies[i] = H(token i + 1 | tokens <= i) in nats.
"""

import numpy as np

from shared.patching.settings import PatchingSettings
from shared.vocabulary import OFFSET, VOCABULARY_SIZE


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
    tokens: np.ndarray, patching: PatchingSettings, entropies: np.ndarray | None = None, offset: int = 0
) -> np.ndarray:
    """bool [N]: whether the rule wants a patch to start at each token. NaN never opens a patch.

    ``offset``: position of the first of these tokens in its document. Unless that is 0, the first CONTEXT of them are
    there to be looked back at, and no patch is wanted there.
    Raises ValueError when the rule needs entropies and there are none, or not N - 1 of them.
    """
    count = len(tokens)
    wanted = np.zeros(count, bool)
    if patching.needs_entropy:
        if entropies is None or len(entropies) != count - 1:
            raise ValueError(
                f"rule {patching.rule!r} needs {count - 1} entropies for {count} tokens, "
                f"got {'none' if entropies is None else len(entropies)}"
            )
        _entropy_decisions(wanted, entropies.astype(np.float32, copy=False), patching, offset)
    elif patching.rule == "byte":
        wanted[:] = True
    elif patching.rule == "static":
        assert patching.stride is not None
        wanted[(1 - offset) % patching.stride if offset else 1 :: patching.stride] = True
    elif patching.rule == "space":
        space_like = SPACE_LIKE[tokens]
        wanted[2:] = space_like[1:-1] & ~space_like[:-2]
    else:
        raise ValueError("rule 'none' makes no patches")
    if offset:
        wanted[:CONTEXT] = False
    return wanted


def _entropy_decisions(wanted: np.ndarray, entropies: np.ndarray, patching: PatchingSettings, offset: int) -> None:
    """Fill ``wanted`` from float32 entropies, in place."""
    theta = np.float32(patching.theta)
    if patching.rule == "entropy":
        wanted[1:] = entropies > theta
        return
    values = rounded(entropies, patching)
    rise = values[1:] - values[:-1]  # rise[j] decides about start j + 2
    if patching.rule == "monotonic":
        wanted[2:] = rise > theta
    else:
        wanted[2:] = (entropies[1:] > theta) & (rise > np.float32(patching.theta_rise))
    wanted[: max(first_rise_start(patching) - offset, 0)] = False
    if patching.reference_starts and offset <= 2:
        wanted[2 - offset : 3 - offset] = True
