"""Errors that a user can do something about; each message is one line that names the file, option or key."""


class PatchworkError(ValueError):
    """Base of all of them: what both programs print as one line, with exit code 1 or 2 (docs/faults.md).

    Anything else that is raised, but for errors of the system (OSError), is a fault of this project and keeps its
    traceback.
    """


class DatasetError(PatchworkError):
    """A dataset or shard that is missing, damaged or not what was expected; the message names the file."""


class ConfigError(PatchworkError):
    """A recipe or an override that cannot be used; the message names the file or option and the key."""


class StorageError(PatchworkError):
    """A URL that cannot be read; the message says why, without any password."""


class OutputError(PatchworkError, FileExistsError):
    """A path that a command must not write to; the message names it and says what would be right."""


class IdentityError(PatchworkError):
    """Two artefacts that should come from the same making do not."""


class ModelFileError(PatchworkError):
    """A model folder is missing, incomplete or does not fit its settings; the message says where and what."""
