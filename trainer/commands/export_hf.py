"""A model folder as one that transformers loads.

Example:
  python -m trainer export-hf runs/stdlib/blt runs/hf
"""

import argparse
import re
from pathlib import Path

from shared.io.display.terminal import show
from shared.io.files.outputs import check_folder
from trainer.commands.running import add_model, add_subset, finite, opened_model, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of export-hf."""
    add_model(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, for AutoModelForCausalLM")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--theta", type=finite, metavar="NATS", help="patching threshold instead of the recorded one")
    add_subset(one)
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the model's weights; the entropy model stays float32",
    )
    parser.add_argument(
        "--shard-bytes", type=whole(1), default=5_000_000_000, metavar="N", help="largest file; no tensor is cut"
    )
    parser.add_argument(
        "--license", type=license_name, metavar="NAME", help="of the weights, for the model card: apache-2.0, cc-by-4.0"
    )


def license_name(text: str) -> str:
    """The type of --license: a name as the hub has them."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the name of a licence as the hub has them: apache-2.0, other"
        )
    return text


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what differs there."""
    check_folder(arguments.out)
    from shared.io.display.progress import Progress
    from trainer.interchange.folders import ExportSettings, export_hf

    line = Progress(silent=False, every_seconds=15.0)
    chosen = ExportSettings(
        *(arguments.theta, arguments.subset, arguments.dtype, arguments.shard_bytes, arguments.license)
    )
    with opened_model(arguments.model) as model:
        differences = export_hf(model, arguments.out, chosen, line)
    for difference in differences:
        show(f"note: {difference}")
    files = sorted(path for path in arguments.out.iterdir() if path.is_file())
    for path in files:
        show(f"{path}  {path.stat().st_size:,} bytes")
    return 0
