"""What adapting a model gave, for a terminal: a table for each text, and what pairs of runs say. Pure."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from operator import attrgetter
from statistics import fmean, stdev

import numpy as np

from shared.io.display.quantities import clock, quantity
from shared.io.display.tables import aligned
from trainer.experiments.adaptation.record import Adaptation, AdaptedRun, Boundaries, NewText, TextScore
from trainer.experiments.results.statistics import CONFIDENCE, FEW_DOCUMENTS, bootstrap_interval, student_interval
from trainer.experiments.results.words import interval_text

HEADS = (
    *("", "boundaries", "new, bits/byte", "old, bits/byte", "bytes/patch, new", "old", "trained", "bytes", "passes"),
    *("FLOPs", "time"),
)
Method = tuple[str, Boundaries]
"""A system, and whose boundaries it has."""


def in_words(found: Adaptation) -> str:
    """Everything: the base, and of each text a table and what pairs say."""
    base = found.base
    parts = [
        f"base: {_amount(base.parameters)} parameters, {_amount(base.bytes)}B of {found.corpus}, "
        f"{_amount(base.useful_flops)}FLOP, {clock(base.seconds)}; {found.before.bits_per_byte:.4f} bits/byte on "
        f"{len(found.before.document_bytes):,} documents held out"
    ]
    for text in found.texts:
        if methods := methods_of(found.runs, text.name):
            parts.append(table(found, text, methods))
            parts.append("\n".join(pairs(text, methods)))
    return "\n\n".join(parts)


def methods_of(runs: Sequence[AdaptedRun], text: str) -> dict[Method, list[AdaptedRun]]:
    """The runs on a text by system and boundaries, by seed."""
    found: dict[Method, list[AdaptedRun]] = {}
    for run in runs:
        if run.text == text:
            found.setdefault((run.system, run.boundaries), []).append(run)
    return {method: sorted(own, key=lambda run: run.seed) for method, own in found.items()}


def table(found: Adaptation, text: NewText, methods: dict[Method, list[AdaptedRun]]) -> str:
    """A line for the base, then one a method: means over seeds, with the standard deviation."""
    before, old = text.before, found.before
    rows = [
        [
            *("before", "base", f"{before.bits_per_byte:.4f}", f"{old.bits_per_byte:.4f}"),
            *(f"{before.bytes_per_patch:.2f}", f"{old.bytes_per_patch:.2f}", "-", "-", "-", "-", "-"),
        ]
    ]
    for (system, boundaries), runs in methods.items():

        def mean(name: str, runs: Sequence[AdaptedRun] = runs) -> float:
            return fmean(attrgetter(name)(run) for run in runs)

        rows.append(
            [
                *(system, boundaries, _spread([run.new for run in runs]), _spread([run.old for run in runs])),
                *(f"{mean('new.bytes_per_patch'):.2f}", f"{mean('old.bytes_per_patch'):.2f}"),
                f"{mean('trained_parameters') / mean('parameters'):.1%}",
                *(
                    _amount(mean("bytes")),
                    f"{mean('passes'):.2f}",
                    _amount(mean("useful_flops")),
                    clock(mean("seconds")),
                ),
            ]
        )
    documents, size = len(before.document_bytes), sum(before.document_bytes)
    title = f"{text.name}: {_amount(text.train_bytes)}B to train on, {documents:,} documents held out, {_amount(size)}B"
    return f"{title}\n{aligned(HEADS, rows, left=(0, 1))}"


def pairs(text: NewText, methods: dict[Method, list[AdaptedRun]]) -> Iterator[str]:
    """What each method gives over the base, and over each other that differs from it in one thing, on new text."""
    for method, runs in methods.items():
        yield difference(f"{_named(method)} minus before", [(run.new, text.before) for run in runs])
    for one, other in combinations(methods, 2):
        if (one[0] == other[0]) != (one[1] == other[1]):
            others = {run.seed: run for run in methods[other]}
            both = [(run, others[run.seed]) for run in methods[one] if run.seed in others]
            for where in ("new", "old") if both else ():
                scores = [(getattr(a, where), getattr(b, where)) for a, b in both]
                yield difference(f"{_named(one)} minus {_named(other)}", scores, f", {where} text")


def difference(what: str, scores: Sequence[tuple[TextScore, TextScore]], where: str = "") -> str:
    """The mean difference in bits per byte of pairs of scores on the same documents, with both intervals."""
    over_seeds = student_interval([one.bits_per_byte - other.bits_per_byte for one, other in scores], CONFIDENCE)
    by_document = np.mean([np.subtract(one.document_bits, other.document_bits) for one, other in scores], axis=0)
    sizes = np.array(scores[0][0].document_bytes, np.float64)
    over_documents = bootstrap_interval(by_document, sizes, CONFIDENCE)
    seeds = f"{CONFIDENCE:.0%} interval over {len(scores)} seeds {interval_text(over_seeds.low, over_seeds.high)}"
    few = "; too few to say much" if len(sizes) < FEW_DOCUMENTS else ""
    documents = f"over {len(sizes):,} documents {interval_text(over_documents.low, over_documents.high)}{few}"
    return f"{what}{where}: {over_seeds.mean:+.4f} bits/byte ({seeds if len(scores) > 1 else 'one seed'}, {documents})"


def _named(method: Method) -> str:
    return f"{method[0]} ({method[1]} boundaries)"


def _spread(scores: Sequence[TextScore]) -> str:
    bits = [score.bits_per_byte for score in scores]
    return f"{fmean(bits):.4f}" + (f" ±{stdev(bits):.4f}" if len(bits) > 1 else "")


def _amount(value: float) -> str:
    return quantity(value).strip()
