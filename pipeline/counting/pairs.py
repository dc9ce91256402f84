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
                yield self._counted(last=False)

    def finish(self) -> Iterator[Entries]:
        """What is left, when the last document has ended."""
        if self._tokens:
            yield self._counted(last=True)

    def _counted(self, last: bool) -> Entries:
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
        self.pieces += len(np.unique(pieces[inputs]))
        return found


def pair_counts(keys: np.ndarray, following: np.ndarray, pieces: np.ndarray, order: int) -> Entries:
    """In how many pieces each symbol follows each context of each length, and ANY does.

    Args:
        keys: uint64 [N], the longest context at each input.
        following: int16 [N], the symbol after it.
        pieces: int64 [N], number of the piece of each.
    """
    by_key = np.argsort(keys)
    keys, following, pieces = keys[by_key], following[by_key].astype(np.uint64), pieces[by_key].astype(np.uint64)
    bits = np.uint64(int(pieces.max(initial=0)).bit_length())
    follows_in = following << bits | pieces
    found_pairs, found_counts = [], []
    for length in range(order + 1):
        if length:
            # Near the beginning of a document there are no contexts of this length.
            there = (keys & (shortened(order, length) & ~shortened(order, length - 1))) != 0
            keys, follows_in = keys[there], follows_in[there]
        shorter = keys & shortened(order, length)
        new = _is_new(shorter)
        contexts = shorter[new]
        # Sorted numbers of context, symbol and piece; each once, they are the pieces of each pair.
        each = (np.cumsum(new).astype(np.uint64) - np.uint64(1)) << (_SYMBOL + bits) | follows_in
        each.sort()
        each = each[_is_new(each)]
        pairs, counts = _runs(each >> bits)
        found_pairs.append(contexts[pairs >> _SYMBOL] << _SYMBOL | (pairs & ANY))
        found_counts.append(counts)
        each = (each >> (_SYMBOL + bits)) << bits | (each & ((np.uint64(1) << bits) - np.uint64(1)))
        each.sort()
        numbers, counts = _runs(each[_is_new(each)] >> bits)
        found_pairs.append(contexts[numbers] << _SYMBOL | ANY)
        found_counts.append(counts)
    pairs, counts = np.concatenate(found_pairs), np.concatenate(found_counts)
    in_order = np.argsort(pairs)
    return Entries(pairs[in_order], counts[in_order])


def _is_new(values: np.ndarray) -> np.ndarray:
    """bool [N]: which of sorted values are the first of their kind."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values, each once, and how many there were of each: uint32."""
    starts = np.flatnonzero(_is_new(values))
    return values[starts], np.diff(starts, append=len(values)).astype(np.uint32)
