"""Byte-pair tokens learned from a training split.

Example:
  python -m pipeline tokenizer runs/stdlib/corpus --vocabulary 4096 --out runs/tokenizer

The tokenizer is a byte-level BPE with the word pattern of GPT-2 and no normaliser; FOLDER/tokenizer.json opens with the
tokenizers library. Ids 0 to 3 are special, byte b is b + 4, merges follow from 260 on, V ids in all. Give the folder to
`recut --rule bpe --tokenizer FOLDER`. Only a training split is read: the folder above train/ and validation/ will do.
"""

import argparse
from pathlib import Path

from pipeline.rewriting.tokenizer import train_tokenizer
from shared.io.display.terminal import show
from shared.io.stores.locations import location_of
from shared.vocabulary import VOCABULARY_SIZE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a training split, or the folder above it")
    parser.add_argument("--vocabulary", type=int, required=True, metavar="V", help=f"ids, more than {VOCABULARY_SIZE}")
    parser.add_argument(
        "--out",
        type=location_of,
        required=True,
        metavar="FOLDER",
        help="folder or URL (s3://, gs://, az://) of the result",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    making, made = train_tokenizer(arguments.dataset, arguments.vocabulary, arguments.out)
    show(f"{arguments.out}: " + ("complete" if made else "nothing to do, all is current"))
    show(f"  {making.vocabulary:,} ids, the longest token has {making.longest} bytes, sha256 {making.sha256}")
    return 0
