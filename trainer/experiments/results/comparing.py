"""Whether one system is better than another, from pairs of runs with equal seeds. Pure."""

from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from trainer.experiments.results.results import Cell, Comparison, System, Table
from trainer.experiments.results.statistics import bootstrap_interval, student_interval
from trainer.experiments.systems import Expected

CONFIDENCE = 0.95


def compared(
    expected: Iterable[Expected], systems: Sequence[System], cells: Sequence[Cell], sizes: Sequence[int]
) -> tuple[Comparison, ...]:
    """The expected orders, table by table, as far as there are runs for them; ``sizes`` [D]: bytes of the documents."""
    found = []
    for table in sorted({cell.table for cell in cells}, reverse=True):  # FLOPs first
        own = {(cell.system, cell.seed): cell for cell in cells if cell.table == table}
        for pair in expected:
            better = best_of(pair.better, systems, own.values())
            seeds = sorted(
                {seed for name, seed in own if name == better} & {s for name, s in own if name == pair.worse}
            )
            if better is not None and seeds:
                pairs = [(own[better, seed], own[pair.worse, seed]) for seed in seeds]
                found.append(compare(table, pairs, np.array(sizes, np.float64)))
    return tuple(found)


def best_of(name: str, systems: Sequence[System], cells: Iterable[Cell]) -> str | None:
    """The system of this name; of a family of this name the one with the least bits per byte, None where none has run.

    The best of several is chosen by what it is then compared with: its lead is flattered a little.
    """
    if any(system.name == name for system in systems):
        return name
    family = {system.name for system in systems if system.family == name}
    bits: dict[str, list[float]] = {}
    for cell in cells:
        if cell.system in family:
            bits.setdefault(cell.system, []).append(cell.bits_per_byte)
    return min(bits, key=lambda system: fmean(bits[system]), default=None)


def compare(table: Table, pairs: Sequence[tuple[Cell, Cell]], sizes: np.ndarray) -> Comparison:
    """What pairs of cells (better, worse) of equal seeds say; ``sizes`` float64 [D]."""
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
        document_low=documents.low,
        document_high=documents.high,
    )
