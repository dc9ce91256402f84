"""What a teacher says of every byte of a dataset, computed once and kept beside it."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from pipeline.executors.units import Workers, each
from pipeline.rewriting.dataset_rows import ShardByShard, Side, sampled_shards, sides_at
from pipeline.rewriting.rewrite import Written, rewrite
from pipeline.settings import PipelineError, numerics_differences
from shared.distillation.byte_targets import TokenTree
from shared.distillation.stored_targets import TargetFormat, stored_targets
from shared.distillation.targets_folder import DTYPES, ShardTargets, TargetsIdentity, tensors_of
from shared.distillation.targets_writer import TargetsWriter, commit_targets
from shared.distillation.teacher import Teacher
from shared.errors import IdentityError
from shared.interop.token_teacher import open_teacher
from shared.io.display.quantities import counted, quantity
from shared.layers.blocks import Precision
from shared.shards.content import with_last
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.stack_settings import LONGEST_WINDOW

DRY_RUN_BYTES = 1_000_000
"""Of text that a dry run cuts into tokens, in whole shards."""


class TeacherOptions(TargetFormat):
    """The teacher, how it is run, and what is kept of what it says."""

    teacher: Path
    tokenizer: Path | None = None
    """None: that of the teacher's folder."""
    context: int | None = Field(default=None, ge=2, le=LONGEST_WINDOW)
    """Tokens of a window; None: what the teacher takes best."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "float32"
    """Of the teacher's weights and products."""
    threads: int = Field(default=1, gt=0)
    """Of each worker."""

    @property
    def form(self) -> TargetFormat:
        """What is kept."""
        return TargetFormat(top=self.top, dtype=self.dtype)


def make_targets(path: Path, out: Path | str, options: TeacherOptions, workers: Workers) -> bool:
    """Make the targets of the dataset at a path, or those in its train/ and validation/; False if ``out`` holds them.

    Raises PipelineError, DatasetError, ModelFileError, IdentityError.
    """
    sides = _plain_sides(path)
    # Asked of a worker: the machine of this process may be of another kind, and have no room for the teacher.
    ((_, identity),) = each(partial(_identity, options), [0], workers)
    if workers != 1:  # each has a teacher of its own; this process needs none
        _opened.cache_clear()
    request = {
        "command": "targets",
        "identity": identity.model_dump(mode="json"),
        "sources": {side.folder: side.dataset.fingerprint for side in sides},
    }
    if options.precision != "float32":  # what differs is then called by its option
        request = {"precision": options.precision} | request
    return rewrite(out, request, lambda: MakeTargets(tuple(sides), options, identity), workers)


def dry_run(path: Path, options: TeacherOptions) -> Iterator[str]:
    """What it would write and compute, as lines; the number of tokens is that of some shards. Nothing is written.

    Raises as `make_targets` does, but for an ``out`` of something else.
    """
    sides = _plain_sides(path)
    teacher, _ = _opened(options)
    for side in sides:
        dataset = side.dataset
        shards = sampled_shards(dataset, DRY_RUN_BYTES)
        lengths = [n for shard in shards for n in teacher.window_lengths(document_texts(dataset, shard))]
        text = sum(dataset.shard(shard).totals.bytes for shard in shards)
        share = dataset.totals.bytes / text if text else 1.0
        targets, documents = dataset.totals.tokens, dataset.totals.documents
        size = sum(
            DTYPES[kind].itemsize * torch.Size(shape).numel()
            for kind, shape in tensors_of(options.form, targets, documents).values()
        )
        yield (
            f"{dataset.folder}: {counted(dataset.shard_count, 'shard')}, {quantity(dataset.totals.bytes)}B of text; "
            f"{targets:,} targets, {quantity(size)}B to be written, {quantity(share * teacher.flops(lengths))}FLOPs of "
            f"the teacher in about {quantity(share * len(lengths)).strip()} windows"
        )
    given = teacher.identity
    yield f"context {given.context} tokens, {given.vocabulary:,} ids, {options.precision}; nothing was written"


@dataclass(frozen=True)
class MakeTargets(ShardByShard[Side]):
    """A file of targets for each shard of the datasets."""

    options: TeacherOptions
    identity: TargetsIdentity
    title = "Asking the teacher"

    def write(self, unit: int, out: Path) -> Written:
        side, shard = self.units[unit]
        teacher, tree = self._teacher()
        dataset = Dataset(side.dataset.folder, side.dataset.manifest)  # remembers nothing of other shards
        with TargetsWriter(out / side.folder, dataset, shard, self.options.form) as writer:
            for said in teacher.predictions(document_texts(dataset, shard)):
                found = tree.targets(said.logits, said.ids)
                writer.add(stored_targets(found, teacher.special_ids, self.options.form))
                writer.flops += said.flops
        entry = writer.entry
        return Written(
            files={str(Path(side.folder) / entry.name): entry.sha256}, figures={side.folder: entry.model_dump()}
        )

    def finish(self, out: Path, written: Iterable[Written]) -> None:
        for side in self.sides:
            found = (unit.figures[side.folder] for unit in written if side.folder in unit.figures)
            entries = map(ShardTargets.model_validate, found)
            commit_targets(out / side.folder, self.identity, entries, side.dataset)

    def _teacher(self) -> tuple[Teacher, TokenTree]:
        """The teacher in this process. Raises IdentityError when it is not what it was when the work began."""
        teacher, tree = _opened(self.options)
        assert self.identity.numerics is not None
        if teacher.identity != self.identity.teacher:
            raise IdentityError(f"{self.options.teacher} is another teacher than when this command began")
        if different := numerics_differences(self.identity.numerics, teacher.numerics):
            raise IdentityError(f"worker numerics on {socket.gethostname()} differ from this command's ({different})")
        return teacher, tree


@lru_cache(maxsize=1)
def _opened(options: TeacherOptions) -> tuple[Teacher, TokenTree]:
    """The teacher and the bytes of its tokens, once for each process."""
    torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise PipelineError(f"--device cuda: on {socket.gethostname()} PyTorch finds no GPU; use --device cpu")
    teacher = open_teacher(options.teacher, options.tokenizer, options.context, device, options.precision)
    return teacher, TokenTree(teacher.tokens, teacher.device)


def _identity(options: TeacherOptions, _: int) -> TargetsIdentity:
    """What the targets will be made by, as a worker finds it."""
    teacher, _tree = _opened(options)
    return TargetsIdentity(teacher=teacher.identity, form=options.form, numerics=teacher.numerics)


def _plain_sides(path: Path) -> list[Side]:
    """The datasets at a path. Raises PipelineError for one with special ids, of which a teacher knows nothing."""
    sides = sides_at(path)
    for side in sides:
        if side.dataset.specials:
            raise PipelineError(
                f"{side.dataset.folder} has special ids between its bytes; a teacher reads plain text only"
            )
    return sides


def document_texts(dataset: Dataset, shard: int) -> Iterator[Iterator[bytes]]:
    """The text of each document of a shard, in parts, which must be used up before the next document."""
    batches = (dataset.batch_rows(shard, batch, False) for batch in range(dataset.batch_count(shard)))
    rows = with_last(row for batch in batches for row in batch)
    for first, last in rows:
        yield _texts(first, last, rows)


def _texts(row: Row, last: bool, following: Iterator[tuple[Row, bool]]) -> Iterator[bytes]:
    yield row.text
    while not last:
        row, last = next(following)
        yield row.text
