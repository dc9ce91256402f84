"""python -m pipeline calibrate DATASET --patcher MODEL --target 4.5 --out FILE: the threshold for a mean patch size."""

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from pipeline.listing import dataset_folders
from pipeline.patching_file import CalibrationIdentity, PatchingFile, load_patching
from pipeline.preprocess import add_scoring_arguments, entropy_model_sha256, scoring_of
from pipeline.read.datasets import documents_at
from pipeline.records import chunks_of
from pipeline.settings import PipelineError
from pipeline.threshold import ScoredDocument, UnreachableTarget, find_theta, mean_patch_size
from pipeline.worker import load_scorer
from shared.patching import PatchingSettings
from shared.patching.settings import ENTROPY_RULES
from shared.shards.dataset import Dataset, open_dataset
from shared.shards.manifest import DatasetError, first_problem
from shared.vocabulary import document_tokens

if TYPE_CHECKING:
    from shared.scoring import Scorer

SUBSETS_SHOWN = 50
CLOSE = 0.02
"""Relative distance from the target above which a word is said about it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", type=Path, metavar="DATASET", help="shards to calibrate on, patched or not; of two splits, train")
    add("--target", type=float, required=True, metavar="BYTES", help="mean patch size")
    add("--out", type=Path, required=True, metavar="FILE.json", help="for preprocess --patching")
    add("--rule", choices=ENTROPY_RULES, default="entropy")
    add("--theta-rise", type=float, metavar="NATS", help="second threshold of entropy_rise, taken as it is")
    add("--min-length", type=int, default=1, metavar="BYTES", help="shortest patch (1)")
    add("--max-length", type=int, default=512, metavar="BYTES", help="longest patch (512)")
    add("--per-subset", action="store_true", help="a threshold for each subset besides the one for all bytes")
    add("--sample-bytes", type=int, default=1_000_000, metavar="N", help="text to score (with --per-subset: of each)")
    add("--seed", type=int, default=0, help="of the sample")
    add(
        "--sidecar",
        choices=["none", "uint8", "float32"],
        default="uint8",
        help="what preprocess will keep: for uint8 the threshold on entropy lies on its grid",
    )
    add_scoring_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, unless the file is there and current; returns the exit code."""
    dataset = _train_dataset(arguments.dataset)
    try:
        scoring = scoring_of(arguments)
        identity = CalibrationIdentity(
            patcher=entropy_model_sha256(arguments.patcher, "calibrate"),
            dataset=dataset.fingerprint,
            **{
                key: getattr(arguments, key) for key in CalibrationIdentity.model_fields.keys() - {"patcher", "dataset"}
            },
        )
        draft = PatchingSettings(
            rule=identity.rule,
            theta=0.0,
            theta_rise=identity.theta_rise,
            min_length=identity.min_length,
            max_length=identity.max_length,
        )
    except ValidationError as error:
        raise PipelineError(first_problem(error)) from None
    if (current := _current(arguments.out, identity)) is not None:
        print(f"{arguments.out} is current")
        _print(current)
        return 0
    scorer, numerics = load_scorer(arguments.patcher, scoring)
    whole, by_subset = choose(dataset, identity.sample_bytes, identity.seed, identity.per_subset)
    wanted = np.union1d(whole, np.concatenate([np.zeros(0, np.int64), *by_subset.values()]))
    scored = dict(zip(wanted.tolist(), _score(dataset, wanted, scorer), strict=True))
    patching = _calibrated(
        draft,
        identity,
        [scored[row] for row in whole.tolist()],
        {name: [scored[row] for row in rows.tolist()] for name, rows in by_subset.items()},
    )
    sample = list(scored.values())
    subsets = {
        name: mean_patch_size([d for d in sample if d.subset == name], patching)
        for name in sorted({d.subset for d in sample})
    }
    realised = mean_patch_size([scored[row] for row in whole.tolist()], patching)
    result = PatchingFile(
        patching=patching, identity=identity, numerics=numerics, mean_patch_size=realised, subsets=subsets
    )
    result.save(arguments.out)
    print(f"scored {sum(d.bytes for d in sample):,} bytes in {len(sample):,} documents of {dataset.folder}")
    _print(result)
    print(f"thresholds are in {arguments.out}")
    return 0


