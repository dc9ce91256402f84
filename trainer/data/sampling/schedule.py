"""Which subset the next document comes from: a seeded schedule that keeps to the wanted shares of bytes.

Subset s draws q_s documents in a unit of time, its document number j at a random moment of [j, j + 1) / q_s. The merged
stream is all of them in order of time. So what comes next depends on nothing but how many documents each subset has
given, shares hold within one document of each subset at any moment, and natural shares end every pass together.
A subset that ends after so many passes leaves the stream; the others go on at their rates, so their shares grow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from shared.errors import ConfigError
from shared.randomness import stream_key, uniform
from shared.shards.manifest import SubsetTotals

ENDLESS = 2**62
"""Documents of a subset that is repeated for ever."""


@dataclass(frozen=True)
class Mixing:
    """How subsets are mixed. A key is a subset, or the beginning of the names of several: "code" is all "code/...";
    what a subset says itself comes first.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of the bytes: of a subset, or of those together that share a beginning."""
    repeats: Mapping[str, int] = field(default_factory=dict)
    """Passes over each subset after which it is left out."""


class Schedule:
    """The merged order of S subsets."""

    def __init__(self, rates: np.ndarray, seed: int, ends: np.ndarray | None = None) -> None:
        """rates float64 [S]: documents of each subset in a unit of time; a subset of rate 0 is never drawn.

        ends int64 [S]: documents that each subset gives in all; None: without end.
        """
        self.subsets = np.flatnonzero(rates)
        """int64: those that are sampled."""
        assert len(self.subsets), "no subset to draw from"
        self._rates = rates / rates.sum()
        self.ends = np.full(len(rates), ENDLESS) if ends is None else ends
        """int64 [S]: documents that each subset gives in all."""
        self._keys = np.array([stream_key(seed, "schedule", int(subset)) for subset in range(len(rates))], np.uint64)

    def following(self, sampled: np.ndarray, count: int) -> np.ndarray:
        """int64 [K]: the subsets of about ``count`` next documents, at least one unless all subsets have ended.

        sampled int64 [S]: how many documents each subset has given.
        """
        subsets, rates, begun = self.subsets, self._rates[self.subsets], sampled[self.subsets]
        known = np.minimum(begun + np.ceil(rates * count).astype(np.int64) + 1, self.ends[subsets])
        # Up to the horizon every subset's documents are known, so nothing can come between them.
        horizon = np.min((known / rates)[known < self.ends[subsets]], initial=np.inf)
        ahead = np.maximum(known - begun, 0)
        which = np.repeat(np.arange(len(subsets)), ahead)
        number = np.arange(int(ahead.sum())) + (begun - np.cumsum(ahead) + ahead)[which]
        times = (number + uniform(number, self._keys[subsets][which])) / rates[which]
        near = times < horizon
        merged, times = subsets[which[near]], times[near]
        return np.asarray(merged[np.lexsort((merged, times))])


def document_rates(
    documents: np.ndarray, text_bytes: np.ndarray, weights: Mapping[str, float], names: tuple[str, ...]
) -> np.ndarray:
    """float64 [S]: documents of each subset in a unit of time, for shares of bytes.

    documents and text_bytes int64 [S] are those of one pass. A subset without a weight keeps its natural share, 0
    leaves it out. Raises ConfigError for weights that cannot be kept.
    """
    # A natural share of bytes is a rate of documents / total, whatever the sizes of the documents.
    rates = documents / max(int(text_bytes.sum()), 1)
    for name, codes in named_subsets(weights, names, "weights").items():
        weight, text = weights[name], int(text_bytes[codes].sum())
        if not (weight >= 0 and np.isfinite(weight)):
            raise ConfigError(f"data.weights.{name} is {weight}; a share is at least 0")
        if weight > 0 and text == 0:
            raise ConfigError(f"data.weights.{name} is {weight}, but the subset holds no bytes; leave it out")
        rates[codes] = weight * documents[codes] / max(text, 1)
    if not rates.any():
        raise ConfigError("data.weights leaves no subset with a share above 0")
    return rates


def document_ends(documents: np.ndarray, repeats: Mapping[str, int], names: tuple[str, ...]) -> np.ndarray:
    """int64 [S]: documents that each subset gives in all, from those of one pass [S]. Raises ConfigError."""
    ends = np.full(len(names), ENDLESS)
    for name, codes in named_subsets(repeats, names, "repeats").items():
        ends[codes] = repeats[name] * documents[codes]
    return ends


def named_subsets(values: Mapping[str, float], names: tuple[str, ...], key: str) -> dict[str, list[int]]:
    """The subsets that each name means: itself, or those whose names begin with it and "/", but for what a longer name
    means. Raises ConfigError for a name that means none.
    """
    meant: dict[str, list[int]] = {name: [] for name in values}
    for code, subset in enumerate(names):
        fitting = [name for name in values if subset == name or subset.startswith(f"{name}/")]
        if fitting:
            meant[max(fitting, key=len)].append(code)
    for name, codes in meant.items():
        if not codes:
            raise ConfigError(f"data.{key} names {name!r}; the data has {', '.join(names)}")
    return meant


def _one_pass(subsets: Mapping[str, SubsetTotals], mixing: Mixing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 [S], documents and targets of one pass over each subset; bool [S], whether it has a share."""
    documents, text, targets = (
        np.array([getattr(totals, key) for totals in subsets.values()], np.int64)
        for key in ("documents", "bytes", "targets")
    )
    return documents, targets, document_rates(documents, text, mixing.weights, tuple(subsets)) > 0


def targets_of_one_pass(subsets: Mapping[str, SubsetTotals], mixing: Mixing) -> int:
    """Training targets of one pass over all subsets that are sampled. Raises ConfigError."""
    _, targets, sampled = _one_pass(subsets, mixing)
    return int(targets[sampled].sum())


def targets_until_the_end(subsets: Mapping[str, SubsetTotals], mixing: Mixing) -> int | None:
    """Training targets until every subset that is sampled has ended; None: no end. Raises ConfigError."""
    documents, targets, sampled = _one_pass(subsets, mixing)
    ends = document_ends(documents, mixing.repeats, tuple(subsets))[sampled]
    if (ends == ENDLESS).any():
        return None
    return int((ends // documents[sampled] * targets[sampled]).sum())
