"""One page of runs, done, under way or dead, and of experiments, whole or in part.

Example:
  python -m trainer report runs/stdlib/blt
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from shared.errors import ConfigError
from shared.io.display.page import PAGE
from shared.io.display.terminal import show
from shared.io.files.outputs import add_overwrite, output_of
from trainer.experiments.page.csv_files import write_csv
from trainer.experiments.page.page import is_experiment, write_page
from trainer.experiments.page.patched_text import kept_picture
from trainer.experiments.page.samples import prompt_from, write_samples
from trainer.experiments.page.sentences import warnings
from trainer.experiments.results.results import RESULTS_NAME, load_results
from trainer.experiments.results.words import in_words
from trainer.experiments.scaling.record import SCALING_NAME, load_scaling
from trainer.experiments.scaling.words import in_words as study_in_words
from trainer.metrics.files import REPORT_NAME
from trainer.metrics.history import load_history
from trainer.metrics.summary import in_words as facts_in_words
from trainer.metrics.summary import summary
from trainer.provenance.run_folder import METRICS_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of report."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="runs, which share each plot; experiments"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the page (default: {REPORT_NAME} in the first)")
    parser.add_argument(
        "--samples", action="store_true", help="let the systems of an experiment write, and keep what they wrote"
    )
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found and write the page, and CSV files into experiments; returns the exit code."""
    folders: list[Path] = arguments.folders
    out = output_of(arguments, "out", PAGE, folders[0] / REPORT_NAME)
    experiments = [folder for folder in folders if is_experiment(folder)]
    runs = [load_history(path) for path in folders if path not in experiments or (path / METRICS_NAME).exists()]
    for folder in experiments:
        for words in found_in(folder):
            show(f"{words}\n")
        if arguments.samples:
            write_folder_samples(folder)
    for history in runs:
        show(f"{facts_in_words(summary(history))}\n")
    file = write_page(out, experiments, runs)
    show(f"{file}: open it in any browser")
    return 0


def found_in(folder: Path) -> Iterator[str]:
    """What an experiment found, in words; its CSV files are written."""
    if (folder / RESULTS_NAME).exists():
        results = load_results(folder)
        write_csv(results, folder)
        yield "\n".join([in_words(results), *(f"warning: {words}" for words in warnings(results))])
    if (folder / SCALING_NAME).exists():
        yield study_in_words(load_scaling(folder))


def write_folder_samples(folder: Path) -> None:
    """Samples of an experiment's systems, from the beginning of the text that its page shows."""
    results = load_results(folder)
    picture = kept_picture(results, folder)
    if picture is None:
        raise ConfigError(f"--samples: {folder} has no dataset to take the prompt from")
    write_samples(results, folder, prompt_from(picture.bytes))
