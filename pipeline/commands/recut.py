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
from dataclasses import fields
from pathlib import Path

from pipeline.rewriting.recut import Change, recut
from pipeline.rewriting.rewrite import add_output_arguments, show_result
from shared.patching.settings import ENTROPY_RULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", type=Path, metavar="DATASET", help="a dataset, or the folder above its train/ and validation/")
    add_output_arguments(parser)
    group = parser.add_argument_group("patches")
    rules = ["none", "byte", "static", "space", *ENTROPY_RULES, "bpe"]
    group.add_argument("--rule", choices=rules, help="where patches begin (default: the dataset's own rule)")
    group.add_argument("--theta", type=float, metavar="NATS", help="threshold of the rules on entropy, for all subsets")
    group.add_argument("--target", type=float, metavar="BYTES", help="instead of --theta: mean patch size, of train")
    group.add_argument("--theta-rise", type=float, metavar="NATS", help="second threshold of entropy_rise")
    group.add_argument("--stride", type=int, metavar="BYTES", help="of the rule static")
    group.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of the rule bpe")
    group.add_argument("--min-length", type=int, metavar="BYTES", help="shortest patch")
    group.add_argument("--max-length", type=int, metavar="BYTES", help="longest patch")
    group.add_argument("--patching", type=Path, metavar="FILE.json", help="all of these as calibrate wrote them")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    change = Change(**{field.name: getattr(arguments, field.name) for field in fields(Change)})
    made = recut(arguments.dataset, arguments.out, change, arguments.workers)
    show_result(arguments.out, made)
    return 0
