"""Small models that count, made in plain Python from some texts."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from shared.counts.files import write_counts
from shared.counts.table import place_contexts
from shared.model_settings import CountsSettings
from shared.vocabulary import NEWLINE, OFFSET, document_tokens

Context = tuple[int, ...]


def key_of(context: Context, order: int) -> int:
    """The number of a context, whose newest element comes last."""
    return sum(token << 9 * (order - 1 - back) for back, token in enumerate(reversed(context)))


def counted_folder(folder: Path, texts: Iterable[bytes], order: int = 3, newline_reset: bool = False) -> Path:
    """A model folder: the entropy of what followed each context of some texts, as often as it did."""
    following: dict[Context, Counter[int]] = defaultdict(Counter)
    for text in texts:
        tokens, begin = document_tokens(text).tolist(), 0
        for place, token in enumerate(tokens[:-1]):
            if token < OFFSET or (newline_reset and token == NEWLINE):
                begin = place
            for length in range(min(order, place + 1 - begin) + 1):
                following[tuple(tokens[place + 1 - length : place + 1])][tokens[place + 1]] += 1
    entropies = {context: _entropy(counts) for context, counts in following.items()}
    keys = np.array([key_of(context, order) for context in entropies if context], np.uint64)
    values = np.array([value for context, value in entropies.items() if context], np.float32)
    folder.mkdir(parents=True)
    settings = CountsSettings(order=order, newline_reset=newline_reset)
    write_counts(folder, settings, place_contexts(keys, values, np.float32(entropies[()])))
    return folder


def _entropy(counts: Counter[int]) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values()) + 0.0
