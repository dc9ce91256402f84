"""The entropy after each context, of the blend of its own counts with those of the contexts that it ends in.

    p_k(x | c) = (n(c, x) + t(c) p_{k-1}(x | c')) / (N(c) + t(c)),   p_{-1} = 1 / symbols

n(c, x): pieces in which x followed c; t(c): symbols that did; N(c) the sum of their n; c' is c without its oldest
element. With w = t / (N + t), q = p_{k-1} and sums over the symbols that followed c,

    H(c) = w (H(c') + sum q ln q) - w ln w (1 - sum q) - sum p ln p

for every symbol that did not follow c has probability w q. The bits are the same everywhere: + - * / of fp64 arrays in
the order that is written here, a logarithm of our own, and sums of integers (terms in units of 2^-44, rounded down).
Formula: Witten and Bell 1991, method C, applied to every order.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.counting.merge import Kept, class_of, merged_path
from pipeline.counting.runs import Entries, Run
from pipeline.counting.settings import ANY, Counting, orders_of
from shared.counts.contexts import BITS, shortened

_LN2, _ROOT_HALF = 0.6931471805599453, 0.7071067811865476
_TERMS = 13
_UNIT = 2.0**44
_SYMBOL_BITS = np.uint64(BITS)


def logarithm(values: np.ndarray) -> np.ndarray:
    """ln of positive fp64 values [N], within 2 units in the last place or 1e-16: that of a library has other bits on
    other processors.

    ln(m 2^e) = e ln 2 + 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1).
    """
    mantissa, exponent = np.frexp(values)
    low = mantissa < _ROOT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / (2 * _TERMS - 1))
    for term in range(_TERMS - 2, -1, -1):
        series = series * square
        series = series + 1.0 / (2 * term + 1)
    s = s * 2.0
    s = s * series
    found: np.ndarray = (exponent - low) * _LN2 + s
    return found


def blended(entries: Entries, symbols: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """The contexts, uint64 [C] ascending, and the entropy after each, fp64 [C] nats.

    Args:
        entries: with the empty context, and with each context those that it ends in.
        symbols: that may follow a context.
        order: elements of a context at most.
    """
    ends = np.flatnonzero((entries.pairs & ANY) == ANY)
    begins = np.append(0, ends[:-1] + 1)
    contexts = entries.pairs[ends] >> _SYMBOL_BITS
    distinct = ends - begins
    sums = np.add.reduceat(entries.counts, begins, dtype=np.int64) - entries.counts[ends]
    probabilities, entropies = np.zeros(len(entries)), np.zeros(len(contexts))
    orders = orders_of(contexts, order)
    for length in range(order + 1):
        own = np.flatnonzero(orders == length)
        if not len(own):
            continue
        starts = np.cumsum(distinct[own]) - distinct[own]
        of = np.repeat(np.arange(len(own)), distinct[own])
        at = np.arange(len(of)) + (begins[own] - starts)[of]
        if length:
            shorter = contexts[own] & shortened(order, length - 1)
            shorter_pairs = shorter[of] << _SYMBOL_BITS | (entries.pairs[at] & ANY)
            q = probabilities[np.searchsorted(entries.pairs, shorter_pairs)]
            before = entropies[np.searchsorted(contexts, shorter)]
        else:
            q = np.full(len(at), 1.0 / symbols)
            before = logarithm(np.full(len(own), float(symbols)))
        t = distinct[own].astype(np.float64)
        total = (sums[own] + distinct[own]).astype(np.float64)
        p = t[of] * q
        p = p + entries.counts[at]
        p = p / total[of]
        probabilities[at] = p
        w = t / total
        unseen = np.maximum(1.0 - _sums(q, starts), 0.0)
        found = w * (before + _sums(q * logarithm(q), starts))
        found = found - w * logarithm(w) * unseen
        entropies[own] = np.maximum(found - _sums(p * logarithm(p), starts), 0.0)
    return contexts, entropies


def _sums(terms: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """fp64 [C]: the sums of the terms [N] from each start to the next, the same in whatever order they are added."""
    units = np.floor(terms * _UNIT).astype(np.int64)
    found: np.ndarray = np.add.reduceat(units, starts).astype(np.float64) / _UNIT
    return found


@dataclass(frozen=True)
class BlendRange:
    """The entropies of the contexts of one merged range that are kept; a process gets it once."""

    counting: Counting
    bounds: np.ndarray
    """uint64 [R + 1], of the ranges."""
    kept: Kept

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Contexts, uint64 [C] ascending, and float32 [C] nats; the empty context has the key 0."""
        order = self.counting.order
        entries = self._kept(number)
        if not len(entries):
            return np.zeros(0, np.uint64), np.zeros(0, np.float32)
        first = entries.pairs[0] >> _SYMBOL_BITS
        # What the first context ends in, and no other: all others lie behind it.
        shorter = sorted({int(first & shortened(order, length)) for length in range(order)} - {int(first)})
        above = [self._of_context(key) for key in shorter]
        together = Entries(
            np.concatenate([*(part.pairs for part in above), entries.pairs]),
            np.concatenate([*(part.counts for part in above), entries.counts]),
        )
        contexts, entropies = blended(together, self.counting.symbols, order)
        return contexts[len(shorter) :], entropies[len(shorter) :].astype(np.float32)

    def _kept(self, number: int) -> Entries:
        """The entries of the contexts of a range that are kept."""
        run = Run(merged_path(self.counting.folder, number))
        pairs, counts = np.array(run.pairs), np.array(run.counts)
        ends = np.flatnonzero((pairs & ANY) == ANY)
        keys = pairs[ends] >> _SYMBOL_BITS
        classes = class_of(counts[ends], orders_of(keys, self.counting.order))
        classes[keys == 0] = np.iinfo(np.int64).max
        wanted = np.repeat(self.kept.mask(number, classes), np.diff(ends, prepend=-1))
        return Entries(pairs[wanted], counts[wanted])

    def _of_context(self, key: int) -> Entries:
        """All entries of one context."""
        first, end = key << BITS, (key + 1) << BITS
        number = int(np.searchsorted(self.bounds, np.uint64(first), side="right")) - 1
        return Run(merged_path(self.counting.folder, number)).between(first, end)
