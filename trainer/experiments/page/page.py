"""An experiment as one page for a browser, made from its records alone. No script, nothing fetched, free of torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from shared.io.display.page import PAGE
from shared.io.display.quantities import counted
from shared.io.files.outputs import Output
from trainer.drawing.axes import short
from trainer.drawing.chart import Curve, Mark, chart
from trainer.drawing.forest import forest
from trainer.drawing.page import Markup, drawn_page, facts, header, listed, section, table
from trainer.evaluation.threshold_sweep_record import SWEEP_NAME, SweepPoint, ThresholdSweep, load_sweep
from trainer.experiments.page.csv_files import write_csv
from trainer.experiments.page.patched_text import Picture, kept_picture
from trainer.experiments.page.samples import SAMPLES_NAME, Samples
from trainer.experiments.page.scaling import scaling_content
from trainer.experiments.page.sentences import (
    ALIKE_WORDS,
    compared,
    difference,
    findings,
    seeds_note,
    tables_of,
    warnings,
)
from trainer.experiments.page.tables import (
    described_systems,
    entropy_models_table,
    patch_sizes_table,
    rates_table,
    runs_table,
    sign,
    subsets_table,
    systems_table,
)
from trainer.experiments.page.texts import picture_section, samples_section
from trainer.experiments.results.results import RESULTS_NAME, Results, Table, load_results
from trainer.experiments.results.table import Row, rows, runs_of
from trainer.experiments.results.words import rates_cost
from trainer.experiments.scaling.record import SCALING_NAME, load_scaling
from trainer.metrics.files import REPORT_NAME
from trainer.metrics.history import History
from trainer.metrics.report import content as runs_content
from trainer.metrics.report import short_names
from trainer.provenance.json_records import kept

# ---- The sweep of a checkpoint on a page: quality against cost when its threshold is shifted. Pure.


WORDS = (
    "One checkpoint, its patches cut with other thresholds than it was trained with: a higher one gives fewer and "
    "longer patches, and costs less."
)


def sweep_section(sweep: ThresholdSweep) -> str:
    """Facts, plots and a table, the trained threshold marked."""
    rule = sweep.patching
    about = facts(
        [
            ("model", sweep.model),
            ("text", f"{sweep.data}: {counted(sweep.documents, 'document')}, {sweep.bytes:,} bytes"),
            ("patches", f"{rule.rule}, trained with theta {sweep.trained.theta:.4f} nats"),
            ("entropy model", f"{short(sweep.entropy_flops_per_byte)} FLOPs a byte on top, whatever the threshold"),
        ]
    )
    heads = ["theta", "shift", "bits/byte", "bytes/patch", "FLOP/byte", ""]
    lines = [_line(point) for point in sweep.points]
    points = table(heads, lines, "The points of the sweep, by threshold")
    return section("Threshold sweep", f'{about}<div class="charts">{_plots(sweep)}</div>{points}', WORDS)


def _line(point: SweepPoint) -> list[str]:
    return [
        f"{point.theta:.4f}",
        f"{point.shift:+.4f}",
        f"{point.bits_per_byte:.4f}",
        f"{point.bytes_per_patch:.2f}",
        short(point.flops_per_byte),
        Markup("<strong>trained with</strong>") if point.trained else "",
    ]


def _plots(sweep: ThresholdSweep) -> str:
    trained = sweep.trained
    by_cost = sorted((point.flops_per_byte, point.bits_per_byte) for point in sweep.points)
    by_theta = [(point.theta, point.bytes_per_patch) for point in sweep.points]
    marks = [Mark(trained.theta, "the threshold that the model was trained with", "threshold of training")]
    quality = chart(
        "Quality and cost over the sweep",
        "bits per byte",
        "useful FLOPs of a forward pass a byte, entropy model left out",
        [
            Curve("threshold shifted", by_cost, dots=True),
            Curve(
                "trained with", [(trained.flops_per_byte, trained.bits_per_byte)], 1, shape=1, line=False, named=True
            ),
        ],
        x_log=True,
        from_zero=False,
        words="Down and left is better. The diamond is the threshold that the model was trained with.",
    )
    size = chart(
        "Patch size over the threshold",
        "bytes a patch",
        "theta in nats",
        [Curve("bytes a patch", by_theta, dots=True)],
        marks,
        words="The dashed line is the threshold that the model was trained with.",
    )
    return quality + size


# ---- The plots of an experiment's page. Pure.


AXES = {
    "useful_flops": ("Bits per byte over training FLOPs", "useful FLOPs of training, entropy model left out"),
    "bytes": ("Bits per byte over bytes", "bytes of text trained on"),
    "seconds": ("Bits per byte over time", "seconds of training"),
}
MEANINGS = {
    "useful_flops": "what each system makes of the same arithmetic",
    "bytes": "what each makes of the same text",
    "seconds": "what each makes of the same time on this machine, where other work may have slowed a run",
}


def learning_curves(results: Results, table: Table) -> str:
    """Validation during training: a curve a seed, a colour and shape a system; at equal bytes over bytes only."""
    charts = []
    for key, (title, unit) in AXES.items():
        if table == "bytes" and key != "bytes":
            continue
        curves = []
        for system, runs in runs_of(results, table).items():
            for number, run in enumerate(runs):
                points = [(float(getattr(point, key)), point.bits_per_byte) for point in run.curve]
                curves.append(replace(sign(results, system, points), thin=True, listed=number == 0))
        words = f"Lower is better: {MEANINGS[key]}. Each line is one seed, at {ALIKE_WORDS[table]}."
        charts.append(chart(title, "validation", unit, curves, x_log=True, from_zero=False, words=words))
    return "".join(charts)


def frontier(results: Results, table: Table) -> str:
    """Bits per byte over FLOPs a byte at inference, and the line of systems that none beats in both."""
    found = rows(results, table)
    best = [(row.whole_flops_per_byte, row.bits_per_byte) for row in unbeaten(found)]
    curves = [Curve("beaten by none in both", best, 7, 2)] if len(best) > 1 else []
    for row in found:
        own = sign(results, row.system, [(row.whole_flops_per_byte, row.bits_per_byte)])
        if row.entropy_flops_per_byte:
            tail = [(row.flops_per_byte, row.bits_per_byte), *own.points]
            curves.append(replace(own, points=tail, dots=False, thin=True, listed=False))
        errors = [(row.lowest, row.highest)] if row.seeds > 1 else []
        curves.append(replace(own, line=False, named=True, errors=errors))
    words = (
        f"Down and left is better. FLOPs count the entropy model; a line to the left ends where the model alone is. "
        f"Bars reach from the lowest to the highest seed, at {ALIKE_WORDS[table]}."
    )
    unit = "useful FLOPs of a forward pass a byte"
    return chart(
        "Quality and cost at inference", "bits per byte", unit, curves, x_log=True, from_zero=False, words=words
    )


def unbeaten(found: Sequence[Row]) -> list[Row]:
    """Rows for which no other has both fewer FLOPs a byte, entropy model counted, and fewer bits; cheapest first."""
    kept: list[Row] = []
    for row in sorted(found, key=lambda row: (row.whole_flops_per_byte, row.bits_per_byte)):
        if not kept or row.bits_per_byte < kept[-1].bits_per_byte:
            kept.append(row)
    return kept


SUBSET_WORDS = "Bits per byte; the least of each row is underlined."
FOREST_UNIT = "bits per byte; right of 0 as expected"
FOREST_WORDS = (
    "Paired differences: the same seed means the same data and draws. The line is the interval over seeds, which "
    "decides the verdict, the bar that over documents of the validation split; dots are pairs of seeds, the diamond is "
    "their mean. An arrow: the interval goes on."
)


def is_experiment(folder: Path) -> bool:
    """Whether a folder has a record that a page can be made of."""
    return any((folder / name).exists() for name in (RESULTS_NAME, SCALING_NAME, SWEEP_NAME))


def write_report(folder: Path) -> Path:
    """Write an experiment's page and CSV files into its folder; the page's path.

    Raises ConfigError when a record cannot be read, OSError.
    """
    if (folder / RESULTS_NAME).exists():
        write_csv(load_results(folder), folder)
    return write_page(Output(folder / REPORT_NAME, PAGE), [folder], [])


def write_page(out: Output, experiments: Sequence[Path], runs: Sequence[History]) -> Path:
    """Write one page of experiments and runs; its path. Raises ConfigError when a record cannot be read, OSError."""
    parts = [part for folder in experiments for part in folder_content(folder)]
    if runs:
        parts.append((", ".join(short_names([run.folder for run in runs])), runs_content(runs)))
    out.write(drawn_page(", ".join(title for title, _ in parts), "".join(markup for _, markup in parts)))
    return out.path


def folder_content(folder: Path) -> Iterator[tuple[str, str]]:
    """Title and markup of each record in an experiment's folder. Raises ConfigError when one cannot be read."""
    if (folder / RESULTS_NAME).exists():
        results = load_results(folder)
        picture, samples = kept_picture(results, folder), kept(folder / SAMPLES_NAME, Samples)
        yield results.title, content(results, recorded(folder / RESULTS_NAME), picture, samples)
    if (folder / SCALING_NAME).exists():
        scaling = load_scaling(folder)
        yield scaling.title, scaling_content(scaling, recorded(folder / SCALING_NAME))
    if (folder / SWEEP_NAME).exists():
        sweep = load_sweep(folder / SWEEP_NAME)
        yield f"sweep of {sweep.model}", sweep_section(sweep)


