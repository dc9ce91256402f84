"""The tables of an experiment's page, as markup. Pure."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from shared.io.display.quantities import clock
from trainer.drawing.axes import short
from trainer.drawing.chart import COLOURS, Curve, swatch
from trainer.drawing.page import Markup, described, table
from trainer.experiments.page.sentences import ALIKE_WORDS
from trainer.experiments.results.results import Results, Table
from trainer.experiments.results.table import Row, rows, subset_bits, subset_patch_sizes, subsets_of
from trainer.experiments.results.words import entropy_models_lines

Column = tuple[str, str, Callable[[Row], str]]
"""Head, what it means, and a cell."""


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def _quantity(value: float) -> str:
    return short(value) if value else "–"


COLUMNS: tuple[Column, ...] = (
    (
        "bits/byte",
        "On the validation split; lower is better.",
        lambda of: Markup(f"<strong>{of.bits_per_byte:.4f}</strong>"),
    ),
    ("± seeds", "Standard deviation over seeds.", lambda of: _optional(of.spread, ".4f")),
    ("FLOP/byte", "Of a forward pass; the entropy model left out.", lambda of: _quantity(of.flops_per_byte)),
    ("entropy model", "Its FLOPs a byte, which come on top.", lambda of: _quantity(of.entropy_flops_per_byte)),
    ("speed-up", "FLOPs a byte of the flat byte model over this one's.", lambda of: _times(of.speed_up)),
    ("with entropy model", "The same, the entropy model counted.", lambda of: _times(of.speed_up_whole)),
    (
        "bytes/patch",
        "On the validation split; of subwords bytes a token.",
        lambda of: _optional(of.bytes_per_patch, ".2f"),
    ),
    ("patches/token", "For each BPE token of the same text.", lambda of: _optional(of.patches_per_token, ".2f")),
    ("parameters", "All of them.", lambda of: _quantity(of.parameters)),
    ("in tables", "Parameters that are looked up, never multiplied.", lambda of: _quantity(of.table_parameters)),
    ("training FLOP", "Forward and backward over what was trained on.", lambda of: _quantity(of.useful_flops)),
    ("entropy model, training", "Its FLOPs over the text trained on.", lambda of: _quantity(of.entropy_flops)),
    ("bytes trained on", "Of text.", lambda of: _quantity(of.bytes)),
    ("passes", "Over the training split.", lambda of: f"{of.passes:.2f}"),
    ("time", "Of training, without start and validations.", lambda of: clock(of.seconds)),
)
"""All FLOPs are useful ones: what documents ask for, without padding."""
LEAD = (
    "before the next",
    "Bits per byte that the next system needs more; undecided where the interval over seeds holds 0.",
)


def systems_table(results: Results, of: Table) -> str:
    """All values of all systems, the least bits per byte first; empty without a run."""
    found = rows(results, of)
    if not found:
        return ""
    heads = ["system", *(head for head, _, _ in COLUMNS), LEAD[0]]
    leads = {one.better: f"{one.mean:+.4f} {one.verdict}" for one in results.ranking if one.table == of}
    lines = [
        [named(results, row.system), *(cell(row) for _, _, cell in COLUMNS), leads.get(row.system, "–")]
        for row in found
    ]
    meanings = described("What the columns mean", [*((head, words) for head, words, _ in COLUMNS), LEAD])
    return table(heads, lines, f"Systems at {ALIKE_WORDS[of]}, the least bits per byte first") + meanings


def subsets_table(results: Results, of: Table) -> str:
    """Bits per byte, a row a subset, the least of each row marked; empty where there is one subset only."""
    names, bits = sorted(subsets_of(results)), subset_bits(results, of)
    systems = {row.system: row.bits_per_byte for row in rows(results, of)}
    if len(names) < 2 or not systems:
        return ""

    def line(name: str, found: Mapping[str, float]) -> list[str]:
        return [name, *(_marked(found.get(system), min(found.values(), default=None)) for system in systems)]

    of_subset = {name: {system: found[name] for system, found in bits.items() if name in found} for name in names}
    lines = [line("all", systems), *(line(name, found) for name, found in of_subset.items())]
    return table(["subset", *systems], lines, "Bits per byte by subset")


def patch_sizes_table(results: Results, of: Table) -> str:
    """Bytes per patch, a row a subset; empty where there is one subset only, or no system has patches."""
    names, sizes = sorted(subsets_of(results)), subset_patch_sizes(results, of)
    systems = {row.system: row.bytes_per_patch for row in rows(results, of) if row.system in sizes}
    if len(names) < 2 or not systems:
        return ""
    lines = [["all", *(_optional(size, ".2f") for size in systems.values())]]
    lines += [[name, *(_optional(sizes[system].get(name), ".2f") for system in systems)] for name in names]
    return table(["subset", *systems], lines, "Bytes per patch by subset")


def entropy_models_table(results: Results) -> str:
    """What the entropy models took, and how fast they score; empty without any."""
    if not results.entropy_models:
        return ""
    heads = ["name", "kind", "made in", "bytes learned from", "bytes scored in a second of one core"]
    return table(heads, entropy_models_lines(results), "Entropy models", "words")


def _marked(value: float | None, least: float | None) -> str:
    words = _optional(value, ".3f")
    return Markup(f'<strong class="best">{words}</strong>') if value is not None and value == least else words


def described_systems(results: Results) -> str:
    """What each system is."""
    lines = [
        [
            named(results, system.name),
            system.family,
            system.description,
            system.patching or "–",
            system.ablates or "–",
        ]
        for system in results.systems
    ]
    return table(["system", "family", "what it is", "patches", "ablates"], lines, "The systems", "words")


def runs_table(results: Results) -> str:
    """Every run behind the means, with its folder; empty without any."""
    if not results.runs:
        return ""
    lines = [
        [
            named(results, run.system),
            ALIKE_WORDS[run.table],
            str(run.seed),
            f"{run.bits_per_byte:.4f}",
            f"{run.steps:,}",
            f"{run.bytes:,}",
            f"{run.whole_flops:.4e}",
            "–" if run.lr is None else f"{run.lr:g}",
            clock(run.seconds),
            str(run.folder),
        ]
        for run in results.runs
    ]
    heads = ["system", "table", "seed", "bits/byte", "steps", "bytes", "FLOP", "rate", "time", "run"]
    return f"<details><summary>All runs: {len(lines)}</summary>{table(heads, lines, 'All runs', 'words')}</details>"


def rates_table(results: Results) -> str:
    """The learning rates that were tried; empty where none were."""
    if not results.rates:
        return ""
    lines = [
        [
            f"{sweep.family}, {'with' if sweep.tables else 'without'} tables",
            named(results, sweep.system) if sweep.system in {one.name for one in results.systems} else sweep.system,
            f"{one.lr:g}",
            _marked(one.bits_per_byte, sweep.best.bits_per_byte),
            clock(one.seconds),
            str(one.folder),
        ]
        for sweep in results.rates
        for one in sweep.tried
    ]
    return table(["systems", "tried on", "rate", "bits/byte", "time", "run"], lines, "Learning rates tried", "words")


def named(results: Results, system: str) -> str:
    """A system's name after the sign that plots have for it."""
    return Markup(f'<span class="sign">{swatch(sign(results, system))}</span>{escape(system)}')


def sign(results: Results, system: str, points: Sequence[tuple[float, float]] = ()) -> Curve:
    """A curve in the colour and shape that a system has in all plots."""
    number = [one.name for one in results.systems].index(system)
    return Curve(system, points, number % COLOURS, number // COLOURS, shape=number, dots=True)
