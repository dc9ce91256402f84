"""`python -m trainer evaluate | generate`: what one does with a trained model."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from trainer.errors import USER_ERRORS, complain

COMMANDS = {
    "evaluate": "bits per byte of a model on a dataset, by subset",
    "generate": "text from a model, byte by byte",
    "export-hf": "a model folder as one that transformers loads",
    "import-hf": "a folder of transformers, or of the released reference, as a model folder",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    modules = {}
    for name, purpose in COMMANDS.items():
        modules[name] = import_module(f"trainer.{name.replace('-', '_')}_command")
        modules[name].add_arguments(commands.add_parser(name, help=purpose, description=purpose))
    chosen = parser.parse_args(arguments)
    try:
        return modules[chosen.command].run(chosen)
    except USER_ERRORS as error:
        return complain(error)


if __name__ == "__main__":
    sys.exit(main())
