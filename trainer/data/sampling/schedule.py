"""Which subset the next document comes from: a schedule that keeps to the wanted shares of bytes.

Subset s makes v_s passes in a unit of time; its document number j of N comes at a random moment of [j, j + 1) / N of a
pass. The merged stream is all documents in order of time. So what comes next depends on nothing but how many each has
given, shares hold within a document of each subset at any moment, and natural shares end every pass together.
A subset that ends after so many passes leaves the stream; the others go on at their speeds, so their shares grow.

Two kinds of subsets come less evenly, since record batches are decoded whole and only some of them can be held:

- Where runs (streams.py) are so short that a batch holds several subsets, all should be in it at the same time. Each of
  them keeps near the place that its batches have in the pass, and no further off its share than chance might bring it.
- Where the windows of all subsets are more than can be held, that of a rare one comes in a part of the time that it
  has, beginning at random: shares hold within a window.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from shared.errors import ConfigError
from shared.randomness import stream_key, uniform
from shared.shards.document import PACKED_BYTES
from shared.shards.manifest import SubsetTotals
from trainer.data.source import Source

ENDLESS = 2**62
"""Documents of a subset that is repeated for ever."""
LEAST_WEIGHT = 1e-12
"""But for 0; the inverse is the largest."""
WINDOW_BYTES = 2**27
"""Of the windows of all subsets together, decoded: half of the cache of record batches, since subsets do not move on to
their next windows all at once."""
CHANCE = 4.0
"""Times the square root of the documents of a pass: a subset that is in step with others is off its share by so many at
most. In a random order of all documents it is off by half that root on average, by twice in one pass of a thousand."""


@dataclass(frozen=True)
class Mixing:
    """How subsets are mixed. A key is a subset, or the beginning of the names of several: "code" is all "code/...";
    what a subset says itself comes first.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of the bytes: of a subset, or of those together that share a beginning."""
    repeats: Mapping[str, int] = field(default_factory=dict)
    """Passes over each subset after which it is left out."""


class Passes(NamedTuple):
    """Figures of one pass over each of S subsets."""

    documents: np.ndarray
    """int64 [S]."""
    text: np.ndarray
    """int64 [S], bytes."""
    decoded: np.ndarray
    """int64 [S], bytes of decoded record batches."""
    runs: np.ndarray
    """int64 [S]."""


def passes_over(source: Source) -> Passes:
    """Figures of one pass over each subset of a source. Raises DatasetError."""
    totals = source.subsets.values()
    documents, text, patches = (
        np.array([getattr(subset, key) for subset in totals], np.int64) for key in ("documents", "bytes", "patches")
    )
    runs = np.array([len(source.runs(subset)) for subset in range(len(totals))], np.int64)
    return Passes(documents, text, text + 2 * (patches + documents), runs)


class Schedule:
    """When the documents of S subsets come, and when subsets end. A moment of a pass is from 0 to 1."""

    def __init__(self, speeds: np.ndarray, passes: Passes, seed: int, ends: np.ndarray | None = None) -> None:
        """speeds float64 [S]: passes over each subset in a unit of time; a subset of speed 0 is never drawn.

        ends int64 [S]: documents that each subset gives in all; None: without end.
        """
        self.subsets = np.flatnonzero(speeds)
        """int64: those that are sampled."""
        assert len(self.subsets), "no subset to draw from"
        self.speeds, self.passes = speeds, passes
        self.ends = np.full(len(speeds), ENDLESS) if ends is None else ends
        """int64 [S]: documents that each subset gives in all."""
        self._keys = np.array([stream_key(seed, "schedule", int(subset)) for subset in range(len(speeds))], np.uint64)
        decoded = math.fsum((speeds * passes.decoded).tolist())
        self._per_byte = speeds / max(decoded, 1e-300)
        """float64 [S]: of a pass over each, while a byte of all of them together is decoded."""
        runs = np.maximum(passes.runs, 1)
        self._in_step = passes.text < runs * (PACKED_BYTES // 2)
        """bool [S]: whether the record batches of each hold several subsets."""
        held = np.where(self._in_step, 0.0, passes.decoded / runs)
        self._stretch = longest_stretch(held[self.subsets], (self._per_byte * passes.decoded)[self.subsets])

    def jitter(self, subsets: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """float64 [K] in [0, 1), for the documents of these numbers int64 [K] of subsets [K]."""
        return uniform(numbers, self._keys[subsets])

    def duration(self, subsets: np.ndarray, count: int) -> float:
        """The time in which about ``count`` documents of these subsets come."""
        return float(count / (self.speeds[subsets] @ self.passes.documents[subsets]))

    def span(self, subset: int, first: int, count: int, places: Sequence[float]) -> tuple[float, float]:
        """Between which moments of its pass a window comes: ``count`` documents from number ``first`` of all passes on.

        places: moments of the pass to which its first and last batches belong, and the first of the next window.
        """
        documents = int(self.passes.documents[subset])
        shares = first % documents / documents, (first % documents + count) / documents
        begins, ends = shares
        per_byte = float(self._per_byte[subset])
        if self._in_step[subset]:
            near, chance = WINDOW_BYTES * per_byte, CHANCE / math.sqrt(documents)
            begins = _limited(begins, places[0], near / 4)
            ends = min(_limited(ends, places[2], near / 4), places[1] + near)
            return _limited(begins, shares[0], chance), _limited(ends, shares[1], chance)
        longest = self._stretch * per_byte
        if ends - begins > longest:
            begins += (ends - begins - longest) * float(self.jitter(np.array([subset]), np.array([first]))[0])
            ends = begins + longest
        return begins, ends


def _limited(moment: float, centre: float, distance: float) -> float:
    """The nearest moment that is at most so far from a centre."""
    return min(max(moment, centre - distance), centre + distance)


def longest_stretch(sizes: np.ndarray, shares: np.ndarray) -> float:
    """Bytes of the stream in which a window may come, so that those that are open at a time are WINDOW_BYTES.

    sizes float64 [S]: of the windows of each subset. shares float64 [S]: of the bytes of the stream. A window of a
    subset comes every size / share bytes; it is open for as many, or for as long as it may be.
    """
    every = sizes / shares
    order = np.argsort(every, kind="stable")
    always = np.cumsum(sizes[order])
    rest = np.cumsum(shares[order][::-1])[::-1]
    too_long = np.flatnonzero(always - sizes[order] + every[order] * rest > WINDOW_BYTES)
    if not len(too_long):
        return math.inf
    first = too_long[0]
    return float((WINDOW_BYTES - always[first] + sizes[order][first]) / rest[first])


def pass_speeds(
    documents: np.ndarray, text_bytes: np.ndarray, weights: Mapping[str, float], names: tuple[str, ...]
) -> np.ndarray:
    """float64 [S]: passes over each subset in a unit of time, for shares of bytes.

    documents and text_bytes int64 [S] are those of one pass. A subset without a weight keeps its natural share, 0
    leaves it out. Raises ConfigError for weights that cannot be kept.
    """
    # With natural shares all passes take the same time, whatever the sizes of the subsets and of their documents.
    speeds = np.where(documents > 0, 1 / max(int(text_bytes.sum()), 1), 0.0)
    for name, codes in named_subsets(weights, names, "weights").items():
        weight, text = weights[name], int(text_bytes[codes].sum())
        if weight != 0 and not LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT:
            raise ConfigError(
                f"data.weights.{name} is {weight}; a share is 0, or between {LEAST_WEIGHT:g} and {1 / LEAST_WEIGHT:g}"
            )
        if weight > 0 and text == 0:
            raise ConfigError(f"data.weights.{name} is {weight}, but the subset holds no bytes; leave it out")
        speeds[codes] = np.where(documents[codes] > 0, weight / max(text, 1), 0.0)
    if not speeds.any():
        raise ConfigError("data.weights leaves no subset with a share above 0")
    return speeds


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
    return documents, targets, pass_speeds(documents, text, mixing.weights, tuple(subsets)) > 0


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
