"""A model from models, without training: their weighted mean, and what post-training changed in a token model.

Examples:
  python -m trainer merge-weights runs/a runs/b --out runs/mean
  python -m trainer merge-weights runs/a runs/b --weights 0.7 0.3 --out runs/between
  python -m trainer merge-weights runs/byteified --post-trained Olmo-3-7B-Instruct --base Olmo-3-7B --out runs/instruct
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

from shared.errors import ConfigError
from shared.io.display.terminal import show
from shared.io.files.outputs import check_folder
from trainer.commands.running import finite, opened_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of merge-weights."""
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model folder, run or checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write: a model folder")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=finite,
        metavar="W",
        help="of each model, with a sum of 1; may be negative (default: equal ones)",
    )
    post = parser.add_argument_group("what post-training changed, added to the global blocks of a byteified model")
    post.add_argument("--post-trained", type=Path, metavar="DIR", help="folder of the token model after post-training")
    post.add_argument("--base", type=Path, metavar="DIR", help="folder of the same before: the one that was byteified")
    post.add_argument("--scale", type=finite, default=1.0, metavar="X", help="share of the difference (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    if (arguments.post_trained is None) != (arguments.base is None):
        raise ConfigError("--post-trained and --base go together: what is added is their difference")
    check_folder(arguments.out)
    from shared.io.display.progress import Progress
    from shared.io.display.quantities import quantity
    from trainer.interchange.merging import PostTraining, merge_weights

    weights = arguments.weights or [1 / len(arguments.models)] * len(arguments.models)
    change = None
    if arguments.base is not None:
        change = PostTraining(arguments.post_trained, arguments.base, arguments.scale)
    line = Progress(silent=False, every_seconds=15.0)
    with ExitStack() as opened:
        folders = [opened.enter_context(opened_model(model)) for model in arguments.models]
        made = merge_weights(folders, weights, arguments.out, change, line)
    for model, weight in zip(arguments.models, weights):
        show(f"{weight:g} x {model}")
    if change is not None:
        added = f"{quantity(made.changed).rstrip()} of {quantity(made.parameters).rstrip()} parameters"
        show(f"{change.scale:g} x ({change.post_trained} - {change.base}), on {added}")
    return 0
