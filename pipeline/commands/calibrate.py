"""A threshold for a patch size, or a table of them for several.

Example:
  python -m pipeline calibrate runs/stdlib/corpus --entropy-model runs/stdlib/entropy --target 4.5 --out patching.json
  python -m pipeline calibrate runs/stdlib/patched --entropy-model runs/stdlib/entropy --sizes 2,3,4,6 --out sizes.json

A dataset that keeps entropies of this very model (preprocess --sidecar) is counted as it is, all of it and without
running the model; else a sample is scored. Sizes are then checked on documents that had no part in the choice: those of
the validation split beside DATASET, or of a tenth set apart.

--parity is for text that several subsets share, such as translations: the subset of --parity-to gets the threshold for
--target, and every other one the threshold with which it needs as many patches as that one for the same documents.
KEY says which documents those are: a column (kept with preprocess --meta), 'id' for ids that are equal but for the
subset's name in them (en/intro.md and de/intro.md), or 'id:SEP' for ids that are equal up to their last SEP.
"""

import argparse
from pathlib import Path

from pipeline.calibration.calibrate import SCORED_SAMPLE, Wanted, calibrate, calibrate_sizes
from pipeline.calibration.patching_file import PATCHING
from pipeline.calibration.report import print_result, print_sizes
from pipeline.options import add_options, settings_of
from pipeline.scoring.options import add_scoring_arguments
from pipeline.settings import ScoringSettings
from shared.io.display.quantities import counted
from shared.io.display.terminal import show
from shared.io.files.outputs import add_overwrite, output_of
from shared.patching.settings import LONGEST_PATCH
from shared.patching.sizes import BEGINNING, MOST_SIZES

OPTIONS = {
    "rule": (None, "where patches begin"),
    "theta_rise": ("NATS", "second threshold of entropy_rise, which is not searched for"),
    "min_length": ("BYTES", "shortest patch"),
    "max_length": ("BYTES", "longest patch"),
    "whole_characters": (None, "no patch starts inside a character of UTF-8"),
    "per_subset": (None, "a threshold for each subset besides the one for all bytes"),
    "parity": ("KEY", "thresholds that give parallel text the same number of patches in each subset"),
    "parity_to": ("SUBSET", "the subset that the others follow"),
    "seed": (None, "seed of the sample"),
    "sidecar": (None, "what preprocess will keep: for uint8 the threshold on entropy lies on its grid"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", type=Path, metavar="DATASET", help="shards to calibrate on, patched or not; of two splits, train")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="for preprocess --patching, or a table for a run's data.patch_sizes",
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--target", type=float, metavar="BYTES", help="mean patch size")
    wanted.add_argument(
        "--sizes",
        type=_sizes,
        metavar="BYTES,BYTES,...",
        default=(),
        help="several, ascending: a table for a run whose patch size changes",
    )
    add_options(parser, Wanted, OPTIONS)
    add(
        "--sample-bytes",
        type=_sample_bytes,
        metavar="N",
        help=f"text to count on, with --per-subset or --parity of each subset; 0 or all for all of it (default: "
        f"{SCORED_SAMPLE:,} where the model must run, all where entropies are kept)",
    )
    add_overwrite(parser)
    add_scoring_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, unless the file is there and current; returns the exit code."""
    wanted, scoring = settings_of(arguments, Wanted), settings_of(arguments, ScoringSettings)
    if wanted.sizes:
        return _make_table(arguments, wanted, scoring)
    out = output_of(arguments, "out", PATCHING)
    result, sample = calibrate(arguments.dataset, arguments.entropy_model, wanted, scoring, out)
    if sample is None:
        show(f"{arguments.out} is current")
        print_result(result)
        return 0
    done = "scored" if result.identity.entropies == "scored" else "counted the kept entropies of"
    size, documents = int(sample.documents.bytes.sum()), sample.documents
    show(f"{done} {size:,} bytes in {counted(len(documents), 'document')} of {documents.dataset.folder}")
    print_result(result)
    show(f"thresholds are in {arguments.out}")
    return 0


def _make_table(arguments: argparse.Namespace, wanted: Wanted, scoring: ScoringSettings) -> int:
    """Calibrate for several sizes; returns the exit code."""
    out = output_of(arguments, "out", BEGINNING)
    table, sample = calibrate_sizes(arguments.dataset, arguments.entropy_model, wanted, scoring, out)
    if sample is None:
        show(f"{arguments.out} is current")
    else:
        size, documents = int(sample.documents.bytes.sum()), sample.documents
        show(f"counted {size:,} bytes in {counted(len(documents), 'document')} of {documents.dataset.folder}")
    print_sizes(table)
    show(f"the table is {arguments.out}")
    return 0


def _sizes(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < size <= LONGEST_PATCH for size in found):
        raise argparse.ArgumentTypeError(f"expected sizes in bytes as 2,3,4,6, got {text!r}")
    if len(found) > MOST_SIZES:
        raise argparse.ArgumentTypeError(f"at most {MOST_SIZES} sizes, got {len(found)}")
    return found


def _sample_bytes(text: str) -> int:
    if text != "all" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a number of bytes or 'all', got {text!r}")
    return 0 if text == "all" else int(text)
