"""How much longer patches are on text that was counted than on text that was not: what a table knows of its own text.

    python tests/benchmarks/study_in_sample.py CORPUS ... [--bytes 4000000] [--folds 4] [--least 2 5]

CORPUS: the folder of an unpatched dataset, with train/ and validation/. In each fold the table is made of the other
folds, and its threshold gives patches of 4.5 bytes there; "held out" are bytes per patch at that threshold on the fold,
"validation" on the validation split with a table and a threshold of all of train. The bias is what the table alone
makes of the text: a validation split may be easier or harder than train. Compared are

    plain  how often a symbol followed a context, blended by Witten and Bell
    (a)    the same, with the mean of the entropies that are left when one occurrence is taken out of the context
    (b)    in how many pieces (documents, or 16,384 bytes of them) it did: what `count` does
    (c)    plain counts, blended with a weight for each order and count of a context, the best when one is left out
    (b)+(c)

LEAST: how often (with (b): in how many pieces) a context must have been seen.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.counts.contexts import BITS, context_keys, shortened
from shared.counts.scorer import CountScorer
from shared.counts.table import CountModel, place_contexts
from shared.model_settings import CountsSettings
from shared.shards.open import open_dataset
from shared.vocabulary import document_tokens

ORDER, SYMBOLS, PIECE, TARGET = 5, 257, 2**14, 4.5
CORRECTIONS = ("plain", "(a)", "(b)", "(c)", "(b)+(c)")
_SYMBOL = np.uint64(BITS)


@dataclass
class Order:
    """The contexts of one length, and what followed each: C contexts, N pairs of a context and a symbol."""

    contexts: np.ndarray
    """uint64 [C] ascending."""
    starts: np.ndarray
    """int64 [C]: the first pair of each."""
    pairs: np.ndarray
    """uint64 [N] ascending."""
    counts: np.ndarray
    """float64 [N]."""
    probabilities: np.ndarray
    """float64 [N], once they are blended."""
    entropies: np.ndarray
    """float64 [C] nats."""

    @property
    def distinct(self) -> np.ndarray:
        """int64 [C]: symbols after each."""
        return np.diff(self.starts, append=len(self.pairs))

    @property
    def of(self) -> np.ndarray:
        """int64 [N]: the context of each pair."""
        return np.repeat(np.arange(len(self.contexts)), self.distinct)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[C]: of values [N] over the symbols of each context."""
        found: np.ndarray = np.add.reduceat(values, self.starts) if len(values) else np.zeros(0)
        return found


def texts(folder: Path, most: int | None = None) -> list[np.ndarray]:
    """Documents, tokens int16 each; of more than ``most`` bytes some, drawn at random."""
    found = [document_tokens(row.text) for row in open_dataset(folder).rows()]
    chosen, held = [], 0
    for number in np.random.default_rng(0).permutation(len(found)).tolist():
        if most is None or held < most:
            chosen.append(found[number])
            held += len(found[number])
    return chosen


