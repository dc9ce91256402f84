"""python -m pipeline COMMAND: from raw text to shards. A command's module is imported only when it is chosen."""

import sys
from collections.abc import Sequence

from shared.io.display.terminal import end_program
from shared.io.programs.command_line import heed_signals, run_command

COMMANDS = {
    "preprocess": "raw text to shards of patched documents",
    "status": "how far a run is, and what went wrong in it",
    "calibrate": "find the threshold that gives a wanted mean patch size",
    "count": "an entropy model that counts, made in minutes without training",
    "inspect": "what a dataset holds: patch sizes, entropies, examples",
    "verify": "re-read a dataset and check everything in it",
    "recut": "other patch boundaries from the stored entropies, without a model",
    "targets": "what a teacher says of every byte of a dataset, for distillation",
    "tokenizer": "byte-pair tokens: learned from a training split, or those of another model",
    "merge": "datasets that were made alike become one",
    "split": "set validation documents apart",
    "convert": "the same shards in another format: arrow, webdataset, parquet",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    about = "From raw text to shards of documents cut into patches."
    return run_command("pipeline", about, COMMANDS, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    heed_signals()
    end_program(main)
