"""Making datasets from datasets, shard by shard: what recut, merge, split, convert and targets share.

OUT appears in one step when everything is in it. Until then the work lies beside it in .OUT.unfinished with a marker
for each unit that is done, so that the same command resumes where it was stopped.
"""

import argparse
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, ValidationError

from pipeline.charts import dataset_line
from pipeline.executors.counting import default_workers
from pipeline.executors.units import Workers, each
from pipeline.options import option_of
from pipeline.rewriting.dataset_rows import Side, sides_at
from pipeline.settings import PipelineError, RayWorkers
from pipeline.splits.marker import MOST_MARKER_BYTES
from shared.bpe.folder import copy_tokenizer
from shared.errors import DatasetError, IdentityError
from shared.io.display.progress import ByteProgress
from shared.io.display.terminal import show_lines
from shared.io.files.atomic import atomic_file, sync, write_atomic
from shared.io.files.digests import canonical_json, differences, file_sha256, in_short
from shared.io.files.json_reader import read_bounded, read_json
from shared.io.files.locks import LOCK_FILE, locked
from shared.io.files.outputs import check_folder
from shared.io.files.scratch import scratch
from shared.io.stores.lease import leased
from shared.io.stores.locations import location_of
from shared.io.stores.pages import Listing
from shared.io.stores.store import Store, UrlStore, probe, publish_files
from shared.model_folder.identity import CONFIG_FILE, WEIGHTS_FILE, check_model
from shared.settings import Settings, refused_as
from shared.shards.dataset import Dataset, check_file, check_size, files_of
from shared.shards.manifest import ENTROPY_MODEL_FOLDER, MANIFEST_NAME, TOKENIZER_FOLDER, DatasetIdentity, ShardEntry
from shared.shards.open import open_dataset, remote_datasets
from shared.shards.tables import commit_dataset
from shared.shards.writer import HashingFile

REQUEST_FILE = "made-by.json"
"""In OUT: the command and what it was given."""
_MARKERS = "units"
MANIFESTS = (MANIFEST_NAME, "targets.json")
"""Files that say that what they name is there: those of datasets, and of targets."""
MOST_REQUEST_BYTES = 64 << 20
"""Of what was requested: it names every shard."""


class Written(Settings):
    """What one unit of work has left behind; its marker."""

    shards: dict[str, list[ShardEntry]] = Field(default_factory=dict)
    """By the folder of their dataset below OUT; empty for OUT itself."""
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of files that belong to no dataset, by path below OUT."""
    figures: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What else is known of them, by the folder of their dataset below OUT, for `Rewriting.finish`."""

    def all_files(self) -> dict[str, str]:
        """Path below OUT and sha256 of every file."""
        found = dict(self.files)
        for folder, entries in self.shards.items():
            for entry in entries:
                found |= {os.path.join(folder, name): sha256 for name, sha256, _ in files_of(entry)}
        return found


