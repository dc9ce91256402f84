"""Whose a folder is: a run takes a new or empty one, or its own, and touches nothing else. Free of torch."""

import re
import stat
from pathlib import Path

from shared.errors import ConfigError, IdentityError
from shared.io.files.locks import LOCK_FILE
from trainer.provenance.identity import IDENTITY_NAME, RunIdentity, load_identity

METRICS_NAME = "metrics.jsonl"
"""A line of figures for each interval, and one for each pass over the validation split."""
STARTS_NAME = "starts.jsonl"
"""A line for each time that a process began or went on with the run: {step, time, ranks, device, processor...}."""
FLIGHT_RECORDER_NAME = "flight-recorder"
FROM_LABORATORY = frozenset({"recipe.toml", "log.txt"})
"""What `compare` and `scaling` put beside a run before it begins; no run writes files of these names."""
_BEFORE_IDENTITY = re.compile(rf"{re.escape(IDENTITY_NAME)}\.[0-9a-f]{{8}}\.tmp")
"""What a run that was killed at once may have left beside its lock."""
_OWNER = re.compile(r"(process \d+ on \S+\n)?")
WRITTEN_IN_PLACE = (LOCK_FILE, METRICS_NAME, STARTS_NAME)
"""Written to as they are, so that a link would lead a run to another file. All others are replaced by new ones."""


def check_run_folder(out: Path) -> None:
    """Raise ConfigError, before anything is written, unless run.out is new, empty, or the folder of a run.

    That is known by its identity.json, which is the first file that a run writes there beside its lock.
    """
    try:
        names = {path.name for path in out.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError(f"run.out {out} is not a folder; choose another") from None
    if IDENTITY_NAME in names:
        try:
            load_identity(out / IDENTITY_NAME, RunIdentity)
        except IdentityError as error:
            raise ConfigError(f"run.out {out} holds no run of this version ({error}); choose another") from None
        for name in WRITTEN_IN_PLACE:
            if name in names and not stat.S_ISREG((out / name).lstat().st_mode):
                raise ConfigError(f"run.out {out} is not the folder of a run: {name} is not a regular file; remove it")
        return
    known = {LOCK_FILE, FLIGHT_RECORDER_NAME, *FROM_LABORATORY}
    foreign = sorted(name for name in names - known if not _BEFORE_IDENTITY.fullmatch(name))
    if LOCK_FILE in names and not _is_lock(out / LOCK_FILE):
        foreign.insert(0, LOCK_FILE)
    if foreign:
        raise ConfigError(
            f"run.out {out} is not empty and not the folder of a run: it has {foreign[0]!r} and no {IDENTITY_NAME}; "
            "choose another"
        )


def _is_lock(path: Path) -> bool:
    status = path.lstat()
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_size < 4096
        and bool(_OWNER.fullmatch(path.read_text("utf-8", "replace")))
    )
