"""A model from models, without training: their weighted mean, and what post-training changed in a token model.

Examples:
  python -m trainer merge-weights runs/a runs/b --out runs/mean
  python -m trainer merge-weights runs/a runs/b --weights 0.7 0.3 --out runs/between
  python -m trainer merge-weights runs/byteified-run --post-trained OLMO-INSTRUCT --base OLMO --out runs/instruct

Of a run that has not ended its last checkpoint is taken; RUN/checkpoints/step-N is another. Both can be done at once.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

from shared.errors import ConfigError
from shared.io.display.terminal import show
from shared.io.files.outputs import check_folder
from trainer.commands.running import finite, opened_model, opened_token_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of merge-weights."""
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="model folder, run or checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write: a model folder")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=finite,
        metavar="W",
        help="of each model, behind the models and apart by spaces; their sum is 1, and they may be negative "
        "(default: equal ones)",
    )
    post = parser.add_argument_group("what post-training changed, added to the global blocks of a byteified model")
    post.add_argument(
        "--post-trained", type=Path, metavar="DIR", help="token model after post-training, as byteify takes it"
    )
    post.add_argument(
        "--base", type=Path, metavar="DIR", help="the same before: the one that was byteified, which is not checked"
    )
    post.add_argument("--scale", type=finite, metavar="X", help="share of the difference (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    if (arguments.post_trained is None) != (arguments.base is None):
        raise ConfigError("--post-trained and --base go together: what is added is their difference")
    if arguments.scale is not None and arguments.base is None:
        raise ConfigError("--scale is a share of the difference of --post-trained and --base, which are missing")
    check_folder(arguments.out)
    from shared.io.display.progress import Progress
    from shared.io.display.quantities import quantity
    from trainer.interchange.merging import PostTraining, merge_weights

    weights = arguments.weights or [1 / len(arguments.models)] * len(arguments.models)
    scale = 1.0 if arguments.scale is None else arguments.scale
    line = Progress(silent=False, every_seconds=15.0)
    with ExitStack() as opened:
        folders = [opened.enter_context(opened_model(model)) for model in arguments.models]
        change = None
        if arguments.base is not None:
            after = opened.enter_context(opened_token_model(arguments.post_trained))
            change = PostTraining(after, opened.enter_context(opened_token_model(arguments.base)), scale)
        made = merge_weights(folders, weights, arguments.out, change, line)
    for model, weight in zip(arguments.models, weights):
        show(f"{weight:g} x {model}")
    if change is not None:
        added = f"{quantity(made.changed).rstrip()} of {quantity(made.parameters).rstrip()} parameters"
        show(f"{scale:g} x ({arguments.post_trained} - {arguments.base}), on {added}")
    return 0
