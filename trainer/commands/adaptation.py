"""A model adapted to new text, by its local models alone or whole, and what it forgets of old text.

Example:
  python -m trainer adaptation old/ --new ru=russian/ el=greek/ --out runs/adaptation

CORPUS is old text, on which a base is trained. Each text of --new is then learned from there, by every other system of
--systems, with patches of its own entropy model and with those of the base's.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from shared.errors import ConfigError
from shared.io.display.progress import Progress
from shared.io.display.terminal import show
from trainer.commands.compare import add_experiment_arguments, code_of, common, seeds
from trainer.commands.running import whole
from trainer.experiments.adaptation.record import ADAPTATION_NAME, OLD
from trainer.experiments.adaptation.runner import AdaptationRequest, adapt
from trainer.experiments.adaptation.words import in_words
from trainer.experiments.folder import held
from trainer.experiments.systems import load_experiment

ADAPTATION_FILE = Path(__file__).parents[1] / "experiments" / "adaptation" / "adaptation.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of adaptation."""
    add_experiment_arguments(parser)
    parser.set_defaults(systems=ADAPTATION_FILE)
    parser.add_argument(
        "--new",
        nargs="+",
        type=named_text,
        required=True,
        metavar="NAME=PATH",
        help="texts to adapt to, whole: a file or folder each",
    )
    parser.add_argument(
        "--base-bytes", type=whole(1), default=2_000_000, metavar="N", help="old text that the base is trained on"
    )
    parser.add_argument(
        "--bytes", type=whole(1), default=200_000, metavar="N", help="new text that each other run is trained on"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="these alone: SYSTEM-own with patches of the text's own entropy model, SYSTEM-base with the base's",
    )
    parser.add_argument("--seeds", type=seeds, default="0,1,2", metavar="A,B", help="runs of each system on each text")


def named_text(text: str) -> tuple[str, str]:
    """The type of an option: NAME=PATH, where NAME becomes a folder's."""
    name, _, path = text.partition("=")
    if not path or not name.replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PATH, as in el=greek/; a name has letters and digits")
    if name == OLD:
        raise argparse.ArgumentTypeError(f"{text!r}: {OLD} is the name of CORPUS; choose another")
    return name, path


def run(arguments: argparse.Namespace) -> int:
    """Do it and print what was found; returns the exit code."""
    names = [name for name, _ in arguments.new]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--new names {twice[0]} twice; give each text a name of its own")
    given = common(arguments, load_experiment(arguments.systems))
    request = AdaptationRequest(
        **given,
        new={name: replace(given["corpus"], paths=(path,), sample_bytes=None) for name, path in arguments.new},
        seeds=arguments.seeds,
        base_bytes=arguments.base_bytes,
        bytes=arguments.bytes,
        only=arguments.only,
    )
    with held(arguments.out):
        found, failed = adapt(request, Progress(silent=False, every_seconds=30.0))
    show(in_words(found))
    show(f"\nrecord: {arguments.out / ADAPTATION_NAME}   runs: {arguments.out / 'runs'}")
    return code_of(failed)
