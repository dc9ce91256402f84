"""The folder of a run: its recorded plan and identity, and what an interrupted run left behind.

DIR/run.json  .lock  splits/00012.json  train/  validation/  dead-letters/00012.jsonl  empty-records/  failures/
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.plan import Split
from pipeline.settings import SPLIT_NAMES, PipelineError, SplitName
from pipeline.splits.marker import (
    DEAD_LETTERS,
    DUPLICATES,
    EMPTY_RECORDS,
    MARKERS,
    Marker,
    read_marker,
)
from pipeline.splits.place import Has, Place
from pipeline.splits.run_file import FAILURES, RUN_FILE, RunFile, read_run
from pipeline.splits.selection import SELECTION
from shared.errors import IdentityError, ModelFileError
from shared.io.files import LOCK_FILE, whole_folder, write_atomic
from shared.io.identity import differences, in_short
from shared.model_folder.identity import CONFIG_FILE, WEIGHTS_FILE, model_sha256
from shared.settings import refused_as
from shared.shards.dataset import files_of
from shared.shards.manifest import ENTROPY_MODEL_FOLDER, MANIFEST_NAME


def load_run(out: Path) -> RunFile | None:
    """The run recorded in a folder, if there is one. Raises PipelineError for a folder with something else in it."""
    path = out / RUN_FILE
    try:
        with refused_as(PipelineError, f"{path}: "):
            return read_run(path)
    except FileNotFoundError:
        # A driver that was killed in the middle leaves its lock file, and half a plan under a temporary name.
        if out.is_dir() and any(e.name != LOCK_FILE and not e.match(f"{RUN_FILE}.*.tmp") for e in out.iterdir()):
            raise PipelineError(f"--out {out} is not empty and holds no run; give a new folder") from None
        return None
    except NotADirectoryError:
        raise PipelineError(f"--out {out} is a file; give a folder") from None
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None


def require_same(recorded: RunFile, identity: dict[str, Any], out: str) -> None:
    """Raises IdentityError that lists what differs from the run that the folder holds."""
    if lines := differences(recorded.identity, identity):
        raise IdentityError(
            f"{out} holds another run ({in_short(lines)}); choose another --out (make: OUT=) or restore its settings"
        )


def remove_half_written(out: Path) -> None:
    """Remove what a driver and workers were writing when they were killed.

    A worker that still writes fails, and leaves nothing.
    """
    for folder in ("", *SPLIT_NAMES, MARKERS, DEAD_LETTERS, EMPTY_RECORDS, DUPLICATES, SELECTION):
        for path in (out / folder).glob("*.tmp"):
            path.unlink(missing_ok=True)


def remove_leftovers(out: Path) -> None:
    """Remove what a run that was killed left behind, and what an earlier start said about failures."""
    remove_half_written(out)
    for path in out.glob(f"*/.{ENTROPY_MODEL_FOLDER}-*"):
        shutil.rmtree(path)
    shutil.rmtree(out / FAILURES, ignore_errors=True)


def finished_splits(place: Place, run: RunFile) -> dict[int, Marker]:
    """Markers of the splits that are done, each with its files checked byte for byte, on a store by their sizes."""

    def checked(split: Split) -> Marker | None:
        marker = read_marker(place.job.out, split.number, run.digest)
        return marker if marker is not None and place.is_whole(marker) else None

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock
        return {marker.split: marker for marker in pool.map(checked, run.plan.splits) if marker is not None}


def finished_run(out: Path, run: RunFile, has: Has) -> list[Marker] | None:
    """All markers of a complete run; None if anything is missing. Looks at names and sizes only: it is quick."""
    markers = []
    for name in SPLIT_NAMES:
        if not has(f"{name}/{MANIFEST_NAME}", None):
            return None
        if run.numerics is not None and not has(f"{name}/{ENTROPY_MODEL_FOLDER}/{WEIGHTS_FILE}", None):
            return None
    for split in run.plan.splits:
        marker = read_marker(out, split.number, run.digest)
        if marker is None or not all(_in_place(has, marker, name) for name in SPLIT_NAMES):
            return None
        markers.append(marker)
    return markers


def _in_place(has: Has, marker: Marker, name: SplitName) -> bool:
    entries = marker.shards[name]
    there = all(has(f"{name}/{file}", None) for entry in entries for file, *_ in files_of(entry))
    return there and all(has(f"{name}/{entry.name}", entry.bytes_on_disk) for entry in entries)


def copy_entropy_model(entropy_model: Path, sha256: str, out: Path) -> None:
    """Put the entropy model into both datasets, whole or not at all, so that they are self-contained (law 7)."""
    for name in SPLIT_NAMES:
        target = out / name / ENTROPY_MODEL_FOLDER
        with suppress(ModelFileError):
            if model_sha256(target) == sha256:
                continue
        with whole_folder(target, lambda _: True) as made:
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                write_atomic(made / file, (entropy_model / file).read_bytes())
