"""python -m pipeline inspect DATASET: what a dataset holds, and where its entropy model found text hard to predict."""

import argparse
import heapq
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.charts import BOUNDARY, bar, bars, printable, size, table, with_boundaries
from shared.patching.grid import GRID, dequantise
from shared.patching.settings import PatchingSettings
from shared.shards.content import LONGEST_COUNTED
from shared.shards.dataset import Dataset, find_datasets, open_dataset
from shared.shards.manifest import DatasetError, DatasetIdentity, SubsetTotals

SHOWN_BYTES = 160
"""Of each example."""
SHORTEST_EXAMPLE = 64
"""Bytes of text; the mean entropy of a shorter document says little."""
LENGTH_GROUPS = [(n, n) for n in range(1, 9)] + [(9, 12), (13, 16), (17, 32), (33, LONGEST_COUNTED)]
ENTROPY_GROUPS = 16
HIGH_WITHOUT_THETA = float(GRID[64])
"""Nats; a quarter of the largest entropy, where the rule compares no entropy with a threshold."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="folder of a dataset, or the one above its train/ and validation/")
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="documents shown at either end (3)")


def run(arguments: argparse.Namespace) -> int:
    """Print the report of each dataset; 1 when one cannot be read."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # any document must be printable on any terminal
    try:
        for folder in find_datasets(arguments.dataset):
            for line in report(open_dataset(folder), arguments.examples):
                print(line)
            print()
    except DatasetError as error:
        print(f"patchwork: error: {error}", file=sys.stderr)
        return 1
    return 0


def report(dataset: Dataset, examples: int) -> Iterator[str]:
    """Lines of text about a dataset."""
    manifest = dataset.manifest
    yield f"{dataset.folder}"
    yield from _made_by(manifest.identity)
    on_disk = sum(entry.bytes_on_disk for entry in manifest.shards)
    totals = manifest.totals
    yield (
        f"  {len(manifest.shards)} shards, {totals.documents:,} documents in {totals.rows:,} rows, "
        f"{size(totals.bytes)} of text in {size(on_disk)} on disk"
    )
    yield ""
    yield from _by_subset(manifest.subsets, totals, manifest.identity.patching.patched)
    lengths = add_histograms([entry.patch_length_histogram for entry in manifest.shards], LONGEST_COUNTED + 1)
    if lengths.any():
        yield ""
        yield from _patch_lengths(lengths)
    entropies = add_histograms([entry.entropy_histogram for entry in manifest.shards], 256)
    if entropies.any():
        yield ""
        yield from _entropies(entropies)
        yield ""
        yield from _predictability(entropies, manifest.identity.patching)
    if examples > 0:
        yield ""
        yield from _examples(dataset, examples)


def add_histograms(histograms: list[list[int]], size: int) -> np.ndarray:
    """int64 [size]: the sum of the histograms of shards; those that are empty count nothing."""
    total = np.zeros(size, np.int64)
    for histogram in histograms:
        total[: len(histogram)] += np.array(histogram, np.int64)
    return total


def _made_by(identity: DatasetIdentity) -> Iterator[str]:
    yield f"  split {identity.split}, format {identity.format}, entropy sidecar: {identity.sidecar}"
    patching = identity.patching.model_dump(exclude_defaults=True, exclude={"rule", "thetas"})
    yield f"  rule {identity.patching.rule}" + "".join(f", {key} {value}" for key, value in patching.items())
    if identity.patching.thetas:
        yield "  theta by subset: " + ", ".join(
            f"{name} {theta:.4g}" for name, theta in identity.patching.thetas.items()
        )
    if identity.patcher is not None:
        yield f"  entropy model {identity.patcher.sha256[:16]}, scored in {identity.patcher.numerics.dtype}"


def _by_subset(subsets: dict[str, SubsetTotals], totals: SubsetTotals, patched: bool) -> Iterator[str]:
    yield "Bytes per patch by subset (patches other than BOS)" if patched else "Subsets (unpatched)"
    largest = max((figures.mean_patch_size for figures in subsets.values()), default=0) if patched else totals.bytes
    header = ["subset", "documents", "bytes", "patches", "bytes/patch", ""]
    rows = []
    for name, figures in [*subsets.items(), ("all", totals)]:
        measure = figures.mean_patch_size if patched else figures.bytes
        chart = "" if name == "all" and figures is totals else bar(measure, largest)
        patches = [f"{figures.patches:,}", f"{figures.mean_patch_size:.2f}"] if patched else ["-", "-"]
        rows.append([printable(name.encode()), f"{figures.documents:,}", f"{figures.bytes:,}", *patches, chart])
    yield from table(header, rows)


def _patch_lengths(histogram: np.ndarray) -> Iterator[str]:
    """``histogram`` int64 [65]: patches of length 1 to 64, then longer ones."""
    cumulative = np.cumsum(histogram)

    def quantile(share: float) -> str:
        length = int(np.searchsorted(cumulative, share * cumulative[-1])) + 1
        return str(length) if length <= LONGEST_COUNTED else f"over {LONGEST_COUNTED}"

    yield (
        f"Patch lengths in tokens (of {cumulative[-1]:,} patches): "
        f"median {quantile(0.5)}, 90% up to {quantile(0.9)}, 99% up to {quantile(0.99)}"
    )
    groups = [(str(a) if a == b else f"{a}-{b}", int(histogram[a - 1 : b].sum())) for a, b in LENGTH_GROUPS]
    groups.append((f"over {LONGEST_COUNTED}", int(histogram[-1])))
    while not groups[-1][1]:
        groups.pop()
    yield from bars(groups)


