"""A laboratory as one page for a browser, made from its records alone. Nothing is fetched, no script. Free of torch."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from shared.files import Output
from shared.page import PAGE
from trainer.drawing.forest import forest
from trainer.drawing.page import drawn_page, facts, header, section
from trainer.laboratory.csv_files import write_csv
from trainer.laboratory.dial import DIAL_NAME, load_dial
from trainer.laboratory.pictures import Picture, kept_picture
from trainer.laboratory.report_dial import dial_section
from trainer.laboratory.report_plots import frontier, learning_curves
from trainer.laboratory.report_scaling import scaling_content
from trainer.laboratory.report_tables import cells_table, described_systems, subsets_table, systems_table
from trainer.laboratory.report_texts import picture_section, samples_section
from trainer.laboratory.report_words import (
    ALIKE_WORDS,
    compared,
    difference,
    findings,
    seeds_note,
    tables_of,
    warnings,
)
from trainer.laboratory.results import RESULTS_NAME, Results, Table, load_results
from trainer.laboratory.samples import Samples, load_samples
from trainer.laboratory.scaling.record import SCALING_NAME, load_scaling
from trainer.observing.files import REPORT_NAME
from trainer.observing.history import History
from trainer.observing.report import content as runs_content
from trainer.observing.report import short_names

SUBSET_WORDS = "Bits per byte; the least of each row is underlined."
FOREST_UNIT = "bits per byte; right of 0 as expected"
FOREST_WORDS = (
    "Paired differences: the same seed means the same data and draws. The line is the interval over seeds, which "
    "decides the verdict, the bar that over documents of the validation split; dots are pairs of seeds, the diamond is "
    "their mean. An arrow: the interval goes on."
)


def is_laboratory(folder: Path) -> bool:
    """Whether a folder has a record that a page can be made of."""
    return any((folder / name).exists() for name in (RESULTS_NAME, SCALING_NAME, DIAL_NAME))


def write_report(folder: Path) -> Path:
    """Write a laboratory's page and CSV files into its folder; the page's path.

    Raises ConfigError when a record cannot be read, OSError.
    """
    if (folder / RESULTS_NAME).exists():
        write_csv(load_results(folder), folder)
    return write_page(Output(folder / REPORT_NAME, PAGE), [folder], [])


def write_page(out: Output, laboratories: Sequence[Path], runs: Sequence[History]) -> Path:
    """Write one page of laboratories and runs; its path. Raises ConfigError when a record cannot be read, OSError."""
    parts = [part for folder in laboratories for part in folder_content(folder)]
    if runs:
        parts.append((", ".join(short_names([run.folder for run in runs])), runs_content(runs)))
    out.write(drawn_page(", ".join(title for title, _ in parts), "".join(markup for _, markup in parts)))
    return out.path


def folder_content(folder: Path) -> Iterator[tuple[str, str]]:
    """Title and markup of each record in a laboratory's folder. Raises ConfigError when one cannot be read."""
    if (folder / RESULTS_NAME).exists():
        results = load_results(folder)
        picture, samples = kept_picture(results, folder), load_samples(folder)
        yield results.title, content(results, recorded(folder / RESULTS_NAME), picture, samples)
    if (folder / SCALING_NAME).exists():
        scaling = load_scaling(folder)
        yield scaling.title, scaling_content(scaling, recorded(folder / SCALING_NAME))
    if (folder / DIAL_NAME).exists():
        dial = load_dial(folder / DIAL_NAME)
        yield f"dial of {dial.model}", dial_section(dial)


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
        section(f"By subset, at {ALIKE_WORDS[table]}", subsets_table(results, table), SUBSET_WORDS) for table in tables
    ]
    top = header(results.title, facts(compared(results, date)) + _warnings(results))
    systems = section("Systems", described_systems(results) + cells_table(results))
    texts = [picture_section(picture), samples_section(results, samples)]
    return "".join([top, *at[:1], orders, *at[1:], *subsets, *texts, systems])


def _at(results: Results, table: Table) -> str:
    """One table with what is plotted of it."""
    said = "".join(f'<p class="finding">{escape(words)}</p>' for words in findings(results, table))
    plots = f'<div class="charts">{learning_curves(results, table)}{frontier(results, table)}</div>'
    body = said + systems_table(results, table) + plots
    return section(f"At {ALIKE_WORDS[table]}", body, seeds_note(results, table))


def _warnings(results: Results) -> str:
    found = "".join(f"<li>{escape(words)}</li>" for words in warnings(results))
    return f'<ul class="warnings">{found}</ul>' if found else ""
