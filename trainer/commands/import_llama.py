"""A byte latent transformer to train, with a Llama's blocks in the middle.

Example:
  python -m trainer import-llama Llama-3.2-1B runs/byteified --recipe trainer/recipes/blt-1b.toml

Keys of the recipe can be given as --section.key value, too.
"""

import argparse
from pathlib import Path

from shared.io.display.terminal import show
from shared.io.files.outputs import check_folder

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of import-llama."""
    parser.add_argument(
        "llama", type=Path, metavar="LLAMA", help="folder of a LlamaForCausalLM (config.json, safetensors)"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder to write: a model folder, and recipe.toml to train it"
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="training recipe; its [model] gives the local models, its [model.global] is replaced by the Llama's shape",
    )
    parser.add_argument(
        "--unscaled",
        action="store_true",
        help="take a Llama with scaled rotary positions (3.1 and later) as if they were not scaled",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    check_folder(arguments.out)
    from shared.io.display.progress import Progress
    from shared.io.display.quantities import quantity
    from trainer.interchange.byteify import IMPORTED, RECIPE_FILE, byteify

    line = Progress(silent=False, every_seconds=15.0)
    out = arguments.out
    made = byteify(arguments.llama, out, arguments.recipe, arguments.overrides, arguments.unscaled, line)
    stack = made.stack
    heads = f"{stack.heads} heads, {stack.key_value_heads} of keys and values"
    own = f"{quantity(made.imported).rstrip()} parameters of the Llama"
    show(f"{IMPORTED}: {stack.layers} of width {stack.width}, {heads}, {own}")
    show(f"new: {quantity(made.new).rstrip()} parameters of the local models and the n-gram tables")
    show(f"left out: {', '.join(made.left_out) or 'nothing'}")
    show(f"train it: torchrun trainer/main.py {out / RECIPE_FILE} --data.path DATA --run.out RUN")
    return 0