class Rewriting(Protocol):
    """One command, as units of work that can be done in any order, in any process, and again. It can be pickled."""

    title: str

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of text of each unit."""
        ...

    def write(self, unit: int, out: Path) -> Written:
        """Write the files of one unit below ``out``; the same bytes each time."""
        ...

    def finish(self, out: Path, written: Iterable[Written]) -> None:
        """Write what the units have in common, manifests last."""
        ...


def add_output_arguments(parser: argparse.ArgumentParser, gpus: bool = False) -> None:
    """Options of every command that rewrites datasets. ``gpus``: whether its workers may want some."""
    parser.add_argument(
        "--out",
        type=location_of,
        required=True,
        metavar="DIR",
        help="folder or URL (s3://, gs://, az://) of the result",
    )
    group = parser.add_argument_group("work (nothing here changes a byte)")
    group.add_argument("--executor", choices=["inline", "ray"], default="inline", help="inline: without Ray")
    group.add_argument("--workers", type=int, metavar="N", help="at most so many (default: CPUs)")
    group.add_argument("--ray-address", metavar="ADDR", help="to join (default: RAY_ADDRESS, else one made here)")
    if gpus:
        text = "share of a GPU for each worker on Ray (default: 1 where there are GPUs)"
        group.add_argument("--gpus-per-worker", type=float, metavar="F", help=text)


def workers_of(arguments: argparse.Namespace, threads: int = 1, gpus: float | None = 0.0) -> Workers:
    """Who does the work. ``threads`` and ``gpus`` of each worker. Raises PipelineError for an option without effect."""
    if arguments.workers is not None and arguments.workers < 1:
        raise PipelineError(f"--workers {arguments.workers}: must be at least 1")
    if arguments.executor == "ray":
        with refused_as(PipelineError, "--gpus-per-worker: "):
            return RayWorkers(most=arguments.workers, address=arguments.ray_address, threads=threads, gpus=gpus)
    for option in ("ray_address", "gpus_per_worker"):
        if getattr(arguments, option, None) is not None:
            raise PipelineError(f"{option_of(option)} is for --executor ray")
    found: int = arguments.workers or default_workers(os.cpu_count() or 1, threads)
    return found


def rewrite(out: Path | str, request: dict[str, Any], make: Callable[[], Rewriting], workers: Workers) -> bool:
    """Carry out what is requested, or resume it; False if ``out`` holds the very result already.

    ``request``: JSON that decides every byte of the result. ``make`` is called when there is something to do.
    Raises IdentityError when ``out`` was made by another command, PipelineError when it holds something else.
    """
    if isinstance(out, str):
        return _rewrite_on_store(out, request, make, workers)
    check_folder(out, lambda folder: (folder / REQUEST_FILE).is_file())
    out = out.resolve()
    if _is_current(out, request):
        return False
    unfinished = out.with_name(f".{out.name}.unfinished")
    check_folder(unfinished, _is_unfinished)
    with locked(unfinished):
        try:
            _begin(unfinished, request)
            work = make()
            work.finish(unfinished, _write_all(work, unfinished, workers))
            _commit(unfinished, out)
        except OSError as error:
            raise PipelineError(f"--out {out}: {error}; fix this and rerun the same command to resume") from None
    return True


def show_result(out: Path | str, made: bool, held: Sequence[Side] | None = None) -> None:
    """Print what ``out`` holds, its datasets unless told otherwise; ``made``: they have just been made."""
    show_lines(f"{out}: " + ("complete" if made else "nothing to do, all is current"))
    if isinstance(out, str):
        held_datasets = [open_dataset(url) for url in remote_datasets(out)]
    else:
        held_datasets = [side.dataset for side in held or sides_at(out)]
    for dataset in held_datasets:
        manifest = dataset.manifest
        show_lines(dataset_line(manifest.identity.split, manifest.totals, manifest.shard_count, dataset.where))


def save_dataset(
    folder: Path,
    identity: DatasetIdentity,
    entries: Iterable[ShardEntry],
    source: Dataset,
    tokenizer: Path | None = None,
) -> None:
    """Commit a dataset of shards that are there, with the models that its identity names."""
    copy_models(source, identity, folder, tokenizer)
    commit_dataset(folder, identity, entries)


def copy_models(source: Dataset, identity: DatasetIdentity, folder: Path, tokenizer: Path | None = None) -> None:
    """Copy the entropy model and the tokenizer that an identity names: those of ``source``, unless ``tokenizer`` is the
    folder of one. Raises DatasetError or IdentityError unless they are the recorded ones.
    """
    if identity.entropy_model is not None:
        model = source.folder / ENTROPY_MODEL_FOLDER
        check_model(model, identity.entropy_model.sha256)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            write_atomic(folder / ENTROPY_MODEL_FOLDER / name, (model / name).read_bytes())
    if identity.patching.tokenizer is not None:
        copy_tokenizer(tokenizer or source.tokenizer, folder / TOKENIZER_FOLDER, identity.patching.tokenizer)


def link(source: Path, target: Path, sha256: str, size: int | None = None) -> None:
    """Give a file another name, or copy it where that cannot be.

    Raises DatasetError unless its sha256 is this, and its size where that is known (`check_file`).
    """
    check_size(source, size)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)  # of a symbolic link, the file: the link itself would point to nowhere here
    except OSError:  # another file system, or one without links
        with source.open("rb") as reading, atomic_file(target) as writing:
            copy = HashingFile(writing)  # while it is copied: it is not read a second time to be checked
            shutil.copyfileobj(reading, copy, 2**20)
            if copy.sha256 != sha256:
                raise DatasetError(f"{source} is damaged: sha256 {copy.sha256}, manifest says {sha256}") from None
    else:
        check_file(source, sha256, size)


def _is_unfinished(folder: Path) -> bool:
    """Whether an earlier start of such a command was at work in a folder, killed however early."""
    return (folder / REQUEST_FILE).is_file() or all(
        entry.name == LOCK_FILE or entry.match(f"{REQUEST_FILE}.*.tmp") for entry in folder.iterdir()
    )


def _is_current(out: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds what is requested. Raises IdentityError or PipelineError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    recorded = _recorded(out / REQUEST_FILE)
    if recorded is None:
        raise PipelineError(f"--out {out} is there already and no work of this command; give a new folder")
    return _require_same(out, recorded, request)


def _require_same(out: Path | str, recorded: dict[str, Any], request: dict[str, Any]) -> bool:
    if lines := differences(recorded, _plain(request)):
        raise IdentityError(
            f"{out} was created with different settings ({in_short(lines)}); "
            "choose another --out (make: OUT=) or restore them"
        )
    return True


def _recorded(path: Path) -> dict[str, Any] | None:
    """The request in a file, if there is one."""
    try:
        found = read_json(path, MOST_REQUEST_BYTES)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _begin(unfinished: Path, request: dict[str, Any]) -> None:
    """Record what is requested, or find it recorded; half-written files are removed."""
    path = unfinished / REQUEST_FILE
    if path.exists():
        recorded = _recorded(path)
        if recorded is None:
            raise PipelineError(f"{path} does not say which command was at work; remove {unfinished}")
        if lines := differences(recorded, _plain(request)):
            raise IdentityError(
                f"{unfinished} holds unfinished work of another command ({in_short(lines)}); "
                "remove it or restore its settings"
            )
    else:
        write_atomic(path, _written(request))
    for leftover in list(unfinished.rglob("*.tmp")):
        leftover.unlink()


def _written(request: dict[str, Any]) -> str:
    return json.dumps(_plain(request), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _plain(request: dict[str, Any]) -> dict[str, Any]:
    """A request as it comes back from JSON, with lists in place of tuples: only so does it equal a recorded one."""
    plain: dict[str, Any] = json.loads(canonical_json(request))
    return plain


@dataclass(frozen=True)
class _AllWritten:
    """What each unit has left behind, read anew each time: all together may be more than memory."""

    unfinished: Path
    units: int

    def __iter__(self) -> Iterator[Written]:
        return (Written.model_validate_json(_marker_path(self.unfinished, n).read_bytes()) for n in range(self.units))


def _write_all(work: Rewriting, unfinished: Path, workers: Workers) -> _AllWritten:
    """Do the units that are left; those of an earlier start are checked byte for byte."""
    sizes = work.sizes
    left = [unit for unit in range(len(sizes)) if not _is_written(unfinished, unit)]
    with ByteProgress(work.title, sum(sizes), sum(sizes) - sum(sizes[unit] for unit in left)) as progress:
        for unit, result in each(partial(_write_here, work, unfinished), left, workers):
            write_atomic(_marker_path(unfinished, unit), result.model_dump_json())
            progress.update(sizes[unit])
    return _AllWritten(unfinished, len(sizes))


# ---- On a store, where nothing can be renamed: units lie at their final keys; OUT is done when it says who made it.


UNFINISHED = ".unfinished"


def _rewrite_on_store(out: str, request: dict[str, Any], make: Callable[[], Rewriting], workers: Workers) -> bool:
    """As `rewrite`. Each process has a folder of its own; OUT/.unfinished has the request and markers, written once."""
    store, content = UrlStore(out), _written(request).encode()
    probe(store)
    with leased(store) as lease, scratch("rewrite") as unfinished:
        listed = Listing((key, entry.bytes) for key, entry in store.products())
        for key in (REQUEST_FILE, f"{UNFINISHED}/{REQUEST_FILE}"):
            if key in listed:
                _require_same(store.where, _stored_request(store, key), request)
        if REQUEST_FILE in listed:
            store.remove(store.list(f"{UNFINISHED}/"))  # a kill at the end leaves some
            return False
        if listed and f"{UNFINISHED}/{REQUEST_FILE}" not in listed:
            raise PipelineError(f"--out {store.where} is there already and no work of this command; give a new place")
        store.write_once(f"{UNFINISHED}/{REQUEST_FILE}", content)
        work = make()
        sizes, left = work.sizes, []
        for unit in range(len(sizes)):
            if (found := _unit_on_store(store, unit, listed)) is None:
                left.append(unit)
            else:
                write_atomic(_marker_path(unfinished, unit), found.model_dump_json())
        with ByteProgress(work.title, sum(sizes), sum(sizes) - sum(sizes[unit] for unit in left)) as progress:
            for unit, result in each(partial(_write_to_store, work, store, content), left, workers):
                lease.check()
                write_atomic(_marker_path(unfinished, unit), result.model_dump_json())
                progress.update(sizes[unit])
        work.finish(unfinished, _AllWritten(unfinished, len(sizes)))
        shutil.rmtree(unfinished / _MARKERS)
        lease.check()
        _require_request(store, content)
        common = sorted(unfinished.rglob("*"))
        publish_files(store, unfinished, [path for path in common if path.name not in MANIFESTS])
        publish_files(store, unfinished, [path for path in common if path.name in MANIFESTS])
        store.write_once(REQUEST_FILE, content)
        store.remove(store.list(f"{UNFINISHED}/"))
    return True


def _write_to_store(work: Rewriting, store: Store, content: bytes, unit: int) -> Written:
    """Write a unit into a folder of this process, upload it and read it back, its marker last."""
    with scratch("unit") as folder:
        written = _write(work, folder, unit)
        publish_files(store, folder, sorted(folder.rglob("*")))
    _require_request(store, content)
    store.write_once(f"{UNFINISHED}/{_MARKERS}/{unit}.json", written.model_dump_json().encode())
    return written


def _stored_request(store: Store, key: str) -> dict[str, Any]:
    try:
        found = json.loads(store.read(key))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PipelineError(f"{store.url(key)} does not say which command was at work; give a new --out")
    return found


def _require_request(store: Store, content: bytes) -> None:
    """Raise IdentityError when another command is at work in the store by now, or has removed this one."""
    key = f"{UNFINISHED}/{REQUEST_FILE}"
    with suppress(FileNotFoundError):
        if store.read(key) == content:
            return
    raise IdentityError(f"{store.url(key)} is not that of this command any more; give each one an --out of its own")


def _unit_on_store(store: Store, unit: int, listed: Listing) -> Written | None:
    """What a unit has left, if all its files are there: they were read back before its marker was written."""
    key = f"{UNFINISHED}/{_MARKERS}/{unit}.json"
    if key not in listed:
        return None
    with refused_as(PipelineError, f"{store.url(key)}: "):
        found = Written.model_validate_json(store.read(key))
    return found if all(path in listed for path in found.all_files()) else None


def _write(work: Rewriting, unfinished: Path, unit: int) -> Written:
    try:
        return work.write(unit, unfinished)
    except ValueError as error:  # rows that their shard should not have held: say so in one line
        raise DatasetError(str(error)) from error


def _write_here(work: Rewriting, unfinished: Path, unit: int) -> Written:
    """The same into the folder of the command, which another machine may not see."""
    if not (unfinished / REQUEST_FILE).is_file():
        raise PipelineError(
            f"node {socket.gethostname()} does not see {unfinished} of this command; give an --out that all nodes "
            "share, or one on a store"
        )
    return _write(work, unfinished, unit)


def _marker_path(unfinished: Path, unit: int) -> Path:
    return unfinished / _MARKERS / f"{unit}.json"


def _is_written(unfinished: Path, unit: int) -> bool:
    """Whether a unit is done and all its files are whole."""
    try:
        found = Written.model_validate_json(read_bounded(_marker_path(unfinished, unit), MOST_MARKER_BYTES))
    except (OSError, ValidationError):
        return False
    return all(
        (unfinished / path).is_file() and file_sha256(unfinished / path) == sha256
        for path, sha256 in found.all_files().items()
    )


def _commit(unfinished: Path, out: Path) -> None:
    """Give the finished folder its name; every file in it has been flushed when it was written."""
    shutil.rmtree(unfinished / _MARKERS, ignore_errors=True)
    (unfinished / LOCK_FILE).unlink()  # of the lock that this process holds: the result has no use for it
    sync(unfinished)
    os.rename(unfinished, out)
    sync(out.parent)
