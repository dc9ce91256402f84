"""Other patch boundaries from the stored entropies, without a model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.calibration.patching_file import load_patching
from pipeline.calibration.report import CLOSE
from pipeline.calibration.threshold_search import Thetas, UnreachableTarget, nearest, thetas_of
from pipeline.executors.units import Workers, each
from pipeline.options import PatchingOptions
from pipeline.rewriting.dataset_rows import (
    ShardByShard,
    Side,
    require_alike,
    require_kept,
    sampled_shards,
    shard_documents,
    shard_rows,
    sides_at,
    stem,
)
from pipeline.rewriting.rewrite import Written, rewrite, save_dataset
from pipeline.scoring.cut import Document, Piece, cut
from pipeline.settings import PipelineError
from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import load_making
from shared.io.display.progress import ByteProgress
from shared.io.display.quantities import counted, quantity
from shared.io.display.terminal import show
from shared.patching import PatchingSettings
from shared.patching.chunks import ChunkedLengths
from shared.patching.settings import ENTROPY_RULES
from shared.settings import refused_as
from shared.shards.dataset import Dataset
from shared.shards.manifest import DatasetIdentity
from shared.shards.writer import ShardWriter

DRY_RUN_BYTES = 8_000_000
"""Of text that a dry run cuts, in whole shards."""
KEPT = ("content_hash", "entropy_histogram")
"""Figures of a shard that do not depend on its boundaries."""


class Change(PatchingOptions):
    """What is to be other than the dataset has it; None: stays."""

    target: float | None = None
    """Instead of theta: mean patch size of the train split, in bytes."""
    tokenizer: Path | None = None
    """Folder, of the rule bpe."""


def recut(path: Path, out: Path | str, change: Change, workers: Workers = 1) -> bool:
    """Cut the dataset at a path, or those in its train/ and validation/, anew; False if ``out`` holds that already.

    Raises PipelineError for a change that does not fit what is stored, IdentityError, DatasetError.
    """
    sides, draft = _checked(path, change)
    request = {
        "command": "recut",
        "patching": draft.model_dump(exclude={"theta"} if change.target is not None else None),
        "target": change.target,
        "sources": {side.folder: side.dataset.fingerprint for side in sides},
    }

    def make() -> Recut:
        patching = draft
        if change.target is not None:
            patching = with_target(_train(sides), draft, change.target, workers)
        return Recut(tuple(sides), patching, change.tokenizer)

    return rewrite(out, request, make, workers)


def dry_run(path: Path, change: Change) -> Iterator[str]:
    """What recut would do, as lines: the sizes of patches on some shards. Nothing is written, whatever the size.

    Raises as recut does, but for an ``out`` of something else.
    """
    sides, patching = _checked(path, change)
    for side in sides:
        dataset = side.dataset
        shards = sampled_shards(dataset, DRY_RUN_BYTES)
        if change.target is not None and dataset is _train(sides):
            patching = with_target(dataset, patching, change.target, 1, shards)
        text, patches = sum(dataset.shard(shard).totals.bytes for shard in shards), 0
        if patching.patched and patching.rule != "bpe":
            patches = sum(int(patch_counts(dataset, [patching], shard)[0]) for shard in shards)
        size = f", {text / patches:.3f} bytes a patch in {quantity(text)}B of them" if patches else ""
        now = f" (now {dataset.totals.mean_patch_size:.3f})" if dataset.totals.patches else ""
        yield (
            f"{dataset.folder}: {counted(dataset.shard_count, 'shard')}, {quantity(dataset.totals.bytes)}B of text"
            f"{size}{now}"
        )
    rule = "".join(f", {key} {value}" for key, value in patching.described.items())
    yield f"rule {patching.rule}{rule}; nothing was written"


def _checked(path: Path, change: Change) -> tuple[list[Side], PatchingSettings]:
    """The datasets at a path and their new patching; with a target, theta is still to be found."""
    sides = sides_at(path)
    require_alike([side.dataset for side in sides], "split", "source")
    draft = wanted_patching(change, sides[0].dataset.manifest.identity)
    for side in sides:
        require_recuttable(side.dataset, draft)
    return sides, draft


def wanted_patching(change: Change, identity: DatasetIdentity) -> PatchingSettings:
    """The patching that is asked of a dataset; with a target, theta is still to be found.

    Raises PipelineError for what does not fit.
    """
    if (change.rule == "bpe") != (change.tokenizer is not None):
        raise PipelineError("--rule bpe and --tokenizer FOLDER go together")
    given = change.given
    if change.patching is not None:
        patching = _calibrated(change.patching, identity)
    elif not given:
        raise PipelineError("recut needs something new: --theta, --target, --rule, a length or --patching")
    elif {"target", "theta"} <= given.keys():
        raise PipelineError("--target finds the threshold that --theta gives; leave one of them out")
    else:
        patching = _changed(identity.patching, given)
    if identity.sidecar != "uint8" or patching.rule != "entropy":
        return patching
    snapped = patching.on_grid()
    if change.target is None and snapped.theta != patching.theta:
        show(f"theta {patching.theta} is moved to {snapped.theta:.6f}, the nearest that the uint8 sidecar can replay")
    return snapped


def require_recuttable(dataset: Dataset, patching: PatchingSettings) -> None:
    """Raises PipelineError unless what the dataset stores decides exactly as the entropies themselves would, and the
    rule can cut what it holds.
    """
    if patching.rule == "bpe" and dataset.manifest.identity.specials:
        raise PipelineError(f"{dataset.folder} has special ids between its bytes; the rule 'bpe' cuts plain text only")
    if dataset.manifest.identity.decides(patching):
        return
    if dataset.manifest.identity.sidecar == "none":
        raise PipelineError(
            f"{dataset.folder} keeps no entropies, which the rule {patching.rule!r} needs; "
            "preprocess again with --entropy-model and --sidecar uint8"
        )
    raise PipelineError(
        f"{dataset.folder} keeps entropies as uint8: too coarse for rises, so the rule {patching.rule!r} would cut "
        "elsewhere than with the model; preprocess again with --sidecar float32"
    )


@dataclass(frozen=True)
class Recut(ShardByShard[Side]):
    """Each shard of the datasets with other boundaries."""

    patching: PatchingSettings
    tokenizer: Path | None = None
    """Folder, for the rule bpe."""
    title = "Recutting"

    def write(self, unit: int, out: Path) -> Written:
        side, shard = self.units[unit]
        identity = side.dataset.manifest.identity
        encoder = None
        if self.tokenizer is not None:
            assert self.patching.tokenizer is not None, "rule bpe records its tokenizer"
            encoder = _encoder(self.tokenizer, self.patching.tokenizer.sha256)
        name = stem(side.dataset.shard(shard))
        with ShardWriter(out / side.folder, name, identity.format, identity.sidecar) as shard_file:
            for _, rows in cut(_pieces(side.dataset, shard), self.patching, encoder=encoder):
                shard_file.add(rows)
        written = shard_file.entry
        require_kept(side.dataset, shard, {key: getattr(written, key) for key in KEPT})
        return Written(shards={side.folder: [written]})

    def finish(self, out: Path, written: Iterable[Written]) -> None:
        for side in self.sides:
            identity = side.dataset.manifest.identity
            scored = identity.sidecar != "none" or self.patching.needs_entropy
            changed = {"patching": self.patching, "entropy_model": identity.entropy_model if scored else None}
            entries = (entry for unit in written for entry in unit.shards.get(side.folder, []))
            made = identity.model_copy(update=changed)
            save_dataset(out / side.folder, made, entries, side.dataset, self.tokenizer)


@lru_cache(maxsize=1)
def _encoder(folder: Path, sha256: str) -> SubwordEncoder:
    """The tokenizer with this sha256, read once for all shards: one of 128,000 tokens takes seconds."""
    return SubwordEncoder(folder)


def _pieces(dataset: Dataset, shard: int) -> Iterator[Piece]:
    """The documents of a shard with the entropies that it keeps, as they were when they were first cut."""
    for record, rows in shard_documents(dataset, shard):
        document = Document(record)
        for row, last in rows:
            document.hold(row.text)
            yield Piece(document, row.size, row.entropies, last)


def with_target(
    dataset: Dataset, draft: PatchingSettings, target: float, workers: Workers, shards: Sequence[int] | None = None
) -> PatchingSettings:
    """The threshold for a mean patch size (bytes) over the whole dataset, counted exactly in bounded memory.

    ``shards``: only over these. Raises PipelineError when no threshold gives it.
    """
    shards = range(dataset.shard_count) if shards is None else shards
    if not (total := sum(dataset.shard(shard).totals.bytes for shard in shards)):
        raise PipelineError(f"{dataset.folder} has no text to find a threshold on")
    thetas = thetas_of(draft.rule, draft.grid)

    def sizes(numbers: Sequence[int]) -> list[float]:
        patchings = [draft.with_theta(thetas[number], draft.grid) for number in numbers]
        counts = np.zeros(len(numbers), np.int64)
        with ByteProgress("Counting patches", total) as progress:
            for shard, found in each(partial(patch_counts, dataset, patchings), shards, workers):
                counts += found
                progress.update(dataset.shard(shard).totals.bytes)
        means: list[float] = (total / counts).tolist()
        return means

    try:
        guess = _guess(dataset, thetas, target)
        number, realised = nearest(sizes, thetas.count, guess, thetas.cell, target)
    except UnreachableTarget as error:
        raise PipelineError(f"--target: {error}") from None
    show(f"theta {thetas[number]:.6f} nats: {realised:.3f} bytes a patch in {dataset.folder}, {target} wanted")
    if thetas.grid and abs(realised / target - 1) > CLOSE:
        show("  that is the nearest on the grid of uint8; shards of preprocess --sidecar float32 allow any threshold")
    return draft.with_theta(thetas[number], draft.grid)


def patch_counts(dataset: Dataset, patchings: Sequence[PatchingSettings], shard: int) -> np.ndarray:
    """int64 [patchings]: patches other than BOS of one shard under each, with the threshold of the row's subset."""
    counts = np.zeros(len(patchings), np.int64)
    lengths: list[ChunkedLengths] = []
    for row, last in shard_rows(dataset, shard):
        if row.part == 0:
            lengths = [ChunkedLengths(patching.for_subset(row.subset)) for patching in patchings]
            counts -= 1
        counts += [len(document.add(row.tokens(last), row.entropies, last)) for document in lengths]
    return counts


