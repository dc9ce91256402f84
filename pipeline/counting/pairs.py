"""From tokens to pairs: in how many pieces of some text each symbol follows each context. N inputs at a time."""

from collections.abc import Iterator

import numpy as np

from pipeline.counting.runs import Entries
from pipeline.counting.settings import ANY, PIECE
from shared.counts.contexts import BITS, context_keys, shortened
from shared.vocabulary import BOS, EOS, without_named

TOGETHER = 2**18
"""Tokens that are counted at once, and at most one piece more."""
_SYMBOL = np.uint64(BITS)


class PairCounter:
    """Counts documents that are given token by token, one after another; memory is that of TOGETHER tokens."""

    def __init__(self, order: int, newline_reset: bool) -> None:
        self._order, self._newline_reset = order, newline_reset
        self._before = np.zeros(order - 1, np.int16)
        """What was read last; 0 stands for none."""
        self._waiting: list[np.ndarray] = []
        self._tokens = 0
        self._position = 0
        """Of the first token that waits, in its document."""
        self.pieces = 0
        """That were counted so far."""

    def add(self, tokens: np.ndarray) -> Iterator[Entries]:
        """The next tokens, int16 [n]: of documents [BOS, b1..bn, EOS], or of a part of one.

        Yields what whole pieces come to, when there are enough.
        """
        for begin in range(0, len(tokens), TOGETHER):
            self._waiting.append(tokens[begin : begin + TOGETHER])
            self._tokens += len(self._waiting[-1])
            if self._tokens >= TOGETHER:
                yield from self._counted(last=False)

    def finish(self) -> Iterator[Entries]:
        """What is left, when the last document has ended."""
        if self._tokens:
            yield from self._counted(last=True)

    def _counted(self, last: bool) -> list[Entries]:
        tokens = without_named(np.concatenate(self._waiting))
        numbers = np.arange(len(tokens))
        position = numbers - np.maximum.accumulate(np.where(tokens == BOS, numbers, -self._position))
        begins = position % PIECE == 0
        # A piece is counted as a whole, and the symbol after its last input must be at hand.
        end = len(tokens) if last else int(np.flatnonzero(begins)[-1])
        inputs = np.flatnonzero(tokens[:end] != EOS)
        read = np.concatenate([self._before, tokens[:end]])
        keys = context_keys(read[None], self._order, self._newline_reset)[0, len(self._before) :]
        pieces = np.cumsum(begins[:end])
        found = pair_counts(keys[inputs], tokens[inputs + 1], pieces[inputs], self._order)
        self._before = read[len(read) - len(self._before) :]
        self._waiting, self._tokens = [tokens[end:]], len(tokens) - end
        self._position = int(position[end]) if end < len(tokens) else 0
        self.pieces += int(np.count_nonzero(np.diff(pieces[inputs], prepend=-1)))
        return found


def pair_counts(keys: np.ndarray, following: np.ndarray, pieces: np.ndarray, order: int) -> list[Entries]:
    """In how many pieces each symbol follows each context of each length, and ANY does: parts that share no pair.

    Args:
        keys: uint64 [N], the longest context at each input.
        following: int16 [N], the symbol after it.
        pieces: int64 [N], number of the piece of each.
    """
    by_key = np.argsort(keys)
    keys = keys[by_key]
    bits = np.uint64(int(pieces.max(initial=0)).bit_length())
    follows_in = (following.astype(np.uint64) << bits | pieces.astype(np.uint64))[by_key]
    new = _is_new(keys)
    contexts, numbers = keys[new], np.cumsum(new).astype(np.uint64) - np.uint64(1)
    # Numbers of context, symbol and piece, and of context and piece, each once. What is left of them when the contexts
    # become shorter is all that shorter ones need.
    triples = _distinct(numbers << (_SYMBOL + bits) | follows_in)
    occurrences = _distinct((triples >> (_SYMBOL + bits)) << bits | (triples & ((np.uint64(1) << bits) - np.uint64(1))))
    found = []
    for length in range(order, -1, -1):
        shorter = contexts & shortened(order, length)
        new = _is_new(shorter)
        numbers = np.cumsum(new).astype(np.uint64) - np.uint64(1)
        contexts = shorter[new]
        triples = _distinct(_renumbered(triples, _SYMBOL + bits, numbers))
        occurrences = _distinct(_renumbered(occurrences, bits, numbers))
        there = np.ones(len(contexts), bool)
        if length:  # near the beginning of a document there are no contexts of this length
            there = (contexts & ~shortened(order, length - 1)) != 0
        for each in (triples >> bits, (occurrences >> bits) << _SYMBOL | ANY):
            pairs, counts = _runs(each)
            own = there[pairs >> _SYMBOL]
            pairs, counts = pairs[own], counts[own]
            found.append(Entries(contexts[pairs >> _SYMBOL] << _SYMBOL | (pairs & ANY), counts))
    return found


def _renumbered(values: np.ndarray, shift: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """Values [N] with other numbers in their bits from ``shift`` on."""
    low = (np.uint64(1) << shift) - np.uint64(1)
    found: np.ndarray = numbers[values >> shift] << shift | (values & low)
    return found


def _distinct(values: np.ndarray) -> np.ndarray:
    """Each of some values once, ascending; the array itself is sorted."""
    values.sort()
    found: np.ndarray = values[_is_new(values)]
    return found


def _is_new(values: np.ndarray) -> np.ndarray:
    """bool [N]: which of sorted values are the first of their kind."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values, each once, and how many there were of each: uint32."""
    starts = np.flatnonzero(_is_new(values))
    return values[starts], np.diff(starts, append=len(values)).astype(np.uint32)
