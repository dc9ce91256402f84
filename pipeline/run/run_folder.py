"""The folder of a run: its recorded plan and identity, and what an interrupted run left behind.

DIR/run.json  files-SHA256.arrow  .lock  splits/0000012-00003.json  train/  validation/
DIR/dead-letters/0000012-00003.jsonl  empty-records/  failures/
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.files import TABLE_NAME
from pipeline.settings import SPLIT_NAMES, PipelineError, SplitName
from pipeline.splits.marker import (
    LEDGERS,
    MARKERS,
    Marker,
    read_marker,
)
from pipeline.splits.place import Has, Place
from pipeline.splits.run_file import FAILURES, RUN_FILE, RunFile, read_run
from pipeline.splits.selection import SELECTION
from shared.errors import DatasetError, IdentityError, ModelFileError
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import differences, in_short
from shared.io.files.locks import LOCK_FILE
from shared.io.files.outputs import whole_folder
from shared.model_folder.identity import CONFIG_FILE, WEIGHTS_FILE, model_sha256
from shared.settings import refused_as
from shared.shards.dataset import files_of
from shared.shards.manifest import ENTROPY_MODEL_FOLDER, MANIFEST_NAME, ShardFiles, load_manifest
from shared.shards.tables import TABLES_FOLDER, table_file


def load_run(out: Path) -> RunFile | None:
    """The run recorded in a folder, if there is one. Raises PipelineError for a folder with something else in it."""
    path = out / RUN_FILE
    try:
        with refused_as(PipelineError, f"{path}: "):
            return read_run(path)
    except FileNotFoundError:
        # A driver that was killed in the middle leaves its lock file, and half a plan under a temporary name.
        if out.is_dir() and any(not _of_a_start(entry) for entry in out.iterdir()):
            raise PipelineError(f"--out {out} is not empty and holds no run; give a new folder") from None
        return None
    except NotADirectoryError:
        raise PipelineError(f"--out {out} is a file; give a folder") from None
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None


def _of_a_start(path: Path) -> bool:
    """Whether a driver that has just begun may have left it."""
    temporary = path.match(f"{RUN_FILE}.*.tmp") or path.match("files-*.arrow.*.tmp")
    return path.name == LOCK_FILE or temporary or TABLE_NAME.fullmatch(path.name) is not None


def require_same(recorded: RunFile, run: RunFile, out: str) -> None:
    """Raises IdentityError that lists what differs from the run that the folder holds."""
    if lines := differences(recorded.identity, run.identity):
        other_file = run.plan.files.first_difference(recorded.plan.files)
        if other_file and all(line.startswith("inputs.") for line in lines):
            raise IdentityError(
                f"{out} holds a run of another input: {other_file} ({in_short(lines)}); choose another --out "
                "(make: OUT=) for the input as it is now, or restore it"
            )
        raise IdentityError(
            f"{out} holds another run ({in_short(lines)}); choose another --out (make: OUT=) or restore its settings"
        )


def remove_half_written(out: Path) -> None:
    """Remove what a driver and workers were writing when they were killed.

    A worker that still writes fails, and leaves nothing.
    """
    tables = (f"{name}/{TABLES_FOLDER}" for name in SPLIT_NAMES)
    for folder in ("", *SPLIT_NAMES, *tables, MARKERS, *LEDGERS, SELECTION):
        for path in (out / folder).glob("*.tmp"):
            path.unlink(missing_ok=True)


def remove_leftovers(out: Path) -> None:
    """Remove what a run that was killed left behind, and what an earlier start said about failures."""
    remove_half_written(out)
    for path in out.glob(f"*/.{ENTROPY_MODEL_FOLDER}-*"):
        shutil.rmtree(path)
    shutil.rmtree(out / FAILURES, ignore_errors=True)


_AT_ONCE = 256


def finished_splits(place: Place, run: RunFile) -> np.ndarray:
    """Which splits are done, bool [splits]: with each file checked byte for byte, on a store by its size."""
    digest = run.digest

    def checked(split: str) -> bool:
        marker = read_marker(place.job.out, split, digest)
        return marker is not None and place.is_whole(marker)

    return splits_where(checked, run)


def splits_where(checked: Callable[[str], bool], run: RunFile) -> np.ndarray:
    """The splits of whose names something is true, bool [splits]; it may read files."""
    names, done = run.plan.splits.name, np.zeros(len(run.plan.splits), bool)
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock
        for begin in range(0, len(done), _AT_ONCE):
            some = range(begin, min(begin + _AT_ONCE, len(done)))
            done[begin : some.stop] = [*pool.map(checked, map(names, some))]
    return done


def markers_of(out: Path, run: RunFile) -> Iterator[tuple[int, Marker | None]]:
    """The splits by number, each with its marker if it has one; none is kept."""
    digest = run.digest
    for number in range(len(run.plan.splits)):
        yield number, read_marker(out, run.plan.splits.name(number), digest)


def has_datasets(out: Path, run: RunFile, has: Has) -> bool:
    """Whether there is what both datasets of a run have beside shards."""
    for name in SPLIT_NAMES:
        if not has(f"{name}/{MANIFEST_NAME}", None) or not _tables_in_place(out, has, name):
            return False
        models = (f"{name}/{ENTROPY_MODEL_FOLDER}/{file}" for file in (CONFIG_FILE, WEIGHTS_FILE))
        scored = run.numerics is not None or run.identity.get("entropy_model_sha256") is not None
        if scored and not all(has(file, None) for file in models):
            return False
    return True


def in_place(has: Has, shards: Mapping[SplitName, Iterable[ShardFiles]]) -> bool:
    """Whether there is every file of some shards, with its size."""
    return all(
        has(f"{name}/{file}", size)
        for name, own in shards.items()
        for shard in own
        for file, _, size in files_of(shard)
    )


def _tables_in_place(out: Path, has: Has, name: SplitName) -> bool:
    try:
        tables = load_manifest(out / name).tables
    except DatasetError:
        return False
    return all(has(f"{name}/{table_file(table)}", record.bytes) for table, record in tables.items())


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
