"""Systems trained at equal budgets on the same text, and what that shows.

Example:
  python -m trainer compare src/ --out runs/comparison --budget 5e12 --only bytes blt-space
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from shared.errors import ConfigError, ExitCode
from shared.io.display.log import LOG
from shared.io.display.progress import Progress
from shared.io.display.terminal import show
from trainer.commands.running import whole
from trainer.experiments.compare import Comparing, compare
from trainer.experiments.folder import held
from trainer.experiments.page.page import write_report
from trainer.experiments.preparation import Corpus
from trainer.experiments.results.results import RESULTS_NAME, Table
from trainer.experiments.results.words import in_words
from trainer.experiments.systems import SYSTEMS_FILE, Experiment, load_experiment

BUDGET = 2e12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of compare."""
    add_experiment_arguments(parser)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SYSTEM", help="these systems alone; results join those in DIR"
    )
    parser.add_argument(
        "--full", action="store_true", help="the ablations too, and tables at equal FLOPs and at equal bytes"
    )
    parser.add_argument(
        "--equal",
        nargs="+",
        choices=get_args(Table),
        metavar="WHAT",
        help="tables that are made: flops, bytes (of text) (default: flops; with --full both)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET,
        metavar="FLOPS",
        help=f"training FLOPs of a run, the entropy model's over its text counted (default: {BUDGET:.0e})",
    )
    parser.add_argument(
        "--bytes",
        type=whole(1),
        metavar="N",
        help="text of a run of the table at equal bytes (default: what the first system learns within the FLOPs)",
    )
    parser.add_argument("--seeds", type=seeds, default="0,1,2", metavar="A,B", help="a run of each system for each")


def seeds(text: str) -> list[int]:
    """The type of an option: seeds separated by commas, each once."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers separated by commas, as in 0,1") from None
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names one twice")
    return found


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the text comes from, where everything goes, what systems are, and how much is done at a time."""
    parser.add_argument("corpus", nargs="+", metavar="CORPUS", help="files or folders of text, as for preprocess")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the experiment")
    parser.add_argument(
        "--corpus-bytes",
        type=int,
        default=4_000_000,
        metavar="N",
        help="a random sample of so many bytes of text, shared equally among CORPUS; 0: all",
    )
    parser.add_argument(
        "--document-bytes",
        type=int,
        default=3072,
        metavar="N",
        help="cut plain text into documents of about so many bytes; 0: a file is a document",
    )
    parser.add_argument(
        "--validation-fraction", type=float, default=0.035, metavar="F", help="share of documents that are held out"
    )
    parser.add_argument("--sample-seed", type=int, default=1, metavar="N", help="of the sample")
    parser.add_argument(
        "--corpus-options",
        type=words_of,
        default=(),
        metavar="'...'",
        help="options of preprocess that say which records there are: \"--include '*.py'\"",
    )
    parser.add_argument("--systems", type=Path, default=SYSTEMS_FILE, metavar="FILE", help="the systems, as TOML")
    parser.add_argument("--jobs", type=whole(1), default=2, metavar="N", help="runs at a time")
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray", help="who scores the corpus")


def common(arguments: argparse.Namespace, experiment: Experiment) -> dict[str, Any]:
    """What the options say that all experiments have, by the fields of `Request`."""
    corpus = Corpus(
        paths=tuple(arguments.corpus),
        sample_bytes=arguments.corpus_bytes or None,
        document_bytes=arguments.document_bytes or None,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.sample_seed,
        options=arguments.corpus_options,
    )
    given = {name: getattr(arguments, name) for name in ("out", "jobs", "executor")}
    return {"experiment": experiment, "corpus": corpus, **given}


def words_of(text: str) -> tuple[str, ...]:
    """Options in a text, as a shell reads them."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:  # what argparse says of it names the function
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def run(arguments: argparse.Namespace) -> int:
    """Do it, print the table and write the page; returns the exit code."""
    experiment = load_experiment(arguments.systems)
    if not arguments.budget > 0:
        raise ConfigError(f"--budget: {arguments.budget:g} is too small")
    tables = arguments.equal or (get_args(Table) if arguments.full else ["flops"])
    if arguments.bytes and "bytes" not in tables:
        raise ConfigError("--bytes is of the table at equal bytes: add --equal bytes, or --equal flops bytes for both")
    request = Comparing(
        **common(arguments, experiment),
        systems=experiment.chosen(arguments.only, arguments.full),
        seeds=arguments.seeds,
        budget_flops=arguments.budget,
        budget_bytes=arguments.bytes,
        tables=[table for table in get_args(Table) if table in tables],
    )
    with held(arguments.out):
        results, failed = compare(request, Progress(silent=False, every_seconds=30.0))
    show(in_words(results))
    out = arguments.out
    show(f"\npage: {write_report(out)}   record: {out / RESULTS_NAME}   runs: {out / 'runs'}")
    return code_of(failed)


def code_of(failed: Sequence[str]) -> ExitCode:
    """The exit code of an experiment, and a line about the runs that have failed."""
    if failed:
        LOG.error("%d runs have failed: %s; rerun the same command to retry them", len(failed), ", ".join(failed))
    return ExitCode.FAILED if failed else ExitCode.DONE
