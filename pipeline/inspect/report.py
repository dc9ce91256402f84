"""A dataset as lines of text: what it holds, and where its entropy model found text hard to predict."""

import math
from collections.abc import Container, Iterator

import numpy as np

from pipeline.charts import BOUNDARY, bar, bars, printable, with_boundaries, with_curve
from pipeline.inspect.content_types import TYPES, WINDOW
from pipeline.inspect.figures import Figures, nats
from pipeline.inspect.survey import SHORTEST_EXAMPLE, Example, survey
from shared.io.display.quantities import counted, quantity
from shared.io.display.tables import aligned
from shared.patching.grid import GRID, dequantise
from shared.patching.settings import PatchingSettings
from shared.shards.content import LONGEST_COUNTED
from shared.shards.dataset import Dataset
from shared.shards.manifest import DatasetIdentity, SubsetTotals
from shared.vocabulary import VOCABULARY_SIZE

SHOWN_BYTES = 120
"""Of each example."""
LENGTH_GROUPS = [(n, n) for n in range(1, 9)] + [(9, 12), (13, 16), (17, 32), (33, LONGEST_COUNTED)]
ENTROPY_GROUPS = 16
TALLEST = math.log(VOCABULARY_SIZE)
"""Nats at which a curve under a text reaches its top: the largest entropy there is."""
HIGH_WITHOUT_THETA = float(GRID[64])
"""Nats; a quarter of the largest entropy, where the rule compares no entropy with a threshold."""


LENGTH_LABELS = [str(a) if a == b else f"{a}-{b}" for a, b in LENGTH_GROUPS] + [f"over {LONGEST_COUNTED}"]
_WIDTH = 256 // ENTROPY_GROUPS
# A value q stands for (theta_{q-1}, theta_q], so a group ends at the threshold of its last value.
_TOPS = [float(GRID[min(_WIDTH * (group + 1) - 1, 254)]) for group in range(ENTROPY_GROUPS)]
ENTROPY_LABELS = [f"{low:.2f}-{top:.2f}" for low, top in zip([0.0, *_TOPS], _TOPS)]


def by_length(counts: np.ndarray) -> list[int]:
    """Counts in LENGTH_GROUPS and one for longer patches, from int64 [65] by length."""
    return [int(counts[a - 1 : b].sum()) for a, b in LENGTH_GROUPS] + [int(counts[-1])]


def by_entropy(counts: np.ndarray) -> list[int]:
    """Counts in ENTROPY_GROUPS groups, from int64 [256] by sidecar grid value."""
    return [int(count) for count in counts.reshape(ENTROPY_GROUPS, -1).sum(1)]


def report(dataset: Dataset, examples: int) -> Iterator[str]:
    """Lines of text about a dataset, with this many documents at either end. Raises DatasetError."""
    manifest = dataset.manifest
    yield f"{dataset.folder}"
    yield from _made_by(manifest.identity)
    totals = manifest.totals
    yield (
        f"  {counted(manifest.shard_count, 'shard')}, {counted(totals.documents, 'document')} "
        f"in {counted(totals.rows, 'row')}, "
        f"{quantity(totals.bytes)}B of text in {quantity(manifest.bytes_on_disk)}B on disk"
    )
    if totals.ignored or manifest.identity.specials:
        names = ", ".join(manifest.identity.specials) or "no names"
        yield (
            f"  special ids: {totals.specials:,} ({names}); targets: {totals.targets:,} of "
            f"{totals.targets + totals.ignored:,} targets, {quantity(totals.bytes - totals.ignored_bytes)}B of text"
        )
    yield ""
    yield from _by_subset(manifest.subsets, totals, manifest.identity.patching.patched)
    if manifest.patch_length_histogram:
        yield ""
        yield from _patch_lengths(np.array(manifest.patch_length_histogram))
    if manifest.entropy_histogram:
        entropies = np.array(manifest.entropy_histogram)
        yield ""
        yield from _entropies(entropies)
        yield ""
        yield from _predictability(entropies, manifest.identity.patching)
    found = survey(dataset, examples)
    if found.figures.bytes.any():
        yield ""
        yield from _content_types(found.figures, totals.bytes)
    if examples > 0:
        yield ""
        yield from _examples(dataset, found.easiest, found.hardest)


def _made_by(identity: DatasetIdentity) -> Iterator[str]:
    yield f"  split {identity.split}, format {identity.format}, entropy sidecar: {identity.sidecar}"
    patching = identity.patching.described
    yield f"  rule {identity.patching.rule}" + "".join(f", {key} {value}" for key, value in patching.items())
    if identity.patching.thetas:
        yield "  theta by subset: " + ", ".join(
            f"{name} {theta:.4g}" for name, theta in identity.patching.thetas.items()
        )
    if identity.entropy_model is not None:
        model, numerics = identity.entropy_model.sha256[:16], identity.entropy_model.numerics
        yield f"  entropy model {model}, " + ("which counts" if numerics is None else f"scored in {numerics.dtype}")