def _guess(dataset: Dataset, thetas: Thetas, target: float) -> int:
    """The number of a threshold that gives about the wanted size, were there neither length limits nor rises."""
    histogram = np.array(dataset.manifest.entropy_histogram or [0] * 256, np.int64)
    grid = thetas_of("entropy", True)
    above = histogram[::-1].cumsum()[::-1][1:]  # entropies above each value of the grid
    return thetas.nearest(grid[int(np.argmin(np.abs(above - dataset.manifest.totals.bytes / target)))])


def _train(sides: Sequence[Side]) -> Dataset:
    """The dataset that thresholds are found on."""
    for side in sides:
        if side.dataset.manifest.identity.split == "train":
            return side.dataset
    raise PipelineError(f"{sides[0].dataset.folder} is a validation split; --target is found on train")


def _calibrated(path: Path, identity: DatasetIdentity) -> PatchingSettings:
    file = load_patching(path)
    recorded = identity.entropy_model.sha256 if identity.entropy_model is not None else "none"
    if file.identity.entropy_model != recorded:
        raise PipelineError(
            f"--patching {path} was calibrated with the entropy model {file.identity.entropy_model[:12]}, "
            f"the dataset was made with {recorded[:12]}"
        )
    return file.patching


def _changed(own: PatchingSettings, given: dict[str, Any]) -> PatchingSettings:
    """A dataset's own patching with what is given in its place; with a target, theta is to be found.

    Raises DatasetError when there is no tokenizer in the folder of one.
    """
    find = given.pop("target", None) is not None
    if "tokenizer" in given:
        making = load_making(given["tokenizer"])
        given = {"max_length": making.longest} | given | {"tokenizer": making.identity}
    rule = given.get("rule") or (own.rule if own.rule in ENTROPY_RULES or not (find or "theta" in given) else "entropy")
    values = own.model_dump(include={"min_length", "max_length", "whole_characters"})
    if rule == "none":
        values.pop("whole_characters", None)
    if "bpe" in (rule, own.rule):  # lengths of tokens are no limits of other patches
        values = {}
    elif rule == own.rule:
        values = own.model_dump() | {"grid": False}
    if find:
        if rule not in ENTROPY_RULES:
            raise PipelineError(f"--target is for the rules {', '.join(ENTROPY_RULES)}, not {rule!r}")
        values |= {"theta": 0.0}
    if find or "theta" in given:
        values |= {"thetas": {}}
    with refused_as(PipelineError):
        return PatchingSettings.model_validate(values | given | {"rule": rule})
