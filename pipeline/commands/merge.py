"""Datasets that were made alike become one, their files unchanged.

Example:
  python -m pipeline merge runs/stdlib/patched runs/mine --out runs/both

All must have the same split, format, sidecar, patching and entropy model. Folders with train/ and validation/ are
merged side by side. Shards get new numbers in the order given; their files are linked where that is possible, else
copied, and each is checked against its manifest. Whether two datasets share documents is not looked at.
"""

import argparse
from pathlib import Path

from pipeline.rewriting.merge import merge
from pipeline.rewriting.rewrite import add_output_arguments, show_result, workers_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("datasets", nargs="+", type=Path, metavar="DATASET", help="datasets, or folders above two")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    made = merge(arguments.datasets, arguments.out, workers_of(arguments))
    show_result(arguments.out, made)
    return 0
