"""Thresholds for a mean patch size: chosen on a sample of the train split, and checked on held-out documents."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.calibration.parallel_text import Pairs, figures, parallel_keys, ratio, without_pairs
from pipeline.calibration.patching_file import (
    TENTH,
    CalibrationIdentity,
    EntropyRule,
    HeldOut,
    ParityFigures,
    PatchingFile,
    load_patching,
)
from pipeline.calibration.sampling import HELD_OUT, Sample, draw, draw_pairs, held_out_tenth
from pipeline.calibration.threshold import Goal, find_thetas, patches_of
from pipeline.calibration.threshold_search import UnreachableTarget
from pipeline.scoring.entropies import Documents, Entropies, EntropySource, documents_of
from pipeline.scoring.options import entropy_model_sha256, scoring_of
from pipeline.settings import PipelineError, ScoringSettings
from shared.errors import ConfigError
from shared.io.display.terminal import show
from shared.io.files.digests import in_short
from shared.io.files.outputs import Output
from shared.patching import PatchingSettings
from shared.patching.sizes import PatchSize, PatchSizes, load_patch_sizes
from shared.settings import Settings, refused_as
from shared.shards.dataset import Dataset
from shared.shards.manifest import SidecarType
from shared.shards.open import dataset_folders, find_datasets, open_dataset

SCORED_SAMPLE = 1_000_000
"""Bytes of text that are scored unless told otherwise."""
LONGEST_HELD_OUT = 10_000_000
"""Bytes of held-out text at most, of each subset where subsets are sampled."""
SHORTEST_HELD_OUT = 250_000
"""Bytes at least, where there are as many: a few documents say nothing of the others."""


class Wanted(Settings):
    """What thresholds are asked for."""

    target: float | None = None
    """Mean patch size, in bytes."""
    sizes: tuple[float, ...] = ()
    """Instead: several, for a table of thresholds."""
    rule: EntropyRule = "entropy"
    theta_rise: float | None = None
    """Nats, for entropy_rise: taken as it is."""
    min_length: int = 1
    max_length: int = 512
    whole_characters: bool = False
    """No patch starts inside a character of UTF-8."""
    per_subset: bool = False
    """A threshold for each subset besides the one for all bytes."""
    parity: str | None = None
    """What documents that say the same in other subsets have in common."""
    parity_to: str | None = None
    """The subset that the others follow."""
    sample_bytes: int | None = None
    """Text to count on, 0 for all of it; None: SCORED_SAMPLE where the model must run, else all."""
    seed: int = 0
    sidecar: SidecarType = "uint8"
    """What `preprocess` will keep: for uint8 the threshold on entropy lies on its grid."""


@dataclass(frozen=True)
class _Work:
    """What thresholds are found on, and with."""

    dataset: Dataset
    validation: Dataset | None
    source: EntropySource
    draft: PatchingSettings
    """Everything but theta."""
    identity: CalibrationIdentity


def calibrate(
    path: Path, entropy_model: Path | None, wanted: Wanted, scoring: ScoringSettings, out: Output
) -> tuple[PatchingFile, Sample | None]:
    """Thresholds for the train split at a path, in the file ``out``.

    Returns what the file holds, and the sample that they were found on; None if the file was current.
    Raises PipelineError, DatasetError or ModelFileError.
    """
    work = _work(path, entropy_model, wanted, scoring, out)
    identity, source, draft = work.identity, work.source, work.draft
    _check_parity(wanted, work.dataset)
    if (current := _current(out.path, identity)) is not None:
        return current, None
    train, held_out = _samples(identity, work.dataset, work.validation)
    counted = source.entropies(train.documents, draft)
    patching, before = _calibrated(draft, identity, train, counted)
    patches = patches_of(counted, patching)
    checked = None if held_out is None else patches_of(source.entropies(held_out.documents, draft), patching)
    result = PatchingFile(
        patching=patching,
        identity=identity,
        numerics=source.numerics,
        mean_patch_size=_mean(train.documents, patches, train.whole),
        subsets=_means(train.documents, patches),
        held_out=None if held_out is None or checked is None else _held_out(held_out, checked),
        parity=_parity(identity, train, before, patches, held_out, checked),
    )
    result.save(out)
    return result, train


def calibrate_sizes(
    path: Path, entropy_model: Path | None, wanted: Wanted, scoring: ScoringSettings, out: Output
) -> tuple[PatchSizes, Sample | None]:
    """The same for several sizes, as a table for a run whose patch size changes."""
    if wanted.parity is not None or wanted.parity_to is not None:
        raise PipelineError("--sizes is for mean patch sizes in bytes; leave out --parity and --parity-to")
    if any(before >= after for before, after in pairwise(wanted.sizes)):
        raise PipelineError(f"--sizes must ascend, got {','.join(f'{size:g}' for size in wanted.sizes)}")
    work = _work(path, entropy_model, wanted, scoring, out)
    asked = ",".join(f"{size:g}" for size in wanted.sizes)
    made_by = work.identity.model_dump(exclude={"target"}) | {"sizes": asked}
    if (current := _current_sizes(out.path, made_by)) is not None:
        return current, None
    train, held_out = _samples(work.identity, work.dataset, work.validation)
    counted = work.source.entropies(train.documents, work.draft)
    checked = None if held_out is None else work.source.entropies(held_out.documents, work.draft)
    goals = [Goal(numbers, size) for size in wanted.sizes for numbers in (train.whole, *train.subsets.values())]
    found = iter(find_thetas(counted, work.draft, goals))
    entries = []
    for size in wanted.sizes:
        theta, thetas = next(found), {name: next(found) for name in train.subsets}
        if isinstance(theta, UnreachableTarget):
            raise PipelineError(f"--sizes: {theta}")
        patching = _settled(work.draft, theta, _reached(thetas))
        realised = _mean(train.documents, patches_of(counted, patching), train.whole)
        others = None
        if held_out is not None and checked is not None:
            others = _mean(held_out.documents, patches_of(checked, patching), held_out.whole)
        entries.append(PatchSize(size=size, mean_patch_size=realised, held_out=others, patching=patching))
    result = PatchSizes(patch_sizes=tuple(entries), entropy_model=work.identity.entropy_model, made_by=made_by)
    out.write(result.model_dump_json(indent=1) + "\n")
    return result, train


def _work(path: Path, entropy_model: Path | None, wanted: Wanted, scoring: ScoringSettings, out: Output) -> _Work:
    """Everything opened, and nothing scored yet. Raises PipelineError, DatasetError or ModelFileError."""
    dataset = _train_dataset(path)
    validation = _validation_beside(dataset)
    with refused_as(PipelineError):
        sha256 = entropy_model_sha256(entropy_model, "calibrate")
        assert entropy_model is not None, "it has a sha256"
        scored = scoring_of(entropy_model, scoring) or ScoringSettings()  # a table has the same whatever was asked for
        source = EntropySource(entropy_model, sha256, scored, out.path.absolute().parent)
        draft = PatchingSettings(
            **wanted.model_dump(include={"rule", "theta_rise", "min_length", "max_length", "whole_characters"}),
            **_as_stored(wanted, dataset.manifest.identity.patching),
            theta=0.0,
            grid=wanted.sidecar == "uint8" and wanted.rule != "monotonic",
        )
        kept = source.is_kept(dataset.manifest.identity, draft)
        identity = CalibrationIdentity(
            entropy_model=sha256,
            dataset=dataset.fingerprint,
            entropies="stored" if kept else "scored",
            held_out=TENTH if validation is None else validation.fingerprint,
            sample_bytes=(0 if kept else SCORED_SAMPLE) if wanted.sample_bytes is None else wanted.sample_bytes,
            target=wanted.target if wanted.target is not None else wanted.sizes[0],
            **wanted.model_dump(exclude={"sample_bytes", "target", "sizes"}),
            **scored.model_dump(exclude={"device"}),
        )
    return _Work(dataset, validation, source, draft, identity)


def _as_stored(wanted: Wanted, stored: PatchingSettings) -> dict[str, Any]:
    """What no option says, of a table for data that is cut by the same rule: a run's phases differ in thresholds alone.

    Data has it that was cut as an imported model cuts.
    """
    alike = wanted.sizes and wanted.rule == stored.rule
    return stored.model_dump(include={"entropy_dtype", "reference_starts"}) if alike else {}


def _check_parity(wanted: Wanted, dataset: Dataset) -> None:
    """Raise PipelineError for options that do not fit."""
    if (wanted.parity is None) != (wanted.parity_to is None):
        raise PipelineError("--parity and --parity-to go together: which documents, and the subset that others follow")
    if wanted.parity is not None:
        if wanted.per_subset:
            raise PipelineError("--parity chooses a threshold for each subset; leave out --per-subset")
        if wanted.parity_to not in dataset.subset_names:
            raise PipelineError(
                f"--parity-to {wanted.parity_to!r} is not a subset of {dataset.folder}; it has "
                f"{in_short(dataset.subset_names, ', ')}"
            )


def _samples(
    identity: CalibrationIdentity, dataset: Dataset, validation: Dataset | None
) -> tuple[Sample, Sample | None]:
    """What thresholds are chosen on, and what they are checked on. Raises PipelineError when there is no text."""
    documents = documents_of(dataset)
    if not len(documents):
        raise PipelineError(f"{dataset.folder} has no text to calibrate on")
    keys = None if identity.parity is None else parallel_keys(documents, identity.parity)
    if validation is not None:
        others = documents_of(validation)
        other_keys = None if identity.parity is None else parallel_keys(others, identity.parity)
    else:
        held = held_out_tenth(documents, keys, identity.seed)
        others, other_keys = documents.take(np.flatnonzero(held)), None if keys is None else keys[held]
        documents, keys = documents.take(np.flatnonzero(~held)), None if keys is None else keys[~held]
    train = _sampled(identity, documents, keys, identity.sample_bytes)
    if keys is not None and not train.pairs:
        assert identity.parity is not None
        assert identity.parity_to is not None
        raise without_pairs(identity.parity, identity.parity_to, dataset.folder, keys)
    limit = held_out_bytes(identity.sample_bytes)
    return train, _sampled(identity, others, other_keys, limit) if len(others) else None


def held_out_bytes(sample_bytes: int) -> int:
    """Of how many bytes a choice on ``sample_bytes`` (0: all) is checked, where there are as many."""
    if not sample_bytes:
        return LONGEST_HELD_OUT
    return min(max(sample_bytes // HELD_OUT, SHORTEST_HELD_OUT), LONGEST_HELD_OUT)


def _sampled(identity: CalibrationIdentity, documents: Documents, keys: np.ndarray | None, limit: int) -> Sample:
    if keys is None:
        return draw(documents, limit, identity.seed, identity.per_subset)
    assert identity.parity_to is not None
    return draw_pairs(documents, keys, identity.parity_to, limit, identity.seed)


def _calibrated(
    draft: PatchingSettings, identity: CalibrationIdentity, sample: Sample, entropies: Entropies
) -> tuple[PatchingSettings, np.ndarray]:
    """The thresholds, and int64 [N] patches of every document with the one for all bytes where parity is wanted.

    A subset in which the wanted size cannot be reached keeps the one for all bytes, and that is said.
    Raises PipelineError when it cannot be reached in all bytes.
    """
    target, pivot = identity.target, identity.parity_to
    groups = dict(sample.subsets)
    if pivot is not None:
        groups[pivot] = np.unique(np.concatenate([pairs.partners for pairs in sample.pairs.values()]))
    theta, *others = find_thetas(
        entropies, draft, [Goal(numbers, target) for numbers in (sample.whole, *groups.values())]
    )
    if isinstance(theta, UnreachableTarget):
        raise PipelineError(f"--target: {theta}")
    thetas = _reached(dict(zip(groups, others, strict=True)))
    if pivot is None:
        return _settled(draft, theta, thetas), np.zeros(0, np.int64)
    before = patches_of(entropies, draft.with_theta(theta, draft.grid))
    patches = patches_of(entropies, _settled(draft, theta, thetas))
    goals = [
        Goal(pairs.documents, float(entropies.documents.bytes[pairs.documents].sum() / patches[pairs.partners].sum()))
        for pairs in sample.pairs.values()
    ]
    thetas |= _reached(dict(zip(sample.pairs, find_thetas(entropies, draft, goals), strict=True)))
    return _settled(draft, theta, thetas), before


def _reached(found: Mapping[str, float | UnreachableTarget]) -> dict[str, float]:
    """The thresholds of the subsets that have one; of the others it is said that they have not."""
    for name, theta in found.items():
        if isinstance(theta, UnreachableTarget):
            show(f"subset {name!r} keeps the threshold for all bytes: {theta}")
    return {name: theta for name, theta in found.items() if not isinstance(theta, UnreachableTarget)}


def _settled(draft: PatchingSettings, theta: float, thetas: Mapping[str, float]) -> PatchingSettings:
    return PatchingSettings.model_validate(
        draft.model_dump() | {"theta": theta, "thetas": dict(sorted(thetas.items()))}
    )


def _mean(documents: Documents, patches: np.ndarray, numbers: np.ndarray) -> float:
    """Text bytes over patches other than BOS; ``patches`` int64 [N]."""
    return int(documents.bytes[numbers].sum()) / int(patches[numbers].sum())


def _means(documents: Documents, patches: np.ndarray) -> dict[str, float]:
    """The same of each subset."""
    sizes, counts = (np.bincount(documents.subset, weights) for weights in (documents.bytes, patches))
    return {documents.names[code]: float(sizes[code] / counts[code]) for code in np.flatnonzero(counts).tolist()}


def _held_out(sample: Sample, patches: np.ndarray) -> HeldOut:
    documents = sample.documents
    return HeldOut(
        documents=len(sample.whole),
        bytes=int(documents.bytes[sample.whole].sum()),
        mean_patch_size=_mean(documents, patches, sample.whole),
        subsets=_means(documents, patches),
    )


def _parity(
    identity: CalibrationIdentity,
    train: Sample,
    before: np.ndarray,
    after: np.ndarray,
    held_out: Sample | None,
    checked: np.ndarray | None,
) -> dict[str, ParityFigures]:
    """The figures of each subset that has documents in common with the one that it follows, that one first."""
    if identity.parity_to is None:
        return {}
    others = {} if held_out is None or checked is None else {n: ratio(p, checked) for n, p in held_out.pairs.items()}
    partners = np.unique(np.concatenate([pairs.partners for pairs in train.pairs.values()]))
    pairs = {identity.parity_to: Pairs(partners, partners), **train.pairs}
    return {name: figures(train.documents, found, before, after, others.get(name)) for name, found in pairs.items()}


def _train_dataset(path: Path) -> Dataset:
    """The train split at a path. Raises DatasetError or PipelineError."""
    dataset = open_dataset(find_datasets(path)[0])
    if dataset.manifest.identity.split != "train":
        raise PipelineError(f"{dataset.folder} is a validation split; thresholds are calibrated on train")
    return dataset


def _validation_beside(train: Dataset) -> Dataset | None:
    """The validation split of the same making, if it has text. Raises DatasetError."""
    folder = train.folder.absolute().parent / "validation"
    if not dataset_folders(folder):
        return None
    found = open_dataset(folder)
    ours, theirs = train.manifest.identity, found.manifest.identity
    alike = (theirs.split, theirs.source) == ("validation", ours.source)
    return found if alike and found.manifest.totals.bytes else None


def _current_sizes(path: Path, made_by: Mapping[str, object]) -> PatchSizes | None:
    """The table in a file, if it was made by the very same calibration."""
    if not path.exists():
        return None
    try:
        found = load_patch_sizes(path)
    except ConfigError:
        return None
    return found if found.made_by == made_by else None


def _current(path: Path, identity: CalibrationIdentity) -> PatchingFile | None:
    """What the file holds, if it was made by the very same calibration."""
    if not path.exists():
        return None
    try:
        found = load_patching(path)
    except PipelineError:
        return None
    return found if found.identity == identity else None
