"""Byte-pair tokens learned from a training split, or those of another model.

Example:
  python -m pipeline tokenizer runs/stdlib/corpus --vocabulary 4096 --out runs/tokenizer
  python -m pipeline tokenizer --from Llama-3.2-1B --out runs/llama-tokenizer

From a training split: a byte-level BPE with the word pattern of GPT-2 and no normaliser; FOLDER/tokenizer.json opens
with the tokenizers library. Ids 0 to 3 are special, byte b is b + 4, merges follow from 260 on, V ids in all. Only a
training split is read: the folder above train/ and validation/ will do.

With --from: the tokenizer.json of a model on the hub, byte-level BPE (GPT-2, Llama 3, Qwen, OLMo, SmolLM) or BPE with
byte fallback (Llama 2, Mistral), whose tokens are the patches of a student (docs/distillation.md). Ids are the model's
own. What changes a text before it is cut, or is put around it, is left out, and said.

Give the folder to `recut --rule bpe --tokenizer FOLDER`.
"""

import argparse
from pathlib import Path

from pipeline.rewriting.tokenizer import import_tokenizer, train_tokenizer
from pipeline.settings import PipelineError
from shared.io.display.terminal import show
from shared.io.stores.locations import location_of
from shared.vocabulary import VOCABULARY_SIZE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", type=Path, nargs="?", metavar="DATASET", help="a training split, or the folder above it"
    )
    parser.add_argument("--vocabulary", type=int, metavar="V", help=f"of a new one: ids, more than {VOCABULARY_SIZE}")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="MODEL",
        help="instead of DATASET and --vocabulary: the folder of another model, or its tokenizer.json",
    )
    parser.add_argument(
        "--out",
        type=location_of,
        required=True,
        metavar="FOLDER",
        help="folder or URL (s3://, gs://, az://) of the result",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    dataset, vocabulary, source = arguments.dataset, arguments.vocabulary, arguments.source
    if source is not None and (dataset, vocabulary) == (None, None):
        making, made = import_tokenizer(source, arguments.out)
    elif source is None and dataset is not None and vocabulary is not None:
        making, made = train_tokenizer(dataset, vocabulary, arguments.out)
    else:
        raise PipelineError("give either DATASET and --vocabulary, or --from MODEL alone")
    show(f"{arguments.out}: " + ("complete" if made else "nothing to do, all is current"))
    show(f"  {making.vocabulary:,} ids, the longest token has {making.longest} bytes, sha256 {making.sha256}")
    for what in making.left_out:
        show(f"  left out: {what}")
    return 0
