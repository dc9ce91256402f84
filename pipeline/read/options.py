"""Options that say which records there are, and what they say; also for programs that call the pipeline."""

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError

from pipeline.read.chat import CONVERSATIONS, MESSAGES, PROMPT, RESPONSES
from pipeline.read.columns import SUBSET_COLUMNS
from pipeline.settings import ChatSettings, InputFormat, PipelineError, ReadSettings
from shared.io.command_line import Parser
from shared.settings import first_problem
from shared.text.chat import ANSWERING, END, ROLES


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """All keys of ReadSettings."""
    group = parser.add_argument_group("records")
    defaults = ReadSettings()
    group.add_argument(
        "--text-column",
        default=defaults.text_column,
        metavar="NAME",
        help="column with the text; in WebDataset the member's suffix",
    )
    group.add_argument(
        "--id-column",
        default=defaults.id_column,
        metavar="NAME",
        help="column with the id; a record without it gets path:line or path:row",
    )
    group.add_argument(
        "--subset-column",
        metavar="NAME",
        help=f"source or language, for mixing and reports (default: the first of {', '.join(SUBSET_COLUMNS)} "
        "that a record has; else the subset 'default')",
    )
    group.add_argument(
        "--subset-from",
        choices=["column", "directory"],
        default=defaults.subset_from,
        help="directory: the first folder below the input is the subset",
    )
    group.add_argument("--subset", metavar="NAME", help="one subset for all records")
    group.add_argument(
        "--document-bytes",
        type=int,
        metavar="N",
        help="cut text files at blank lines into documents of at least N bytes (default: a file is one document)",
    )
    group.add_argument("--meta", action="store_true", help="pass the remaining columns through as JSON")
    group.add_argument("--split-key", metavar="COLUMN", help="records with equal values stay on one side of the split")
    group.add_argument(
        "--validation-fraction",
        type=float,
        default=defaults.validation_fraction,
        metavar="F",
        help="share of documents that are held out",
    )
    group.add_argument(
        "--dedup", action="store_true", help="of records with equal text keep the first, list the others"
    )
    group.add_argument("--sample-bytes", type=int, metavar="N", help="keep a random sample of at most N bytes of text")
    group.add_argument("--seed", type=int, default=defaults.seed, help="seed of the sample")
    group.add_argument("--include", action="append", default=[], metavar="GLOB", help="files to read in directories")
    group.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="files or folders to leave out")
    group.add_argument(
        "--input-format",
        choices=get_args(InputFormat),
        help="of every input file (default: what its content says); text takes any file as it is",
    )
    group.add_argument(
        "--named-splits",
        choices=["keep", "ignore"],
        default=defaults.named_splits,
        help="keep: beside files named train, those named validation go to validation/, those named test are left out; "
        "ignore: they are files like others",
    )
    group.add_argument(
        "--max-window",
        type=int,
        default=defaults.max_window,
        metavar="BYTES",
        help="memory for the window of a compressed file; zstd --long=31 needs the default of 2 GiB",
    )
    group.add_argument(
        "--max-ratio",
        type=int,
        default=defaults.max_ratio,
        metavar="N",
        help="refuse files that decompress to more than N times their bytes",
    )

    group.add_argument(
        "--split-bytes",
        type=int,
        metavar="N",
        help="bytes of input of a split (default: an eighth of the input, 1 to 64 MiB; of less than 4 MiB a quarter, "
        "at least 256 kiB)",
    )

    group = parser.add_argument_group("chats")
    group.add_argument(
        "--chat",
        action="store_true",
        help=f"records are chats: a column {MESSAGES} of {{role, content}}, {CONVERSATIONS} of {{from, value}}, or "
        f"{PROMPT} and {' or '.join(RESPONSES)}; "
        "turns begin and end with special ids",
    )
    group.add_argument(
        "--roles",
        metavar="A,B",
        help=f"that turns may have, each a special id (default: {','.join(ROLES)}); {END} ends turns",
    )
    group.add_argument("--learn", metavar="A,B", help=f"roles whose turns are targets, or all (default: {ANSWERING})")


def reading_of(arguments: argparse.Namespace, **changed: Any) -> ReadSettings:
    """What the options say, but for what is changed. Raises PipelineError or ValidationError."""
    given = {name: getattr(arguments, name) for name in ReadSettings.model_fields}
    return ReadSettings(**given | {"chat": _chat(arguments)} | changed)


def reading_from(words: Sequence[str], **changed: Any) -> ReadSettings:
    """The same of options as words. Raises PipelineError; a wrong option ends the program."""
    parser = Parser("python -m pipeline preprocess", "", "")
    add_reading_arguments(parser)
    parser.check_options(words)
    try:
        return reading_of(parser.parse_args(words), **changed)
    except ValidationError as error:
        raise PipelineError(first_problem(error)) from None


def _chat(arguments: argparse.Namespace) -> ChatSettings | None:
    """How chats are read, if records are chats. Raises PipelineError or ValidationError."""
    if not arguments.chat:
        for option in ("roles", "learn"):
            if getattr(arguments, option) is not None:
                raise PipelineError(f"--{option} is for --chat")
        return None
    roles = tuple(arguments.roles.split(",")) if arguments.roles else ROLES
    learn = (ANSWERING,) if arguments.learn is None else tuple(arguments.learn.split(","))
    return ChatSettings(roles=roles, learn=roles if learn == ("all",) else learn)
