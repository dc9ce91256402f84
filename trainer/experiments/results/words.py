"""Results on a terminal: a table of the systems, and what the comparisons say. Pure."""

from collections.abc import Callable

from shared.io.display.quantities import clock, quantity
from shared.io.display.tables import aligned
from shared.io.display.terminal import one_line
from trainer.experiments.results.results import Comparison, Results, Table
from trainer.experiments.results.statistics import FEW_DOCUMENTS
from trainer.experiments.results.table import ALIKE, Row, budget_spread, off_budget, rows, runs_of

TITLES: dict[Table, str] = {"flops": "at equal useful training FLOPs", "bytes": "at equal bytes of text trained on"}
COUNTED = "the entropy model's over that text counted"


def in_words(results: Results) -> str:
    """Everything, a table after the other."""
    texts = []
    for table, title in TITLES.items():
        if runs_of(results, table):
            spread = f"budgets {budget_spread(results, table):.2%} apart at most"
            what = f"{title}, {COUNTED}" if table == "flops" and results.entropy_counted else title
            texts.append("\n".join([f"{what} ({spread}):", table_text(results, table)]))
        if found := off_budget_text(results, table):
            texts.append(found)
        documents = len(results.document_bytes)
        lines = [sentence(found, documents) for found in results.comparisons if found.table == table]
        if lines:
            texts.append("\n".join(lines))
    if results.entropy_models:
        texts.append(entropy_models_text(results))
    if results.rates:
        texts.append(rates_text(results))
    return "\n\n".join(texts)


def entropy_models_text(results: Results) -> str:
    """What the entropy models took, and how fast they score."""
    heads = ["entropy model", "kind", "made in", "from bytes", "scores, bytes/s of a core"]
    return aligned(heads, entropy_models_lines(results))


def entropy_models_lines(results: Results) -> list[list[str]]:
    """A line each: name, kind, time, bytes learned from, and bytes scored in a second of processor time."""
    return [
        [
            one.name,
            "counts" if one.counts else "transformer",
            "-" if one.seconds is None else clock(one.seconds),
            _amount(one.bytes),
            _amount(one.scored_bytes_per_second),
        ]
        for one in results.entropy_models
    ]


def rates_text(results: Results) -> str:
    """The learning rates that were tried, and what that cost: no budget counts it."""
    lines = [
        [
            f"{sweep.family}{', tables' if sweep.tables else ''}",
            f"{sweep.best.lr:g}{' (at the edge)' if sweep.at_edge else ''}",
            ", ".join(f"{one.lr:g}: {one.bits_per_byte:.4f}" for one in sweep.tried),
        ]
        for sweep in results.rates
    ]
    return f"{rates_cost(results)}\n{aligned(['family', 'best', 'bits/byte by rate'], lines)}"


def rates_cost(results: Results) -> str:
    """What trying rates cost, in words."""
    tried = [one for sweep in results.rates for one in sweep.tried]
    flops, seconds = (sum(of) for of in zip(*((one.useful_flops + one.entropy_flops, one.seconds) for one in tried)))
    return f"learning rates, tried apart from all budgets: {len(tried)} runs, {quantity(flops)}FLOP, {clock(seconds)}"


def off_budget_text(results: Results, table: Table) -> str:
    """The runs that are off their budget, and by how much; empty without any."""
    found = [f"{run.system}, seed {run.seed} ({share:+.1%})" for run, share in off_budget(results, table)]
    return f"* more than {ALIKE:.0%} off the budget: {'; '.join(found)}" if found else ""


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("bits/byte", lambda row: f"{row.bits_per_byte:.4f}" + ("" if row.spread is None else f" ±{row.spread:.4f}")),
    ("seeds", lambda row: str(row.seeds)),
    ("parameters", lambda row: _amount(row.parameters)),
    ("of tables", lambda row: _amount(row.table_parameters)),
    ("train FLOP/B", lambda row: _amount(row.whole_flops / row.bytes)),
    ("FLOP/B", lambda row: _amount(row.whole_flops_per_byte)),
    ("of entropy model", lambda row: _amount(row.entropy_flops_per_byte)),
    ("bytes", lambda row: _amount(row.bytes)),
    ("passes", lambda row: f"{row.passes:.2f}"),
    ("time", lambda row: clock(row.seconds)),
    ("bytes/patch", lambda row: _figure(row.bytes_per_patch)),
    ("patches/token", lambda row: _figure(row.patches_per_token)),
    ("speed-up", lambda row: _figure(row.speed_up_whole)),
)


def table_text(results: Results, table: Table) -> str:
    """A line a system, the least bits per byte first, and how surely it is before the next."""
    leads = {one.better: one for one in results.ranking if one.table == table}
    off = {run.system for run, _ in off_budget(results, table)}
    lines = [
        [f"{row.system}{' *' * (row.system in off)}", *(cell(row) for _, cell in COLUMNS), _lead(leads.get(row.system))]
        for row in rows(results, table)
    ]
    return aligned(["system", *(head for head, _ in COLUMNS), "before the next"], lines)


def _lead(found: Comparison | None) -> str:
    return "-" if found is None else f"{found.mean:+.4f} {found.verdict}"


def sentence(found: Comparison, documents: int) -> str:
    """What a comparison says: the mean difference, both intervals, and whether the expected order holds.

    ``documents``: how many the validation split holds.
    """
    seeds, level = len(found.differences), f"{found.confidence:.0%}"
    over_seeds = (
        f"{level} interval over {seeds} seeds {interval_text(found.low, found.high)}" if seeds > 1 else "one seed"
    )
    few = "; too few to say much" if documents < FEW_DOCUMENTS else ""
    ends = interval_text(found.document_low, found.document_high)
    over_documents = f"over {documents:,} document{'s' * (documents != 1)} {ends}{few}"
    if len(found.processors) > 1:
        over_documents += f"; on several processors: {', '.join(found.processors)}"
    return one_line(
        f"{found.better} before {found.worse}: {found.verdict}; {found.worse} minus {found.better} is "
        f"{found.mean:+.4f} bits/byte ({over_seeds}, {over_documents})"
    )


def interval_text(low: float | None, high: float | None) -> str:
    """Both ends of an interval."""
    return "unknown" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def _amount(value: float) -> str:
    return quantity(value).strip() if value else "-"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