def choose(
    dataset: Dataset, sample_bytes: int, seed: int, per_subset: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """First rows (int64, sorted) of sampled documents: of all, and of each subset if wanted.

    Documents are taken in a seeded random order until the next would exceed ``sample_bytes``; at least one is.
    """
    index = dataset.index
    starts = np.flatnonzero(index.part == 0)
    sizes = np.add.reduceat(index.bytes, starts) if len(starts) else starts
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    if not len(starts):
        raise PipelineError(f"{dataset.folder} has no text to calibrate on")
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(starts))

    def first(chosen: np.ndarray) -> np.ndarray:
        count = max(int(np.searchsorted(np.cumsum(sizes[chosen]), sample_bytes, side="right")), 1)
        return np.sort(starts[chosen[:count]])

    subsets: dict[str, np.ndarray] = {}
    if per_subset:
        codes = index.subset[starts[order]]
        subsets = {dataset.subset_names[code]: first(order[codes == code]) for code in np.unique(codes).tolist()}
    return first(order), subsets


def _calibrated(
    draft: PatchingSettings,
    identity: CalibrationIdentity,
    whole: list[ScoredDocument],
    by_subset: dict[str, list[ScoredDocument]],
) -> PatchingSettings:
    grid = identity.sidecar == "uint8" and draft.rule != "monotonic"
    try:
        theta = find_theta(whole, draft, identity.target, grid)
        thetas = {}
        for name, documents in by_subset.items():
            try:
                thetas[name] = find_theta(documents, draft, identity.target, grid)
            except UnreachableTarget as error:
                raise PipelineError(f"subset {name!r}: {error}") from None
    except UnreachableTarget as error:
        raise PipelineError(f"--target: {error}") from None
    return PatchingSettings.model_validate(draft.model_dump() | {"theta": theta, "thetas": thetas, "grid": grid})


def _score(dataset: Dataset, rows: np.ndarray, scorer: "Scorer") -> Iterator[ScoredDocument]:
    """Documents that begin at these rows, in order, with their entropies."""
    waiting: deque[tuple[str, np.ndarray]] = deque()

    def tokens() -> Iterator[np.ndarray]:
        for record in documents_at(dataset, rows):
            waiting.append((record.subset, document_tokens(b"".join(chunks_of(record.text)))))
            yield waiting[-1][1]

    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(desc="Scoring", unit="B", unit_scale=True, mininterval=interval, delay=0.5, leave=False) as bar:
        for entropies in scorer.score(tokens()):
            subset, document = waiting.popleft()
            bar.update(len(document) - 2)
            yield ScoredDocument(subset, document, entropies)


def _train_dataset(path: Path) -> Dataset:
    """The train split at a path. Raises DatasetError or PipelineError."""
    folders = dataset_folders(path)
    if not folders:
        raise DatasetError(f"{path} is not a finished dataset, nor does it hold train/ and validation/")
    dataset = open_dataset(folders[0])
    if dataset.manifest.identity.split != "train":
        raise PipelineError(f"{folders[0]} is a validation split; thresholds are calibrated on train")
    return dataset


def _current(path: Path, identity: CalibrationIdentity) -> PatchingFile | None:
    """What the file holds, if it was made by the very same calibration."""
    if not path.exists():
        return None
    try:
        found = load_patching(path)
    except PipelineError:
        return None
    return found if found.identity == identity else None


def _print(result: PatchingFile) -> None:
    target, patching = result.identity.target, result.patching
    print(f"theta {patching.theta:.6f} nats: {result.mean_patch_size:.3f} bytes a patch, {target} wanted")
    if abs(result.mean_patch_size / target - 1) > CLOSE:
        print("  that is the nearest; with --sidecar float32 or none the threshold is not bound to the grid")
    if len(result.subsets) > 1:
        width = max(map(len, result.subsets))
        for name, size in list(result.subsets.items())[:SUBSETS_SHOWN]:
            print(f"  {name:<{width}}  theta {patching.thetas.get(name, patching.theta):.6f}  {size:.3f} bytes a patch")
        if len(result.subsets) > SUBSETS_SHOWN:
            print(f"  and {len(result.subsets) - SUBSETS_SHOWN} more in the file")
