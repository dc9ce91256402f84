"""Sizes and budgets of several families, fitted, with what they predict.

Example:
  python -m trainer scaling src/ --out runs/scaling --families blt --budgets 1e12 4e12
"""

import argparse
from pathlib import Path

from shared.io.display.progress import Progress
from shared.io.display.terminal import show
from trainer.commands.compare import add_experiment_arguments, code_of, common, seeds
from trainer.experiments.folder import held
from trainer.experiments.page.page import write_report
from trainer.experiments.scaling.grid import GRID_FILE, load_grid
from trainer.experiments.scaling.record import SCALING_NAME
from trainer.experiments.scaling.runner import ScalingRequest, scale
from trainer.experiments.scaling.words import in_words
from trainer.experiments.systems import load_experiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of scaling."""
    add_experiment_arguments(parser)
    parser.add_argument("--grid", type=Path, default=GRID_FILE, metavar="FILE", help="families and sizes, as TOML")
    parser.add_argument("--families", nargs="+", default=[], metavar="NAME", help="these of the grid alone")
    parser.add_argument("--sizes", nargs="+", default=[], metavar="NAME", help="these of the grid alone")
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=[], metavar="FLOPS", help="useful training FLOPs, for the grid's"
    )
    parser.add_argument("--seeds", type=seeds, default=[], metavar="A,B", help="instead of the grid's")


def run(arguments: argparse.Namespace) -> int:
    """Do it, print what was found and write the page; returns the exit code."""
    request = ScalingRequest(
        **common(arguments, load_experiment(arguments.systems)),
        grid=load_grid(arguments.grid).part(arguments.families, arguments.sizes, arguments.budgets, arguments.seeds),
    )
    with held(arguments.out):
        found, failed = scale(request, Progress(silent=False, every_seconds=30.0))
    show(in_words(found))
    page, runs = write_report(arguments.out), arguments.out / "runs" / "scaling"
    show(f"\npage: {page}   record: {arguments.out / SCALING_NAME}   runs: {runs}")
    return code_of(failed)
