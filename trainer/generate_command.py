"""`python -m trainer generate`: text from a model folder."""

import argparse
import os
import sys
from pathlib import Path

from shared.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of generate."""
    parser.add_argument("model", type=Path, help="model folder (RUN/model)")
    parser.add_argument("--prompt", default="", help="text to go on from")
    parser.add_argument("--bytes", type=int, default=200, help="bytes to write at most (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest byte (default 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest bytes only")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default 0)")
    parser.add_argument("--subset", help="whose patching threshold to use, where subsets have their own")
    parser.add_argument("--theta", type=float, help="a patching threshold in nats instead of the recorded one")
    parser.add_argument("--show-patches", action="store_true", help="set patches apart by |")


def run(arguments: argparse.Namespace) -> int:
    """Write to standard output as the bytes come."""
    for name, valid in (
        ("bytes", arguments.bytes >= 0),
        ("temperature", arguments.temperature >= 0),
        ("top-k", arguments.top_k is None or arguments.top_k > 0),
    ):
        if not valid:
            raise ConfigError(f"--{name}: {getattr(arguments, name.replace('-', '_'))} is too small")
    from trainer.generate import GenerateSettings, Generator, text_of

    settings = GenerateSettings(
        length=arguments.bytes,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        subset=arguments.subset,
        theta=arguments.theta,
    )
    # The terminal's own bytes: a prompt that is not UTF-8 arrives as surrogates and goes to the model as it was typed.
    pieces = Generator(arguments.model).write(os.fsencode(arguments.prompt), settings)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for text in text_of(pieces, arguments.show_patches):
        print(text, end="", flush=True)
    print()
    return 0
