"""What a dataset holds, as text or, with --html, as a page for a browser.

Example:
  python -m pipeline inspect runs/stdlib/patched/train --html page.html
"""

import argparse
import sys
from pathlib import Path

from pipeline.inspect.page import write_page
from pipeline.inspect.report import report
from shared.errors import ExitCode
from shared.io.display.page import PAGE
from shared.io.display.terminal import show, show_lines
from shared.io.files.outputs import add_overwrite, output_if_given
from shared.shards.open import find_datasets, open_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="folder of a dataset, or the one above its train/ and validation/"
    )
    parser.add_argument(
        "--documents",
        type=_count,
        default=3,
        metavar="N",
        help="documents shown at either end, and in the page as many at random of each subset",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page for a browser, that needs no network")
    add_overwrite(parser)


def _count(text: str) -> int:
    """A number of documents. Raises ValueError, which argparse words."""
    if (count := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{count} is less than 0")
    return count


def run(arguments: argparse.Namespace) -> int:
    """Print the report of each dataset, or write the page."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # any document must be printable on any terminal
    out = output_if_given(arguments, "html", PAGE)
    datasets = [open_dataset(folder) for folder in find_datasets(arguments.dataset)]
    if out is not None:
        show(write_page(out, datasets, arguments.documents))
        return ExitCode.DONE
    for dataset in datasets:
        show_lines(*report(dataset, arguments.documents))
        show()
    return 0
