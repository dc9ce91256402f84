"""Other patch boundaries from the stored entropies, without a model.

Example:
  python -m pipeline recut runs/stdlib/patched --target 6 --out runs/longer-patches

DIR gets the same shards with the new boundaries: byte for byte what preprocess would have written with that rule.
What is not given stays as the dataset has it. Rules on entropy need the sidecar (preprocess --sidecar): uint8 holds
enough for thresholds on entropy, which move to its grid; rules on rises need float32. The rule bpe makes a patch of
each token of --tokenizer: for the BPE baseline alone, since tokens depend on bytes after them. A stopped command goes
on where it was; DIR appears when it is complete.
"""

import argparse
from pathlib import Path

from pipeline.options import PATCHING_OPTIONS, add_options, settings_of
from pipeline.rewriting.recut import Change, dry_run, recut
from pipeline.rewriting.rewrite import add_output_arguments, show_result, workers_of
from shared.io.display.terminal import show_lines
from shared.patching.settings import ENTROPY_RULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", type=Path, metavar="DATASET", help="a dataset, or the folder above its train/ and validation/")
    add_output_arguments(parser)
    group = parser.add_argument_group("patches")
    rules = ["none", "byte", "static", "space", *ENTROPY_RULES, "bpe"]
    group.add_argument("--rule", choices=rules, help="where patches begin (default: the dataset's own rule)")
    others: dict[str, tuple[str | None, str]] = {
        "target": ("BYTES", "instead of --theta: mean patch size, of train"),
        "tokenizer": ("FOLDER", "of the rule bpe"),
    }
    add_options(group, Change, PATCHING_OPTIONS | others)
    add(
        "--dry-run",
        action="store_true",
        help="count how large patches become in some of the shards; write nothing",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    if arguments.dry_run:
        show_lines(*dry_run(arguments.dataset, settings_of(arguments, Change)))
        return 0
    made = recut(arguments.dataset, arguments.out, settings_of(arguments, Change), workers_of(arguments))
    show_result(arguments.out, made)
    return 0
