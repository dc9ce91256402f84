"""A count from the look at the input to the table: plan, resume, count, merge, keep, blend, write.

OUT/config.json  model.safetensors  counted.json  and, while it is made, OUT/counting/
"""

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.compute as pc

from pipeline.counting.count_split import COUNTS_FOLDER
from pipeline.counting.made_by import Counted, Making, load_counts_making, require_equal
from pipeline.counting.merge import MERGED, RANGES_WANTED, TOGETHER
from pipeline.counting.settings import DEFAULT_MEMORY, Counting, orders_of
from pipeline.counting.steps import StepFailed, Steps
from pipeline.executors import make_executor
from pipeline.files import KINDS, Files
from pipeline.plan import Plan
from pipeline.run.driver import make_plan, specials_of
from pipeline.run.run_folder import load_run, remove_leftovers, require_same
from pipeline.settings import ExecutorSettings, Job, OutputSettings, ReadSettings
from pipeline.splits.marker import LEDGERS
from pipeline.splits.place import Place, opened
from pipeline.splits.run_file import RunFile
from shared.counts.files import MADE_BY_FILE, write_counts
from shared.counts.settings import CountingSettings
from shared.counts.table import place_contexts
from shared.io.display.log import LOG
from shared.io.files.atomic import sync
from shared.io.files.digests import canonical_json
from shared.io.files.locks import LOCK_FILE
from shared.io.files.outputs import check_folder
from shared.model_folder.identity import CONFIG_FILE, WEIGHTS_FILE, model_sha256
from shared.model_settings import CountsSettings
from shared.patching.settings import PatchingSettings
from shared.shards.content import add_content_hashes
from shared.shards.manifest import load_manifest

WORK_FOLDER = "counting"
PLAIN_SYMBOLS: Final = 257
"""That may follow a context: bytes and EOS. With special ids that the data names there is one more, for all of them."""


@dataclass
class Report:
    """What a count came to."""

    making: Making | None = None
    """None where it failed."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Name and error of each split that failed."""
    made: bool = False
    """False if the table was there already."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step of this start."""
    disk: int = 0
    """Bytes of temporary files, which are all there when the table is written."""
    size: int = 0
    """Bytes of the table."""


def count(
    inputs: Sequence[Path | str],
    out: Path,
    wanted: CountingSettings,
    reading: ReadSettings,
    executor: ExecutorSettings,
    memory: int = DEFAULT_MEMORY,
) -> Report:
    """Make the table of the train split of some input, or finish one that was interrupted.

    ``memory``: MiB of each process, about.
    Raises PipelineError, DatasetError, ModelFileError, OutputError, or IdentityError for another table in ``out``.
    """
    check_folder(out, _is_ours)
    job = Job(out=out / WORK_FOLDER, reading=reading, output=OutputSettings(patching=PatchingSettings(rule="none")))
    plan = make_plan(inputs, reading, out)
    identity, stamps = _identity(plan, wanted, reading), _stamps(plan.files)
    symbols = PLAIN_SYMBOLS + bool(specials_of(plan, reading))
    if (out / MADE_BY_FILE).exists():
        making = load_counts_making(out)
        require_equal(making, identity, stamps, out)
        shutil.rmtree(job.out, ignore_errors=True)  # of a start that was killed at its very end
        return Report(making, size=(out / WEIGHTS_FILE).stat().st_size)
    counting = Counting(**wanted.model_dump(), folder=job.out, symbols=symbols, memory=memory)
    run = RunFile(identity.model_dump(mode="json") | {"inputs": plan.inputs_identity()}, plan)
    for problem in plan.idle:
        LOG.warning("%s", problem)
    with opened(job) as place:
        _resume(place, run, out)
        report = Report(made=True)
        with make_executor(executor, place.job, run.plan, RANGES_WANTED) as workers:
            workers.numerics()
            steps = Steps(place, run, counting, workers, report.seconds)
            try:
                markers = steps.count()
                kept = steps.merge(markers)
                found = steps.blend(kept)
            except StepFailed as failed:
                report.failures = failed.failures
                return report
        orders = _write_table(counting, found, report, out)
        report.size = (out / WEIGHTS_FILE).stat().st_size
        report.disk = sum(path.stat().st_size for path in job.out.rglob("*") if path.is_file())
        report.making = Making(
            identity=identity,
            stamps=stamps,
            trained_on=_fingerprints(plan.files),
            content=add_content_hashes(marker.content for marker in markers),
            sha256=model_sha256(out),
            documents=sum(marker.documents for marker in markers),
            bytes=sum(marker.bytes for marker in markers),
            pieces=sum(marker.pieces for marker in markers),
            dead_letters=sum(marker.counts.dead for marker in markers),
            contexts_by_order=orders,
            distinct=kept.distinct,
        )
        _move_ledgers(job.out, out)
        report.making.save(out)
        shutil.rmtree(job.out)
    return report


