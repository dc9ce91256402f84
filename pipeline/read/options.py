"""Options that say which records there are, and what they say; also for programs that call the pipeline."""

import argparse
from collections.abc import Collection, Sequence
from typing import Any

from pipeline.options import add_options, settings_of
from pipeline.read.chat import CONVERSATIONS, MESSAGES, PROMPT, RESPONSES
from pipeline.read.columns import SUBSET_COLUMNS
from pipeline.settings import ChatSettings, PipelineError, ReadSettings
from shared.io.programs.command_line import Parser
from shared.settings import refused_as
from shared.text.chat import ANSWERING, END, ROLES

OPTIONS: dict[str, tuple[str | None, str]] = {
    "text_column": ("NAME", "column with the text; in WebDataset the member's suffix"),
    "id_column": ("NAME", "column with the id; a record without it gets path:@offset, of a table path:row"),
    "subset_column": (
        "NAME",
        f"source or language, for mixing and reports (default: the first of {', '.join(SUBSET_COLUMNS)} that a record "
        "has; else the subset 'default')",
    ),
    "subset_from": (None, "directory: the first folder below the input is the subset"),
    "subset": ("NAME", "one subset for all records"),
    "document_bytes": (
        "N",
        "cut text files at blank lines into documents of at least N bytes (default: a file is one document)",
    ),
    "meta": (None, "pass the remaining columns through as JSON"),
    "split_key": ("COLUMN", "records with equal values stay on one side of the split"),
    "validation_fraction": ("F", "share of documents that are held out"),
    "dedup": (None, "of records with equal text keep the first, list the others"),
    "sample_bytes": ("N", "keep a random sample of at most N bytes of text"),
    "seed": (None, "seed of the sample"),
    "include": ("GLOB", "files to read in directories"),
    "exclude": ("GLOB", "files or folders to leave out"),
    "input_format": (None, "of every input file (default: what its content says); text takes any file as it is"),
    "named_splits": (
        None,
        "keep: beside files named train, those named validation go to validation/, those named test are left out; "
        "ignore: they are files like others",
    ),
    "max_window": ("BYTES", "memory for the window of a compressed file; zstd --long=31 needs the default of 2 GiB"),
    "max_ratio": ("N", "refuse files that decompress to more than N times their bytes"),
    "split_bytes": (
        "N",
        "bytes of input of a split (default: an eighth of the input, 1 to 64 MiB; of less than 4 MiB a quarter, at "
        "least 256 kiB)",
    ),
}


def add_reading_arguments(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """All keys of ReadSettings but those that a command has no use for."""
    options = {key: described for key, described in OPTIONS.items() if key not in without}
    add_options(parser.add_argument_group("records"), ReadSettings, options)
    add = parser.add_argument_group("chats").add_argument
    add(
        "--chat",
        action="store_true",
        help=f"records are chats: a column {MESSAGES} of {{role, content}}, {CONVERSATIONS} of {{from, value}}, or "
        f"{PROMPT} and {' or '.join(RESPONSES)}; turns begin and end with special ids",
    )
    roles = f"that turns may have, each a special id (default: {','.join(ROLES)}); {END} ends turns"
    add("--roles", metavar="A,B", help=roles)
    add("--learn", metavar="A,B", help=f"roles whose turns are targets, or all (default: {ANSWERING})")


def reading_of(arguments: argparse.Namespace, **changed: Any) -> ReadSettings:
    """What the options say, but for what is changed. Raises PipelineError."""
    return settings_of(arguments, ReadSettings, **{"chat": _chat(arguments)} | changed)


def reading_from(words: Sequence[str], **changed: Any) -> ReadSettings:
    """The same of options as words. Raises PipelineError; a wrong option ends the program."""
    parser = Parser("python -m pipeline preprocess", "", "")
    add_reading_arguments(parser)
    parser.check_options(words)
    return reading_of(parser.parse_args(words), **changed)


def _chat(arguments: argparse.Namespace) -> ChatSettings | None:
    """How chats are read, if records are chats. Raises PipelineError."""
    if not arguments.chat:
        for option in ("roles", "learn"):
            if getattr(arguments, option) is not None:
                raise PipelineError(f"--{option} is for --chat")
        return None
    roles = tuple(arguments.roles.split(",")) if arguments.roles else ROLES
    learn = (ANSWERING,) if arguments.learn is None else tuple(arguments.learn.split(","))
    with refused_as(PipelineError):
        return ChatSettings(roles=roles, learn=roles if learn == ("all",) else learn)
