"""`python -m trainer report`: a page of curves and facts of runs, done, under way or dead."""

import argparse
from pathlib import Path

from trainer.observing.files import REPORT_NAME
from trainer.observing.history import load_history
from trainer.observing.report import write_report
from trainer.observing.summary import in_words, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of report."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs; several share each plot")
    parser.add_argument("--html", type=Path, metavar="FILE", help=f"the page (default RUN/{REPORT_NAME} of the first)")


def run(arguments: argparse.Namespace) -> int:
    """Print each run's summary and write the page; returns the exit code."""
    runs = [load_history(folder) for folder in arguments.runs]
    for history in runs:
        print(in_words(summary(history)))
        print()
    print(write_report(arguments.html or arguments.runs[0] / REPORT_NAME, runs))
    return 0
