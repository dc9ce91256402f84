"""What a few pairs of runs say, and what many documents say: whether one system is better than another.

N pairs of seeds, D documents, B bootstrap draws. The bootstrap is ours: its draws are pinned
by records, and SciPy's have no ratio of sums.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from statistics import fmean

import numpy as np

from shared.errors import ConfigError
from trainer.experiments.results.results import Comparison, RunResult, System, Table
from trainer.experiments.systems import Expected

DRAWS = 10_000
FEW_DOCUMENTS = 20
"""Below that a bootstrap over documents is a guess: its interval is too narrow by an unknown factor."""
DRAWS_AT_A_TIME = 2**22
"""Documents drawn at a time: bounds the memory of a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval; None where they are not known."""

    mean: float
    low: float | None
    high: float | None


def require_scipy() -> None:
    """Raise ConfigError where there are no quantiles of Student's distribution: before runs, not after all of them."""
    if find_spec("scipy") is None:
        raise ConfigError("intervals over seeds need SciPy; pip install -e '.[reports]'")


def student_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of N values with Student's t interval (Student 1908); one value alone has no bounds."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean, None, None)
    from scipy.special import stdtrit  # an extra, which comparisons alone need

    quantile = float(stdtrit(count - 1, (1 + confidence) / 2))
    reach = quantile * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach)


def bootstrap_interval(differences: np.ndarray, sizes: np.ndarray, confidence: float = 0.95, seed: int = 0) -> Interval:
    """sum(differences) / sum(sizes), both float64 [D], with the percentile interval of a bootstrap over documents.

    B times as many documents are drawn with replacement as there are (Efron 1979); a document keeps its difference and
    its size together.
    """
    documents, whole = len(sizes), float(differences.sum() / sizes.sum())
    if documents < 2:
        return Interval(whole, None, None)
    generator = np.random.Generator(np.random.PCG64(seed))
    found, at_a_time = [], max(DRAWS_AT_A_TIME // documents, 1)
    for first in range(0, DRAWS, at_a_time):
        drawn = generator.integers(documents, size=(min(at_a_time, DRAWS - first), documents))
        found.append(differences[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(whole, float(low), float(high))


CONFIDENCE = 0.95


def compared(
    expected: Iterable[Expected], systems: Sequence[System], runs: Sequence[RunResult], sizes: Sequence[int]
) -> tuple[Comparison, ...]:
    """The expected orders, table by table, as far as there are runs for them; ``sizes`` [D]: bytes of the documents."""
    found = []
    for table in sorted({run.table for run in runs}, reverse=True):  # FLOPs first
        own = {(run.system, run.seed): run for run in runs if run.table == table}
        for pair in expected:
            better = best_of(pair.better, systems, own.values())
            seeds = sorted(
                {seed for name, seed in own if name == better} & {s for name, s in own if name == pair.worse}
            )
            if better is not None and seeds:
                pairs = [(own[better, seed], own[pair.worse, seed]) for seed in seeds]
                found.append(compare(table, pairs, np.array(sizes, np.float64)))
    return tuple(found)


def ranked(runs: Sequence[RunResult], sizes: Sequence[int]) -> tuple[Comparison, ...]:
    """Each system with the next one in the order of mean bits per byte, table by table; arguments as of `compared`."""
    found = []
    for table in sorted({run.table for run in runs}, reverse=True):
        own: dict[str, dict[int, RunResult]] = {}
        for run in runs:
            if run.table == table:
                own.setdefault(run.system, {})[run.seed] = run
        order = sorted(own, key=lambda system: fmean(run.bits_per_byte for run in own[system].values()))
        for better, worse in pairwise(order):
            if seeds := sorted(own[better].keys() & own[worse].keys()):
                pairs = [(own[better][seed], own[worse][seed]) for seed in seeds]
                found.append(compare(table, pairs, np.array(sizes, np.float64)))
    return tuple(found)


def best_of(name: str, systems: Sequence[System], runs: Iterable[RunResult]) -> str | None:
    """The system of this name; of a family of this name the one with the least bits per byte, None where none has run.

    The best of several is chosen by what it is then compared with: its lead is flattered a little.
    """
    if any(system.name == name for system in systems):
        return name
    family = {system.name for system in systems if system.family == name}
    bits: dict[str, list[float]] = {}
    for run in runs:
        if run.system in family:
            bits.setdefault(run.system, []).append(run.bits_per_byte)
    return min(bits, key=lambda system: fmean(bits[system]), default=None)


def compare(table: Table, pairs: Sequence[tuple[RunResult, RunResult]], sizes: np.ndarray) -> Comparison:
    """What pairs of runs (better, worse) of equal seeds say; ``sizes`` float64 [D]."""
    differences = [worse.bits_per_byte - better.bits_per_byte for better, worse in pairs]
    seeds = student_interval(differences, CONFIDENCE)
    by_document = np.mean([np.subtract(worse.document_bits, better.document_bits) for better, worse in pairs], axis=0)
    documents = bootstrap_interval(by_document, sizes, CONFIDENCE)
    return Comparison(
        table=table,
        better=pairs[0][0].system,
        worse=pairs[0][1].system,
        differences=tuple(differences),
        mean=seeds.mean,
        low=seeds.low,
        high=seeds.high,
        confidence=CONFIDENCE,
        processors=tuple(sorted({name for pair in pairs for run in pair for name in run.processors})),
        document_low=documents.low,
        document_high=documents.high,
    )