def _entropies(histogram: np.ndarray) -> Iterator[str]:
    """``histogram`` int64 [256] by sidecar grid value."""
    mean = float(histogram @ dequantise(np.arange(256, dtype=np.uint8)).astype(np.float64)) / int(histogram.sum())
    yield f"Entropy of the next token in nats (of {histogram.sum():,} positions): mean {mean:.3f}"
    counts = histogram.reshape(ENTROPY_GROUPS, -1).sum(1)
    width = 256 // ENTROPY_GROUPS
    # A value q stands for (theta_{q-1}, theta_q], so a group ends at the threshold of its last value.
    tops = [float(GRID[min(width * (group + 1) - 1, 254)]) for group in range(ENTROPY_GROUPS)]
    yield from bars([(f"{low:.2f}-{top:.2f}", int(n)) for low, top, n in zip([0.0, *tops], tops, counts)])


def _predictability(histogram: np.ndarray, patching: PatchingSettings) -> Iterator[str]:
    on_entropy = patching.rule in ("entropy", "entropy_rise")
    high, name = (patching.theta, "theta") if on_entropy else (HIGH_WITHOUT_THETA, "a quarter of ln 260")
    assert high is not None
    low = high / 3
    at_low, at_high = (int(np.argmin(np.abs(GRID - np.float32(bound)))) for bound in (low, high))
    counts = [histogram[: at_low + 1].sum(), histogram[at_low + 1 : at_high + 1].sum(), histogram[at_high + 1 :].sum()]
    yield f"Share of positions that are easy and hard to predict (high: above {name}; low: up to a third of it)"
    labels = [f"low     H <= {low:.3f}", f"medium  H <= {high:.3f}", f"high    H >  {high:.3f}"]
    yield from bars([(label, int(count)) for label, count in zip(labels, counts)])


@dataclass(frozen=True, order=True)
class Example:
    """A document by how hard it was to predict."""

    mean: float
    """Mean entropy of its positions, nats."""
    number: int
    """In the dataset: makes the order complete."""
    id: str
    subset: str
    size: int
    """Bytes of text."""
    shown: str


def ranked_examples(dataset: Dataset, count: int) -> tuple[list[Example], list[Example]]:
    """The most and the least predictable documents by mean entropy, most extreme first; needs a sidecar.

    Reads the whole dataset in bounded memory. Raises DatasetError.
    """
    easiest: list[tuple[float, int, Example]] = []
    hardest: list[tuple[float, int, Example]] = []
    for example in _scored_documents(dataset):
        for heap, sign in ((easiest, -1), (hardest, 1)):
            item = (sign * example.mean, sign * example.number, example)
            if len(heap) < count:
                heapq.heappush(heap, item)
            else:
                heapq.heappushpop(heap, item)
    easy, hard = ([example for *_, example in sorted(heap, reverse=True)] for heap in (easiest, hardest))
    return easy, hard


def _scored_documents(dataset: Dataset) -> Iterator[Example]:
    """Every document of some length, with its mean entropy."""
    index = dataset.index
    number = count = text_bytes = 0
    total, shown = 0.0, ""
    for start in index.batch_starts[:-1].tolist():
        shard, batch = int(index.shard[start]), int(index.batch[start])
        columns = dataset.batch(shard, batch)
        for row, stored in enumerate(dataset.entropies(shard, batch)):
            nats = dequantise(stored) if stored.dtype == np.uint8 else stored
            text = columns.text(row)
            if index.part[start + row] == 0:
                total, count, text_bytes = 0.0, 0, 0
                shown = _shown(text[:SHOWN_BYTES].tobytes(), columns.patch_lengths(row), len(text) > SHOWN_BYTES)
            total += float(np.nansum(nats, dtype=np.float64))
            count += len(nats)
            text_bytes += len(text)
            if index.last[start + row]:
                if text_bytes >= SHORTEST_EXAMPLE:
                    yield Example(total / count, number, columns.id(row), columns.subset(row), text_bytes, shown)
                number += 1


def _shown(text: bytes, lengths: np.ndarray | None, more: bool) -> str:
    starts = [] if lengths is None else (np.cumsum(lengths[: SHOWN_BYTES + 1], dtype=np.int64) - 1).tolist()
    return with_boundaries(text, starts) + (" ..." if more else "")


def _examples(dataset: Dataset, count: int) -> Iterator[str]:
    if dataset.manifest.identity.sidecar == "none":
        yield "Examples: no entropies are kept; preprocess with --sidecar uint8 to see the most and least predictable"
        return
    ends = ranked_examples(dataset, count)
    if not ends[0]:
        yield f"Examples: no document has {SHORTEST_EXAMPLE} bytes or more"
    for title, examples in zip(("Most predictable documents", "Least predictable documents"), ends):
        if examples:
            yield f"{title} by mean entropy in nats, of {SHORTEST_EXAMPLE} bytes at least; {BOUNDARY} begins a patch"
        for example in examples:
            name = printable(example.id.encode())
            subset = printable(example.subset.encode())
            yield f"  {example.mean:.3f}  {name} ({subset}, {size(example.size)})"
            yield f"         {example.shown}"
