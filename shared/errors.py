"""Errors that a user can do something about; each message is one line that names the file, option or key."""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What both programs end with; docs/faults.md has the table. The last two are what a shell makes of a signal."""

    DONE = 0
    FAILED = 1
    """Something failed at run time: splits, training, the system, a check of `verify`."""
    REFUSED = 2
    """A wrong option, key or input: nothing was done, and what is wrong has to be fixed first."""
    DEAD_LETTERS = 3
    """Done, but some records were unreadable."""
    MISSED = 4
    """Done, but the product is not what was asked for: no document, or no record with a column that an option names."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class PatchworkError(ValueError):
    """Base of all of them: what both programs print as one line.

    Anything else that is raised, but for errors of the system (OSError), is a fault of this project and keeps its
    traceback.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.REFUSED


class DatasetError(PatchworkError):
    """A dataset or shard that is missing, damaged or not what was expected; the message names the file."""


class ConfigError(PatchworkError):
    """A recipe or an override that cannot be used; the message names the file or option and the key."""


class StorageError(PatchworkError):
    """A URL that cannot be read; the message says why, without any password."""


class DeniedError(StorageError):
    """A URL that this user may not read, or, where lists are not allowed, under which there may be nothing."""


class OutputError(PatchworkError, FileExistsError):
    """A path that a command must not write to; the message names it and says what would be right."""


class IdentityError(PatchworkError):
    """Two artefacts that should come from the same making do not."""


class ModelFileError(PatchworkError):
    """A model folder is missing, incomplete or does not fit its settings; the message says where and what."""


def did_you_mean(unknown: str, known: Iterable[str], least: float = 0.75) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing where none is near.

    ``least``: ratio of `difflib` from which on one is near.
    """
    near = get_close_matches(unknown, list(known), n=1, cutoff=least)
    return f"; did you mean {near[0]!r}?" if near else ""
