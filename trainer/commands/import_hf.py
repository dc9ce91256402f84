"""A folder of transformers, or of the released reference, as a model folder.

Example:
  python -m trainer import-hf runs/hf runs/imported
"""

import argparse
from pathlib import Path

from shared.io.display.terminal import show
from shared.io.files.outputs import check_folder
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.patching.settings import LONGEST_PATCH
from trainer.commands.running import finite, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of import-hf."""
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="a folder of transformers (config.json, safetensors), or one of the reference (params.json, consolidated)",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="model folder to write")
    parser.add_argument(
        "--entropy-model",
        type=Path,
        metavar="DIR",
        help="the reference's entropy model, if not in FOLDER/entropy_model",
    )
    parser.add_argument("--theta", type=finite, metavar="NATS", help="patching threshold instead of the recorded one")
    parser.add_argument(
        "--max-length",
        type=whole(1, LONGEST_PATCH),
        metavar="BYTES",
        help=f"longest patch, instead of the recorded one ({LONGEST_PATCH} where none is)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    check_folder(arguments.out)
    from shared.io.display.progress import Progress
    from trainer.interchange.folders import ImportSettings, import_foreign

    line = Progress(silent=False, every_seconds=15.0)
    chosen = ImportSettings(arguments.entropy_model, arguments.theta, arguments.max_length)
    found = import_foreign(arguments.folder, arguments.out, chosen, line)
    model, patching = found.model, found.patching
    shapes = ", ".join(f"{stack.part} {stack.settings.layers} x {stack.settings.width}" for stack in model.stacks)
    if isinstance(model, BltSettings):
        show(f"{shapes}, window {model.window}, {model.queries} vectors a patch")
    else:
        show(f"model of kind {model.kind!r}: {shapes}")
    if isinstance(found.entropy_model, EntropyModelSettings):
        inner = found.entropy_model
        show(f"entropy model {inner.layers} x {inner.width}, window {inner.window}")
    elif found.entropy_model is not None:
        show(f"entropy model that counts, contexts of up to {found.entropy_model.order} bytes")
    theta = "" if patching.theta is None else f"theta {patching.theta!r} nats, "
    if patching.patched:
        show(f"patches: rule {patching.rule!r}, {theta}max_length {patching.max_length}")
    show(f"model: {arguments.out}")
    return 0