def recorded(file: Path) -> str:
    """When a record was last written."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")


def content(results: Results, date: str, picture: Picture | None = None, samples: Samples | None = None) -> str:
    """What the page says, as markup."""
    tables = tables_of(results)
    orders = section(
        "Expected orders", forest([difference(one) for one in results.comparisons], FOREST_UNIT), FOREST_WORDS
    )
    at = [_at(results, table) for table in tables]
    subsets = [
        section(
            f"By subset, at {ALIKE_WORDS[table]}",
            subsets_table(results, table) + patch_sizes_table(results, table),
            SUBSET_WORDS,
        )
        for table in tables
    ]
    top = header(results.title, facts(compared(results, date)) + listed(warnings(results), "warnings"))
    systems = section("Systems", described_systems(results) + runs_table(results))
    texts = [picture_section(picture), samples_section(results, samples)]
    tried = rates_table(results)
    rates = section("Learning rates", tried, f"{rates_cost(results)}.") if tried else ""
    models = section("Entropy models", entropy_models_table(results))
    return "".join([top, *at[:1], orders, *at[1:], *subsets, *texts, systems, models, rates])


def _at(results: Results, table: Table) -> str:
    """One table with what is plotted of it."""
    sentences = "".join(f'<p class="finding">{escape(words)}</p>' for words in findings(results, table))
    plots = f'<div class="charts">{learning_curves(results, table)}{frontier(results, table)}</div>'
    body = sentences + systems_table(results, table) + plots
    return section(f"At {ALIKE_WORDS[table]}", body, seeds_note(results, table))
