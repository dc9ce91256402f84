"""Which subset the next document comes from: a seeded schedule that keeps to the wanted shares of bytes.

Subset s draws q_s documents in a unit of time, its document number j at a random moment of [j, j + 1) / q_s. The merged
stream is all of them in order of time. So what comes next depends on nothing but how many documents each subset has
given, shares hold within one document of each subset at any moment, and natural shares end every pass together.
"""

import numpy as np

from shared.config import ConfigError
from trainer.data.randomness import stream_key, uniform


class Schedule:
    """The merged order of S subsets."""

    def __init__(self, rates: np.ndarray, seed: int) -> None:
        """rates float64 [S]: documents of each subset in a unit of time; a subset of rate 0 is never drawn."""
        self._subsets = np.flatnonzero(rates)
        assert len(self._subsets), "no subset to draw from"
        self._rates = rates / rates.sum()
        self._keys = [stream_key(seed, "schedule", int(subset)) for subset in range(len(rates))]

    def following(self, drawn: np.ndarray, count: int) -> np.ndarray:
        """int64 [K]: the subsets of about ``count`` next documents, at least one.

        drawn int64 [S]: how many documents each subset has given.
        """
        ahead = np.ceil(self._rates * count).astype(np.int64) + 1
        horizon = min(float((drawn[s] + ahead[s]) / self._rates[s]) for s in self._subsets)
        times, subsets = [], []
        for subset in self._subsets:
            number = np.arange(drawn[subset], drawn[subset] + ahead[subset])
            time = (number + uniform(number, self._keys[subset])) / self._rates[subset]
            # Up to the horizon every subset's documents are known, so nothing can come between them.
            known = int(np.searchsorted(time, horizon))
            times.append(time[:known])
            subsets.append(np.full(known, subset))
        merged = np.concatenate(subsets)
        return merged[np.lexsort((merged, np.concatenate(times)))]


def document_rates(
    documents: np.ndarray, text_bytes: np.ndarray, weights: dict[str, float], names: tuple[str, ...]
) -> np.ndarray:
    """float64 [S]: documents of each subset in a unit of time, for shares of bytes.

    documents and text_bytes int64 [S] are those of one pass. A subset without a weight keeps its natural share, 0
    leaves it out. Raises ConfigError for weights that cannot be kept.
    """
    for name, weight in weights.items():
        if name not in names:
            raise ConfigError(f"data.weights names {name!r}; the dataset has {', '.join(names)}")
        if not (weight >= 0 and np.isfinite(weight)):
            raise ConfigError(f"data.weights.{name} is {weight}; a share is at least 0")
        if weight > 0 and text_bytes[names.index(name)] == 0:
            raise ConfigError(f"data.weights.{name} is {weight}, but the subset holds no bytes; leave it out")
    total = max(int(text_bytes.sum()), 1)
    # A natural share of bytes is a rate of documents / total, whatever the sizes of the documents.
    rates = documents.astype(np.float64) / total
    for name, weight in weights.items():
        code = names.index(name)
        rates[code] = weight * documents[code] / text_bytes[code] if weight else 0.0
    if not rates.any():
        raise ConfigError("data.weights leaves no subset with a share above 0")
    return rates
