"""What a count has to come to, by dictionaries and fractions, from the definition in docs/counts.md."""

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from shared.vocabulary import BOS, EOS, NEWLINE, OFFSET, RESERVED, VOCABULARY_SIZE

Context = tuple[int, ...]
"""Elements, oldest first."""


class Oracle:
    """Counts of some documents, each [BOS, body, EOS], as token ids."""

    def __init__(self, documents: Sequence[Sequence[int]], order: int, newline_reset: bool, piece: int) -> None:
        self.pairs: dict[tuple[Context, int], set[tuple[int, int]]] = defaultdict(set)
        """Where each symbol follows each context: number of the document, and of its piece."""
        self.contexts: dict[Context, set[tuple[int, int]]] = defaultdict(set)
        for number, named in enumerate(documents):
            tokens = [RESERVED if token >= VOCABULARY_SIZE else token for token in named]
            assert tokens[0] == BOS
            assert tokens[-1] == EOS
            opener = 0
            for at in range(len(tokens) - 1):
                if tokens[at] < OFFSET or (newline_reset and tokens[at] == NEWLINE):
                    opener = at
                for length in range(min(order, at - opener + 1) + 1):
                    context = tuple(tokens[at - length + 1 : at + 1])
                    self.pairs[context, tokens[at + 1]].add((number, at // piece))
                    self.contexts[context].add((number, at // piece))

    def following(self, context: Context) -> dict[int, int]:
        """n(c, x) for each x that followed c."""
        return {symbol: len(where) for (found, symbol), where in self.pairs.items() if found == context}

    def kept(self, contexts: int, least: int, order: int) -> list[Context]:
        """Those that are kept, with the empty one, the first of them first."""
        ranked = sorted(
            (context for context, where in self.contexts.items() if context and len(where) >= least),
            key=lambda context: (-len(self.contexts[context]), len(context), key_of(context, order)),
        )
        return [(), *ranked[:contexts]]

    def entropies(self, contexts: Sequence[Context], symbols: int) -> dict[Context, float]:
        """Of these, each behind those that it ends in."""
        following: dict[Context, dict[int, int]] = defaultdict(dict)
        for (context, symbol), where in self.pairs.items():
            following[context][symbol] = len(where)
        every = [*range(OFFSET, VOCABULARY_SIZE), EOS, RESERVED][:symbols]
        blends: dict[Context, dict[int, Fraction]] = {}
        for context in contexts:
            own = following[context]
            total, distinct = sum(own.values()), len(own)
            shorter = blends[context[1:]] if context else dict.fromkeys(every, Fraction(1, symbols))
            blends[context] = {
                symbol: (own.get(symbol, 0) + distinct * shorter[symbol]) / (total + distinct) for symbol in every
            }
        assert all(sum(blend.values()) == 1 for blend in blends.values())
        return {
            context: -math.fsum(float(p) * math.log(p) for p in blend.values()) for context, blend in blends.items()
        }


def key_of(context: Context, order: int) -> int:
    """The number that stands for a context."""
    return sum(element << 9 * (order - 1 - back) for back, element in enumerate(reversed(context)))