def _is_ours(out: Path) -> bool:
    return (out / WORK_FOLDER).is_dir() or (out / MADE_BY_FILE).is_file()


def _identity(plan: Plan, wanted: CountingSettings, reading: ReadSettings) -> Counted:
    inputs = plan.inputs_identity()
    del inputs["split_bytes"]  # how the work was shared is in no count
    return Counted(
        **wanted.model_dump(), inputs=inputs, reading=reading.model_dump(mode="json", exclude={"split_bytes"})
    )


def _stamps(files: Files) -> str:
    """Of the files that no manifest vouches for: equal while nobody has written to them."""
    state = hashlib.sha256()
    others = files.table.filter(pc.not_equal(files.table["kind"], KINDS.index("shard")))
    for batch in others.select(["mtime_ns", "changed_ns", "version"]).to_batches(max_chunksize=2**13):
        state.update(canonical_json(batch.to_pydict()).encode())
    return state.hexdigest()


def _fingerprints(files: Files) -> dict[str, str]:
    """Of the train splits among our own datasets that were read."""
    manifests = ((folder, load_manifest(folder)) for folder in files.folders_of_shards())
    return {str(folder): found.fingerprint for folder, found in manifests if found.identity.split == "train"}


def _resume(place: Place, run: RunFile, out: Path) -> None:
    """Take up what an earlier start has left, if the input is still the same; raises IdentityError for another."""
    folder = place.job.out
    recorded = load_run(folder)
    if recorded is not None:
        require_same(recorded, run, str(out))
        if run.plan.files.touched_since(recorded.plan.files).any():
            LOG.warning("files of the input were written to since %s was begun: it begins again", out)
            for entry in folder.iterdir():
                if entry.name != LOCK_FILE:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    place.keep(run)
    remove_leftovers(folder)
    for later in (COUNTS_FOLDER, TOGETHER, MERGED):
        for path in (folder / later).rglob("*.tmp"):
            path.unlink(missing_ok=True)


def _write_table(counting: Counting, found: np.ndarray, report: Report, out: Path) -> list[int]:
    """Write the model of what was found; returns the contexts of each order."""
    began = time.monotonic()
    keys, entropies = found["context"], found["entropy"]
    assert keys[0] == 0, "the empty context comes first, and is always kept"
    _write_model(counting, place_contexts(keys[1:], entropies[1:], entropies[0]), out)
    report.seconds["place"] = time.monotonic() - began
    return [int(number) for number in np.bincount(orders_of(keys, counting.order), minlength=counting.order + 1)]


def _write_model(counting: Counting, tensors: dict[str, np.ndarray], out: Path) -> None:
    """Both files of the model, each whole or not at all."""
    settings = CountsSettings(
        order=counting.order,
        symbols=258 if counting.symbols > PLAIN_SYMBOLS else PLAIN_SYMBOLS,
        newline_reset=counting.newline_reset,
    )
    folder = counting.folder / "model"
    folder.mkdir(exist_ok=True)
    write_counts(folder, settings, tensors)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        sync(folder / name)
        (folder / name).replace(out / name)
    sync(out)


def _move_ledgers(folder: Path, out: Path) -> None:
    """The lists of what was not counted stay beside the table."""
    for name in LEDGERS:
        if any((folder / name).glob("*.jsonl")):
            shutil.rmtree(out / name, ignore_errors=True)
            (folder / name).replace(out / name)
