"""`python -m trainer COMMAND`: what one does with models beside training them."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from shared.io.terminal import INTERRUPTED, end_program, imports, run_program
from trainer.errors import USER_ERRORS, complain

COMMANDS = {
    "evaluate": "bits per byte of a model on a dataset, by subset",
    "sweep": "quality against cost of a model when its patching threshold is shifted",
    "tasks": "multiple choice, CUTE and texts to complete from local files, also with noises",
    "lm-eval": "tasks of the language model evaluation harness, where that package is installed",
    "generate": "text from a model, byte by byte",
    "compare": "systems trained at equal budgets on the same text, and what that shows",
    "scaling": "families of models in several sizes at several budgets, with fits and predictions",
    "report": "curves and facts of runs as a page for a browser, also of runs under way",
    "export-hf": "a model folder as one that transformers loads",
    "import-hf": "a folder of transformers, or of the released reference, as a model folder",
    "import-llama": "a model to train from a recipe, with the blocks of a Llama as its global transformer",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_program(lambda: _complaining(arguments), complain)


def _complaining(arguments: Sequence[str] | None) -> int:
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("patchwork: interrupted", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        return complain(error)


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    with imports():
        modules = {name: import_module(f"trainer.commands.{name.replace('-', '_')}") for name in COMMANDS}
    for name, purpose in COMMANDS.items():
        modules[name].add_arguments(commands.add_parser(name, help=purpose, description=purpose))
    chosen, overrides = parser.parse_known_args(arguments)
    if overrides and not hasattr(modules[chosen.command], "TAKES_OVERRIDES"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    chosen.overrides = overrides
    return modules[chosen.command].run(chosen)


if __name__ == "__main__":
    end_program(main)