def counted(documents: Sequence[np.ndarray], by_pieces: bool, least: int) -> list[Order]:
    """Orders 0 to ORDER, of contexts that were seen often enough."""
    tokens = np.concatenate(documents)
    sizes = np.array([len(document) for document in documents])
    begins = np.cumsum(sizes) - sizes
    inside = np.arange(len(tokens)) - np.repeat(begins, sizes)
    pieces = np.repeat(np.cumsum(-(-sizes // PIECE)), sizes) * 2**20 + inside // PIECE
    inputs = np.ones(len(tokens), bool)
    inputs[begins + sizes - 1] = False  # EOS is none
    keys, symbols, pieces = (
        context_keys(tokens[None], ORDER, False)[0][inputs],
        np.roll(tokens, -1)[inputs],
        pieces[inputs],
    )
    orders = []
    for length in range(ORDER + 1):
        element = shortened(ORDER, length) & ~shortened(ORDER, length - 1) if length else np.uint64(0)
        there = (keys & element != 0) if length else np.ones(len(keys), bool)
        contexts = keys[there] & shortened(ORDER, length)
        pairs = contexts << _SYMBOL | symbols[there].astype(np.uint64)
        seen, own = contexts, pieces[there]
        if by_pieces:
            pairs = _once(pairs, own)
            seen = _once(contexts, own)
        pairs, counts = np.unique(pairs, return_counts=True)
        known, often = np.unique(seen, return_counts=True)
        if length:
            wanted = often[np.searchsorted(known, pairs >> _SYMBOL)] >= least
            pairs, counts = pairs[wanted], counts[wanted]
        of = pairs >> _SYMBOL
        starts = np.flatnonzero(np.diff(of, prepend=of[:1] ^ np.uint64(1)))
        empty = np.zeros(0)
        orders.append(Order(of[starts], starts, pairs, counts.astype(np.float64), empty, empty))
    return orders


def _once(values: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """uint64 values, each once for each piece that it is in."""
    order = np.lexsort((pieces, values))
    values, pieces = values[order], pieces[order]
    new = np.append(True, (values[1:] != values[:-1]) | (pieces[1:] != pieces[:-1]))
    found: np.ndarray = values[new]
    return found


def blend(orders: Sequence[Order], weighted: bool) -> None:
    """Fill in probabilities and entropies, shorter contexts first; ``weighted``: as (c) has it."""
    for length, own in enumerate(orders):
        q, before = _shorter(orders, length)
        total = own.sums(own.counts)
        weight = _best_weights(own, q, total) if weighted else own.distinct / (total + own.distinct)
        of = own.of
        own.probabilities = (1 - weight[of]) * own.counts / total[of] + weight[of] * q
        unseen = np.maximum(1 - own.sums(q), 0)
        own.entropies = (
            weight * (before + own.sums(q * np.log(q))) - _xlogx(weight) * unseen - own.sums(_xlogx(own.probabilities))
        )


def _shorter(orders: Sequence[Order], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N] and entropies [C] of the contexts without their oldest elements."""
    own = orders[length]
    if not length:
        return np.full(len(own.pairs), 1 / SYMBOLS), np.full(len(own.contexts), np.log(SYMBOLS))
    below = orders[length - 1]
    shorter = own.contexts & shortened(ORDER, length - 1)
    pairs = shorter[own.of] << _SYMBOL | (own.pairs & np.uint64(2**BITS - 1))
    return below.probabilities[np.searchsorted(below.pairs, pairs)], below.entropies[
        np.searchsorted(below.contexts, shorter)
    ]


def _best_weights(own: Order, q: np.ndarray, total: np.ndarray) -> np.ndarray:
    """float64 [C]: of the shorter contexts; the likeliest for contexts seen as often, with one occurrence left out."""
    often = np.where(total <= 16, total, 16 + np.floor(4 * np.log2(np.maximum(total, 1) / 16))).astype(int)
    of, found = own.of, np.full(often.max(initial=0) + 1, 0.5)
    left = (own.counts - 1) / np.maximum(total[of] - 1, 1)
    everything = np.maximum(np.bincount(often[of], own.counts, len(found)), 1)
    for _ in range(60):
        weight = found[often[of]]
        both = (1 - weight) * left + weight * q
        found = np.bincount(often[of], own.counts * np.where(both > 0, weight * q / both, 1), len(found)) / everything
    found[:2] = 1  # nothing is left of a context that was seen once
    weights: np.ndarray = np.clip(found, 1e-6, 1)[often]
    return weights


def leave_one_out(orders: Sequence[Order]) -> None:
    """Replace entropies as (a) has it."""
    corrected = []
    for length, own in enumerate(orders):
        q, before = _shorter(orders, length)
        of, total, mean = own.of, own.sums(own.counts), np.zeros(len(own.pairs))
        for once in (False, True):  # a symbol that was seen once is one less that followed
            distinct = (own.distinct - once).astype(float)
            mass = own.counts + distinct[of] * q
            left = np.zeros(len(mass)) if once else mass - 1
            known = own.sums(q)[of] - (q if once else 0)
            logs = own.sums(q * np.log(q))[of] - (q * np.log(q) if once else 0)
            size = np.maximum((total - 1 + distinct)[of], 1e-9)
            sums = own.sums(_xlogx(mass))[of] - _xlogx(mass) + _xlogx(left)
            masses = own.sums(mass)[of] - mass + left
            weight = distinct[of] / size
            entropy = weight * (before[of] + logs) - _xlogx(weight) * np.maximum(1 - known, 0)
            entropy = np.where(size < 1e-6, before[of], entropy - (sums - masses * np.log(size)) / size)
            mean = np.where((own.counts == 1) == once, entropy, mean)
        corrected.append(own.sums(own.counts * mean) / total)
    for own, entropies in zip(orders[1:], corrected[1:]):
        own.entropies = entropies


def _xlogx(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values * np.log(np.maximum(values, 1e-300))
    return found


def table(documents: Sequence[np.ndarray], correction: str, least: int) -> CountScorer:
    orders = counted(documents, "(b)" in correction, least)
    blend(orders, "(c)" in correction)
    if correction == "(a)":
        leave_one_out(orders)
    keys = np.concatenate([own.contexts for own in orders[1:]])
    values = np.concatenate([own.entropies for own in orders[1:]]).clip(0).astype(np.float32)
    made = place_contexts(keys, values, np.float32(orders[0].entropies[0]))
    return CountScorer(CountModel(CountsSettings(order=ORDER), made, correction))


def entropies_of(scorer: CountScorer, documents: Sequence[np.ndarray]) -> np.ndarray:
    """float32: after every byte but the last of its document; where patches may begin."""
    return np.concatenate([found[1:] for found in scorer.score(documents)])


def threshold(entropies: np.ndarray, documents: int) -> np.float32:
    """That of patches of TARGET bytes: the first of a document begins by itself."""
    wanted = max(int(len(entropies) / TARGET) - documents, 1)
    found: np.float32 = np.partition(entropies, len(entropies) - wanted)[len(entropies) - wanted]
    return found


def patch_size(entropies: np.ndarray, documents: int, theta: np.float32) -> float:
    return len(entropies) / (documents + int((entropies > theta).sum()))


def held_out(documents: Sequence[np.ndarray], folds: int, correction: str, least: int) -> tuple[float, float]:
    """Bytes per patch on what was counted, and on what was not: means over folds."""
    parts = np.array_split(np.random.default_rng(1).permutation(len(documents)), folds)
    found = []
    for fold in range(folds):
        own = [documents[number] for number in parts[fold]]
        others = [documents[number] for other in range(folds) if other != fold for number in parts[other]]
        scorer = table(others, correction, least)
        inside = entropies_of(scorer, others)
        theta = threshold(inside, len(others))
        outside = entropies_of(scorer, own)
        found.append((patch_size(inside, len(others), theta), patch_size(outside, len(own), theta)))
    inside_mean, outside_mean = np.array(found).mean(axis=0).tolist()
    return inside_mean, outside_mean


def lines(corpus: Path, most: int, folds: int, least: Sequence[int]) -> Iterator[str]:
    train, validation = texts(corpus / "train", most), texts(corpus / "validation")
    yield f"{corpus}: {sum(map(len, train)):,} tokens of train, {sum(map(len, validation)):,} of validation"
    yield f"  {'':<10}{'least':>6}{'contexts':>10}{'counted':>9}{'held out':>10}{'bias':>8}{'validation':>12}"
    for fewest in least:
        for correction in CORRECTIONS:
            inside, outside = held_out(train, folds, correction, fewest)
            scorer = table(train, correction, fewest)
            theta = threshold(entropies_of(scorer, train), len(train))
            size = patch_size(entropies_of(scorer, validation), len(validation), theta)
            yield (
                f"  {correction:<10}{fewest:>6}{scorer.model.contexts:>10,}{inside:>9.3f}{outside:>10.3f}"
                f"{inside / outside - 1:>+8.1%}{size:>12.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", type=Path, metavar="CORPUS")
    parser.add_argument("--bytes", type=int, default=4_000_000, help="of train, about")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--least", type=int, nargs="+", default=(2, 5))
    arguments = parser.parse_args()
    for corpus in arguments.corpora:
        for line in lines(corpus, arguments.bytes, arguments.folds, arguments.least):
            print(line, flush=True)


if __name__ == "__main__":
    main()
