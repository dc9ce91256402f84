"""A threshold for a patch size.

Example:
  python -m pipeline calibrate runs/stdlib/corpus --entropy-model runs/stdlib/entropy --target 4.5 --out patching.json

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

from pydantic import ValidationError

from pipeline.calibration.calibrate import SCORED_SAMPLE, Wanted, calibrate
from pipeline.calibration.patching_file import PATCHING
from pipeline.calibration.report import print_result
from pipeline.scoring.options import add_scoring_arguments, scoring_of
from pipeline.settings import PipelineError
from shared.io.files import add_overwrite, output_of
from shared.io.quantities import counted
from shared.io.terminal import show
from shared.patching.settings import ENTROPY_RULES
from shared.settings import first_problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", type=Path, metavar="DATASET", help="shards to calibrate on, patched or not; of two splits, train")
    add("--target", type=float, required=True, metavar="BYTES", help="mean patch size")
    add("--out", type=Path, required=True, metavar="FILE.json", help="for preprocess --patching")
    add("--rule", choices=ENTROPY_RULES, default="entropy", help="where patches begin")
    add("--theta-rise", type=float, metavar="NATS", help="second threshold of entropy_rise, taken as it is")
    add("--min-length", type=int, default=1, metavar="BYTES", help="shortest patch")
    add("--max-length", type=int, default=512, metavar="BYTES", help="longest patch")
    add("--per-subset", action="store_true", help="a threshold for each subset besides the one for all bytes")
    add("--parity", metavar="KEY", help="thresholds that give parallel text the same number of patches in each subset")
    add("--parity-to", metavar="SUBSET", help="the subset that the others follow")
    add(
        "--sample-bytes",
        type=_sample_bytes,
        metavar="N",
        help=f"text to count on, with --per-subset or --parity of each subset; 0 or all for all of it (default: "
        f"{SCORED_SAMPLE:,} where the model must run, all where entropies are kept)",
    )
    add("--seed", type=int, default=0, help="seed of the sample")
    add(
        "--sidecar",
        choices=["none", "uint8", "float32"],
        default="uint8",
        help="what preprocess will keep: for uint8 the threshold on entropy lies on its grid",
    )
    add_overwrite(parser)
    add_scoring_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, unless the file is there and current; returns the exit code."""
    out = output_of(arguments, "out", PATCHING)
    try:
        wanted = Wanted(**{name: getattr(arguments, name) for name in Wanted.model_fields})
        scoring = scoring_of(arguments)
    except ValidationError as error:
        raise PipelineError(first_problem(error)) from None
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


def _sample_bytes(text: str) -> int:
    if text != "all" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a number of bytes or 'all', got {text!r}")
    return 0 if text == "all" else int(text)
