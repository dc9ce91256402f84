"""`python -m trainer COMMAND`: what one does with models beside training them."""

import sys
from collections.abc import Sequence

from shared.io.display.terminal import end_program
from shared.io.programs.command_line import heed_signals, run_command

COMMANDS = {
    "evaluate": "bits per byte of a model on a dataset, by subset",
    "sweep": "quality against cost of a model when its patching threshold is shifted",
    "tasks": "multiple choice, CUTE and texts to complete from local files, also with noises",
    "lm-eval": "tasks of the language model evaluation harness, where that package is installed",
    "generate": "text from a model, byte by byte",
    "serve": "models behind an HTTP API as OpenAI's, all requests in one batch",
    "compare": "systems trained at equal budgets on the same text, and what that shows",
    "scaling": "families of models in several sizes at several budgets, with fits and predictions",
    "adaptation": "a model adapted to new text, by its local models alone or whole, and what it forgets",
    "report": "curves and facts of runs as a page for a browser, also of runs under way",
    "export-hf": "a model folder as one that transformers loads",
    "import-hf": "a folder of transformers, or of the released reference, as a model folder",
    "byteify": "a model to train from a recipe, with the blocks of a Llama, Qwen, OLMo or another in the middle",
    "merge-weights": "a model from models without training: weighted means, what post-training changed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    about = "What one does with models beside training them, which is `torchrun trainer/main.py RECIPE`."
    return run_command("trainer", about, COMMANDS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    heed_signals()
    end_program(main)
