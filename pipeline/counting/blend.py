"""The entropy after each context, of the blend of its own counts with those of the contexts that it ends in.

    p_k(x | c) = (n(c, x) + t(c) p_{k-1}(x | c')) / (N(c) + t(c)),   p_{-1} = 1 / symbols

n(c, x): pieces in which x followed c; t(c): symbols that did; N(c) the sum of their n; c' is c without its oldest
element. With w = t / (N + t), q = p_{k-1} and sums over the symbols that followed c,

    H(c) = w (H(c') + sum q ln q) - w ln w (1 - sum q) - sum p ln p

for every symbol that did not follow c has probability w q. The bits are the same everywhere: + - * / of fp64 arrays in
the order that is written here, a logarithm of our own, and sums of integers (terms in units of 2^-44, rounded down).
Formula: Witten and Bell 1991, method C, applied to every order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.counting.merge import MERGED, RANGES_FILE, Part, class_of, merged_path, saved
from pipeline.counting.runs import Entries, Run
from pipeline.counting.settings import ANY, Counting, orders_of
from pipeline.plan import Unit
from pipeline.settings import Job
from pipeline.splits.process import Progress
from shared.counts.contexts import BITS, shortened
from shared.io.files.atomic import write_atomic

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
class KeptRange(Part):
    """A merged range, and how many contexts of the lowest class that is kept are kept of it: the first by key."""

    of_class: int


@dataclass(frozen=True)
class BlendRange:
    """Finds the entropies of the contexts of one range that are kept; a worker gets it with each range."""

    counting: Counting
    above: int
    """The class of which some contexts are kept, and all of higher ones."""

    def __call__(self, job: Job, unit: Unit, run: str, progress: Progress) -> None:
        assert isinstance(unit, KeptRange)
        order = self.counting.order
        entries = self._kept(unit)
        found = np.zeros(0, FOUND)
        if len(entries):
            first = entries.pairs[0] >> _SYMBOL_BITS
            # What the first context ends in, and no other: all others lie behind it.
            shorter = sorted({int(first & shortened(order, length)) for length in range(order)} - {int(first)})
            above = self._of_contexts(shorter)
            together = Entries(
                np.concatenate([*(part.pairs for part in above), entries.pairs]),
                np.concatenate([*(part.counts for part in above), entries.counts]),
            )
            contexts, entropies = blended(together, self.counting.symbols, order)
            found = np.zeros(len(contexts) - len(shorter), FOUND)
            found["context"], found["entropy"] = contexts[len(shorter) :], entropies[len(shorter) :]
        write_atomic(entropies_path(self.counting.folder, unit.number), saved(found))

    def _kept(self, unit: KeptRange) -> Entries:
        """The entries of the contexts of a range that are kept."""
        entries = Run(merged_path(self.counting.folder, unit.number)).between(0, 2**63)
        ends = np.flatnonzero((entries.pairs & ANY) == ANY)
        keys = entries.pairs[ends] >> _SYMBOL_BITS
        classes = class_of(entries.counts[ends], orders_of(keys, self.counting.order))
        at = classes == self.above
        kept = (keys == 0) | (classes > self.above) | (at & (np.cumsum(at) <= unit.of_class))
        wanted = np.repeat(kept, np.diff(ends, prepend=-1))
        return Entries(entries.pairs[wanted], entries.counts[wanted])

    def _of_contexts(self, keys: Sequence[int]) -> list[Entries]:
        """All entries of some contexts."""
        folder = self.counting.folder
        bounds = np.load(folder / MERGED / RANGES_FILE)
        found = []
        for key in keys:
            first, end = key << BITS, (key + 1) << BITS
            number = int(np.searchsorted(bounds, np.uint64(first), side="right")) - 1
            found.append(Run(merged_path(folder, number)).between(first, end))
        return found


FOUND = np.dtype([("context", "<u8"), ("entropy", "<f4")])
"""Of each context, ascending by key; the empty one has the key 0."""


def entropies_path(folder: Path, number: int) -> Path:
    """Of a range: FOUND [C]."""
    return merged_path(folder, number).with_suffix(".entropies.npy")
