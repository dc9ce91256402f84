"""What an experiment found, in sentences. Pure."""

from collections.abc import Sequence
from typing import get_args

from shared.io.display.quantities import quantity
from trainer.drawing.forest import Difference
from trainer.experiments.results.results import Comparison, Results, Table
from trainer.experiments.results.statistics import FEW_DOCUMENTS
from trainer.experiments.results.table import ALIKE, Row, budget_spread, off_budget, rows, runs_of
from trainer.experiments.results.words import rates_cost

ALIKE_WORDS: dict[Table, str] = {"flops": "equal training FLOPs", "bytes": "equal bytes"}
FEW_SEEDS = 5
"""Below that an interval over seeds is so wide that its width is worth a word."""


def compared(results: Results, date: str) -> list[tuple[str, str]]:
    """What was compared, on what, and when: labels and words."""
    found = [
        ("corpus", results.corpus),
        ("text", f"{quantity(results.train_bytes)}B to train on, {quantity(results.validation_bytes)}B of validation"),
    ]
    counted = ", the entropy model counted" if results.entropy_counted else ""
    budgets = {"flops": f"{quantity(results.budget_flops)}FLOP of training{counted}"}
    if results.budget_bytes is not None:
        budgets["bytes"] = f"{quantity(results.budget_bytes)}B of text"
    found += [
        (ALIKE_WORDS[table], f"{budgets[table]} each; {_spread(results, table)}")
        for table in tables_of(results)
        if table in budgets
    ]
    if results.tokenizer is not None:
        tokens = results.tokenizer
        words = f"{tokens.vocabulary:,} tokens, {tokens.bytes_per_token:.2f} bytes each, trained on the training split"
        found.append(("BPE tokenizer", words))
    if results.rates:
        found.append(("cost of choosing rates", rates_cost(results)))
    return [*found, ("machine", results.machine), ("recorded", date)]


def tables_of(results: Results) -> list[Table]:
    """The tables that have a run."""
    return [table for table in get_args(Table) if any(run.table == table for run in results.runs)]


def _spread(results: Results, table: Table) -> str:
    return f"the largest is {budget_spread(results, table):.2%} above the smallest (at most {ALIKE:.0%} is fair)"


def findings(results: Results, table: Table) -> list[str]:
    """The best system, and the best that reads bytes if that is another one."""
    found = rows(results, table)
    if not found:
        return []
    best = found[0]
    bits = _bits(best.bits_per_byte, best.spread)
    words = [f"Lowest bits per byte at {ALIKE_WORDS[table]}: {best.system} with {bits}{_lead(found, results, table)}."]
    of_bytes = next((row for row in found if row.family != "bpe"), None)
    if best.family == "bpe" and of_bytes is not None:
        share = of_bytes.bits_per_byte / best.bits_per_byte - 1
        words.append(
            f"Lowest without a tokenizer: {of_bytes.system} with {_bits(of_bytes.bits_per_byte, of_bytes.spread)}, "
            f"{share:.1%} above it."
        )
    return words


def _lead(found: Sequence[Row], results: Results, table: Table) -> str:
    """How far the next system is, and whether that is undecided: whether the interval over seeds holds 0."""
    if len(found) < 2:
        return ""
    best, second = found[:2]
    gap = second.bits_per_byte - best.bits_per_byte
    pair = (table, best.system, second.system)
    known = (one.verdict for one in results.ranking if (one.table, one.better, one.worse) == pair)
    undecided = ", which is undecided" if next(known, None) == "undecided" else ""
    return f"; {second.system} is {gap:.3f} above{undecided}"


def _bits(value: float, spread: float | None) -> str:
    return f"{value:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def warnings(results: Results) -> list[str]:
    """What keeps the results from being a fair or a finished comparison."""
    found = []
    if not results.runs:
        found.append("No run is finished yet.")
    if results.runs and len(results.document_bytes) < FEW_DOCUMENTS:
        found.append(
            f"The validation split holds {len(results.document_bytes)} documents: intervals over documents need "
            f"{FEW_DOCUMENTS} or more to mean anything."
        )
    processors = sorted({name for run in results.runs for name in run.processors})
    if len(processors) > 1:
        found.append(
            f"Runs were made on several processors, so some of a difference may be theirs: {'; '.join(processors)}."
        )
    for sweep in results.rates:
        if sweep.at_edge:
            kind = f"{sweep.family} {'with' if sweep.tables else 'without'} tables"
            found.append(
                f"The best learning rate that was tried for {kind} is at the edge, {sweep.best.lr:g}: a better one may "
                "lie beyond."
            )
    for table in tables_of(results):
        runs = runs_of(results, table)
        if budget_spread(results, table) > ALIKE:
            found.append(f"The table at {ALIKE_WORDS[table]} is not fair: {_spread(results, table)}.")
        if off := [f"{run.system}, seed {run.seed} ({share:+.1%})" for run, share in off_budget(results, table)]:
            found.append(f"More than {ALIKE:.0%} off the budget at {ALIKE_WORDS[table]}: {'; '.join(off)}.")
        seeds = {name: len(of) for name, of in runs.items()}
        most = max(seeds.values())
        absent = [system.name for system in results.systems if system.name not in runs]
        if table == "flops" and absent:
            found.append(f"Without any finished run: {', '.join(absent)}.")
        if short := [f"{name} ({count} of {most})" for name, count in seeds.items() if count < most]:
            found.append(f"Fewer seeds than the others at {ALIKE_WORDS[table]}: {', '.join(short)}.")
        if most == 1:
            found.append(f"There is one seed at {ALIKE_WORDS[table]}: nothing says how much of a difference is chance.")
    return found


def seeds_note(results: Results, table: Table) -> str:
    """How many seeds stand behind the means of a table."""
    most = max((row.seeds for row in rows(results, table)), default=0)
    if most < 2:
        return "One seed: there is no spread to show."
    few = "; so few say little about the spread" if most < FEW_SEEDS else ""
    return f"Means of {most} seeds, ± their standard deviation{few}."


def difference(one: Comparison) -> Difference:
    """An expected order and what was found of it."""
    seeds, documents = _known(one.low, one.high), _known(one.document_low, one.document_high)
    more = "fewer" if one.mean >= 0 else "more"
    pairs = f"{len(one.differences)} pair{'s' * (len(one.differences) != 1)} of seeds"
    words = (
        f"{one.better} needs {abs(one.mean):.3f} bits per byte {more} than {one.worse}. "
        f"{one.confidence:.0%} intervals: {_in_words(seeds)} over {pairs}, {_in_words(documents)} over documents."
    )
    return Difference(
        claim=f"{one.better} is better than {one.worse}" + (" (at equal bytes)" if one.table == "bytes" else ""),
        words=words,
        verdict=one.verdict,
        mean=one.mean,
        single=one.differences,
        outer=seeds,
        inner=documents,
    )


def _known(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _in_words(interval: tuple[float, float] | None) -> str:
    return "unknown" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