def _by_subset(subsets: dict[str, SubsetTotals], totals: SubsetTotals, patched: bool) -> Iterator[str]:
    yield "Bytes per patch by subset (patches other than BOS)" if patched else "Subsets (unpatched)"
    largest = max((figures.mean_patch_size for figures in subsets.values()), default=0) if patched else totals.bytes
    header = ["subset", "documents", "bytes", "patches", "bytes/patch", ""]
    rows = []
    for name, figures in [*subsets.items(), (name_of_all(subsets), totals)]:
        measure = figures.mean_patch_size if patched else figures.bytes
        chart = "" if figures is totals else bar(measure, largest)
        patches = [f"{figures.patches:,}", f"{figures.mean_patch_size:.2f}"] if patched else ["-", "-"]
        rows.append([printable(name.encode()), f"{figures.documents:,}", f"{figures.bytes:,}", *patches, chart])
    yield from aligned(header, rows, left=(0, len(header) - 1), indent="  ").split("\n")


def name_of_all(subsets: Container[str]) -> str:
    """What stands for all subsets together, beside their own names."""
    return "all subsets" if "all" in subsets else "all"


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
    groups = list(zip(LENGTH_LABELS, by_length(histogram)))
    while not groups[-1][1]:
        groups.pop()
    yield from bars(groups)


def _entropies(histogram: np.ndarray) -> Iterator[str]:
    """``histogram`` int64 [256] by sidecar grid value."""
    mean = float(histogram @ dequantise(np.arange(256, dtype=np.uint8)).astype(np.float64)) / int(histogram.sum())
    yield f"Entropy of the next token in nats (of {histogram.sum():,} positions): mean {mean:.3f}"
    yield from bars(list(zip(ENTROPY_LABELS, by_entropy(histogram))))


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


def sample_words(read: int, total: int) -> str:
    """What figures of a sample rest on."""
    return "all text" if read == total else f"a sample of {quantity(read)}B of {quantity(total)}B"


def _content_types(figures: Figures, total: int) -> Iterator[str]:
    """Types that occur, most bytes first."""
    read = sample_words(int(figures.bytes.sum()), total)
    yield f"Content types in windows of {WINDOW} bytes, by a rule of thumb (of {read})"
    order = [kind for kind in np.argsort(-figures.type_bytes, kind="stable").tolist() if figures.type_bytes[kind]]
    patched, scored = figures.type_patches.any(), figures.type_scored.any()
    sizes = figures.type_bytes / np.maximum(figures.type_patches, 1)
    measures = sizes if patched else figures.type_bytes
    rows = [
        [
            TYPES[kind],
            f"{figures.type_bytes[kind] / figures.type_bytes.sum():.1%}",
            f"{figures.type_nats[kind] / max(figures.type_scored[kind], 1):.3f}" if scored else "-",
            f"{sizes[kind]:.2f}" if patched and figures.type_patches[kind] else "-",
            bar(float(measures[kind]), float(measures[order].max()))
            if not patched or figures.type_patches[kind]
            else "",
        ]
        for kind in order
    ]
    yield from aligned(["type", "bytes", "mean nats", "bytes/patch", ""], rows, left=(0, 4), indent="  ").split("\n")


def _examples(dataset: Dataset, easiest: list[Example], hardest: list[Example]) -> Iterator[str]:
    if dataset.manifest.identity.sidecar == "none":
        yield "Examples: no entropies are kept; preprocess with --sidecar uint8 to see the most and least predictable"
        return
    if not easiest:
        yield f"Examples: no document has {SHORTEST_EXAMPLE} bytes or more"
    for title, examples in (("Most predictable documents", easiest), ("Least predictable documents", hardest)):
        if examples:
            yield f"{title} by mean entropy in nats, of {SHORTEST_EXAMPLE} bytes at least; {BOUNDARY} begins a patch"
        for example in examples:
            name = printable(example.id.encode())
            subset = printable(example.subset.encode())
            yield f"  {example.mean:.3f}  {name} ({subset}, {quantity(example.size)}B)"
            yield from ("         " + line for line in _shown(example))


def _shown(example: Example) -> list[str]:
    """The first bytes in their patches, and under each character how hard it was to predict."""
    text = example.text[:SHOWN_BYTES]
    starts = [] if example.lengths is None else (np.cumsum(example.lengths, dtype=np.int64) - 1).tolist()
    assert example.values is not None
    heights = nats(example.values) / TALLEST
    more = " ..." if len(text) < example.size else ""
    return [with_boundaries(text, starts) + more, with_curve(text, starts, heights.tolist())]
