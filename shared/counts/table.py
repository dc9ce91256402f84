"""The table of a counts model: one entropy for each context, in a file that all processes of a machine map.

A context lies at its home slot or in one of the next, before the first empty one (linear probing). Contexts are placed
in the order of their home slots, so that equal contexts give equal bytes whatever order they came in.
"""

from collections.abc import Mapping

import numpy as np

from shared.counts.contexts import context_keys, shortened
from shared.errors import ModelFileError
from shared.model_settings import CountsSettings
from shared.vocabulary import VOCABULARY_SIZE

KEYS, ENTROPIES, ROOT = "keys", "entropies", "root"
"""Tensors of the file: int64 [M] contexts, 0 where a slot is empty; float32 [M] nats; float32 [1], of no context."""
LONGEST_RUN = 2**16
"""Slots side by side that are taken: beyond, a file was not made by us."""
FEWEST_SLOTS = 9
_CHECKED = 2**20
"""Slots that are checked at a time."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_LARGEST = np.float32(np.log(VOCABULARY_SIZE) + 1e-3)


def place_contexts(keys: np.ndarray, entropies: np.ndarray, root: np.float32) -> dict[str, np.ndarray]:
    """The tensors of a table.

    Args:
        keys: uint64 [N] contexts, each once, in any order; 0 is none.
        entropies: float32 [N] nats.
        root: nats, of the empty context.
    """
    bits = max(int(4 * len(keys) // 3).bit_length(), 3)
    home = _home(keys, bits)
    order = np.lexsort((keys, home))
    # Each one slot after the one before it, if that reaches beyond its home.
    numbers = np.arange(len(keys))
    places = np.maximum.accumulate(home[order].astype(np.int64) - numbers) + numbers
    slots = max(1 << bits, int(places[-1]) + 1 if len(keys) else 0) + 1
    contexts, values = np.zeros(slots, np.int64), np.zeros(slots, np.float32)
    contexts[places], values[places] = keys[order].view(np.int64), entropies[order]
    return {KEYS: contexts, ENTROPIES: values, ROOT: np.array([root], np.float32)}


def _home(keys: np.ndarray, bits: int) -> np.ndarray:
    """uint64 [N]: the slot where each context belongs in a table of 2^bits."""
    found: np.ndarray = (keys * _MULTIPLIER) >> np.uint64(64 - bits)
    return found


def _longest_run(keys: np.ndarray) -> int:
    """Slots side by side that are taken, in memory for some of them."""
    longest = run = 0
    for first in range(0, len(keys), _CHECKED):
        part = keys[first : first + _CHECKED]
        empty = np.flatnonzero(part == 0)
        gaps = np.diff(empty, prepend=-1 - run, append=len(part)) - 1
        longest, run = max(longest, int(gaps.max())), int(gaps[-1])
    return longest


class CountModel:
    """Entropies by context. Nothing is computed when one is looked up: the same bits on every machine."""

    def __init__(self, settings: CountsSettings, tensors: Mapping[str, np.ndarray], where: str) -> None:
        """Raises ModelFileError for tensors that are no table."""
        self.settings = settings
        self._keys, self._entropies, root = tensors[KEYS].view(np.uint64), tensors[ENTROPIES], tensors[ROOT]
        self._root = np.float32(root[0])
        self._bits = (len(self._keys) - 1).bit_length() - 1
        if len(self._keys) < FEWEST_SLOTS or self._keys[-1] != 0:
            raise ModelFileError(f"{where}: tensor {KEYS} is not a table of contexts: its last slot must be empty")
        if _longest_run(self._keys) > LONGEST_RUN:
            raise ModelFileError(f"{where}: tensor {KEYS} is not a table of contexts: over {LONGEST_RUN} in a row")
        for name, values in ((ENTROPIES, self._entropies), (ROOT, root)):
            if not (values.min() >= 0 and values.max() <= _LARGEST):  # NaN is neither
                raise ModelFileError(f"{where}: tensor {name} has values that are no entropies (0 to ln 260 nats)")

    @property
    def contexts(self) -> int:
        """How many are in the table, the empty one left out."""
        return int(np.count_nonzero(self._keys))

    def entropies(self, tokens: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """float32 [R, N] nats: H(next token | those up to here) at each token, as the longest known context has it.

        Args:
            tokens: int16 [R, N] of R documents, or of several in a row, each with BOS.
            before: int16 [R, B], what came before; 0 stands for none. Of more than ``order - 1`` nothing is used.
        """
        order, skipped = self.settings.order, 0
        if before is not None:
            skipped = before.shape[1]
            tokens = np.concatenate([before, tokens], axis=1)
        keys = context_keys(tokens, order, self.settings.newline_reset)[:, skipped:]
        return self._found(np.ascontiguousarray(keys).ravel()).reshape(keys.shape)

    def _found(self, keys: np.ndarray) -> np.ndarray:
        """float32 [N] for the longest contexts uint64 [N]: of each, or of what is left of it."""
        found = np.full(len(keys), self._root, np.float32)
        unknown = np.arange(len(keys))
        for length in range(self.settings.order, 0, -1):
            # The longest first: in text like that which was counted nearly all are there.
            wanted = keys[unknown] & shortened(self.settings.order, length)
            slots = self._slots(wanted)
            known = slots >= 0
            found[unknown[known]] = self._entropies[slots[known]]
            unknown = unknown[~known]
            if not len(unknown):
                break
        return found

    def _slots(self, wanted: np.ndarray) -> np.ndarray:
        """int64 [N]: where each of these contexts lies; -1 where it does not."""
        slots = _home(wanted, self._bits).astype(np.int64)
        there = self._keys[slots]
        left = np.flatnonzero((there != wanted) & (there != 0))
        slots[there == 0] = -1
        at = slots[left]
        while len(left):
            at = at + 1
            there = self._keys[at]
            slots[left] = np.where(there == wanted[left], at, -1)
            more = (there != wanted[left]) & (there != 0)
            left, at = left[more], at[more]
        return slots
