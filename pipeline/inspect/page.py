"""Datasets as one page for a browser: everything is in the file, nothing is fetched, and no text of a document is code.

The page holds its data as JSON in an element that is not run, with every ``<`` escaped; arrays are base64 of
little-endian values. Its policy allows this very script and style alone, and no request at all.
"""

import base64
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from pipeline.inspect.content_types import TYPES, WINDOW
from pipeline.inspect.report import ENTROPY_LABELS, LENGTH_LABELS, by_entropy, by_length, name_of_all, sample_words
from pipeline.inspect.sample import SEED
from pipeline.inspect.survey import SIZE_GROUPS, Example, Survey, survey
from shared.io.display.page import base_style, page
from shared.io.display.quantities import counted, quantity
from shared.io.display.terminal import one_line
from shared.io.files.outputs import Output
from shared.patching.grid import GRID, dequantise
from shared.patching.settings import RISE_RULES
from shared.shards.dataset import Dataset
from shared.vocabulary import VOCABULARY_SIZE

SHORT = 12
"""Hexadecimal digits of a hash that are shown, as the other commands show them."""
MOST_DOCUMENTS = 96
"""Of each dataset in a page, whatever the number of subsets: some megabytes."""
LISTED = 20
"""Subsets named in a warning; the others are counted."""


def write_page(out: Output, datasets: Sequence[Dataset], documents: int) -> str:
    """Write the page of some datasets with ``documents`` documents at either end and of each subset; one line about it.

    Raises DatasetError, and OSError when the file cannot be written.
    """
    pages = [dataset_page(dataset, survey(dataset, documents)) for dataset in datasets]
    text = html(pages)
    out.write(text)
    shown = sum(len(page["documents"]) for page in pages)
    amount = f"{counted(len(pages), 'dataset')}, {counted(shown, 'document')}, {quantity(len(text.encode()))}B"
    return f"{out.path}: {amount}; open it in any browser"


def html(pages: Sequence[dict[str, Any]]) -> str:
    """The page that shows what ``dataset_page`` made of one dataset or several."""
    source = files("pipeline.inspect")
    style = base_style() + source.joinpath("page.css").read_text()
    script = source.joinpath("recut.js").read_text() + source.joinpath("page.js").read_text()
    data = json.dumps({**_constants(), "datasets": safe_values(list(pages))}, allow_nan=False).replace("<", "\\u003c")
    return page(source.joinpath("page.html").read_text(), style, script, data=data)


def safe_values(value: Any) -> Any:
    """JSON values whose texts, keys included, hold no character that is invisible or reorders others."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return {one_line(key): safe_values(item) for key, item in value.items()}
    return [safe_values(item) for item in value] if isinstance(value, (list, tuple)) else value


def dataset_page(dataset: Dataset, found: Survey) -> dict[str, Any]:
    """What the page knows about a dataset, as JSON values."""
    manifest = dataset.manifest
    identity, totals = manifest.identity, manifest.totals
    patched, scored = identity.patching.patched, identity.sidecar != "none"
    documents, left_out = chosen_documents(found)
    read = int(found.figures.bytes.sum())
    return {
        "folder": str(dataset.folder),
        "facts": _facts(dataset),
        "warnings": _warnings(dataset, found, left_out),
        "patching": identity.patching.model_dump(),
        "sidecar": identity.sidecar,
        "replayable": scored and identity.patching.needs_entropy and identity.decides(identity.patching),
        "totals": {"documents": totals.documents, "bytes": totals.bytes},
        "bytes_a_patch": _ratio(totals.bytes, totals.patches),
        "entropy_histogram": manifest.entropy_histogram if scored else [],
        "subsets": [
            {
                "name": name,
                "documents": figures.documents,
                "bytes": figures.bytes,
                "patches": figures.patches,
                "bytes_a_patch": _ratio(figures.bytes, figures.patches) if patched else None,
            }
            for name, figures in manifest.subsets.items()
        ],
        "sampled": f"Counted over {sample_words(read, totals.bytes)}, sampled by seed {SEED}."
        if read < totals.bytes
        else "Counted over all text.",
        "histograms": _histograms(dataset.subset_names, found),
        "types": _types(found),
        "documents": [_document(group, example) for group, example in documents],
    }


def chosen_documents(found: Survey) -> tuple[list[tuple[str, Example]], int]:
    """Documents with the heading of their group, at most MOST_DOCUMENTS, and how many are left out for that.

    Where there are too many, every subset keeps its first before any has a second.
    """
    ends = [("least predictable", example) for example in found.hardest]
    ends += [("most predictable", example) for example in found.easiest]
    ends = ends[:MOST_DOCUMENTS]
    turns = sorted(
        (turn, number, name) for number, name in enumerate(found.random) for turn in range(len(found.random[name]))
    )
    kept = sorted((number, turn, name) for turn, number, name in turns[: MOST_DOCUMENTS - len(ends)])
    sampled = [(f"sampled from {name}", found.random[name][turn]) for _, turn, name in kept]
    total = len(found.hardest) + len(found.easiest) + len(turns)
    return [*ends, *sampled], total - len(ends) - len(sampled)


def _constants() -> dict[str, Any]:
    """What does not depend on a dataset."""
    return {
        "grid": _encoded(GRID),
        "cells": _encoded(dequantise(np.arange(256, dtype=np.uint8))),
        "maximum_entropy": math.log(VOCABULARY_SIZE),
        "length_labels": LENGTH_LABELS,
        "entropy_labels": ENTROPY_LABELS,
        "size_labels": [f"{low:g}-{top:g}" for low, top in zip((0, *SIZE_GROUPS), SIZE_GROUPS)]
        + [f"over {SIZE_GROUPS[-1]:g}"],
        "types_note": f"Text is told apart in windows of {WINDOW} bytes by a rule of thumb: letters by script, and "
        "marks that code and formulas have.",
    }


def _facts(dataset: Dataset) -> list[tuple[str, str]]:
    """What made the dataset and what it amounts to: label and words."""
    manifest, identity = dataset.manifest, dataset.manifest.identity
    totals = manifest.totals
    rule = dict(identity.patching.described)
    on_grid = ", thresholds on the grid of the uint8 sidecar" if rule.pop("grid", False) else ""
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in rule.items()}
    keys = "".join(f", {key} {value}" for key, value in shown.items())
    facts = [("rule", f"{identity.patching.rule}{keys}{on_grid}")]
    if identity.patching.thetas:
        by_subset = ", ".join(f"{name} {theta:.4g}" for name, theta in identity.patching.thetas.items())
        facts.append(("theta by subset", by_subset))
    if identity.entropy_model is not None:
        numerics = identity.entropy_model.numerics
        scored = "which counts" if numerics is None else f"scored in {numerics.dtype} on {numerics.device}"
        facts.append(("entropy model", f"{identity.entropy_model.sha256[:SHORT]}, {scored}"))
    amount = f"{counted(totals.documents, 'document')}, {totals.bytes:,} bytes"
    on_disk = f"{quantity(manifest.bytes_on_disk)}B on disk"
    facts.append(("holds", f"{amount} in {counted(manifest.shard_count, 'shard')}, {on_disk}"))
    if totals.patches:
        facts.append(("patches", f"{totals.patches:,}, {totals.mean_patch_size:.3f} bytes each on average"))
    facts.append(("split", f"{identity.split}, format {identity.format}, entropy sidecar {identity.sidecar}"))
    facts.append(("fingerprint", dataset.fingerprint[:SHORT]))
    return facts


def _warnings(dataset: Dataset, found: Survey, left_out: int) -> list[str]:
    """What a reader should know, and the command that would fix it."""
    identity = dataset.manifest.identity
    warnings = []
    if not dataset.manifest.totals.documents:
        warnings.append("The dataset holds no document.")
    if identity.sidecar == "none":
        warnings.append(
            "No entropies are kept, so there are no curves and nothing to cut anew: "
            "preprocess with --entropy-model MODEL --sidecar uint8 keeps them."
        )
    elif identity.sidecar == "uint8" and identity.patching.rule in RISE_RULES:
        warnings.append(
            f"The sidecar is uint8, which does not hold rises exactly: boundaries of the rule {identity.patching.rule} "
            "are shown as stored; preprocess with --sidecar float32 to cut by rises here."
        )
    if not identity.patching.patched:
        warnings.append(
            "The dataset is unpatched: preprocess with --entropy-model MODEL --patching FILE writes patches "
            "(calibrate makes the file)."
        )
    totals = dataset.manifest.subsets
    missing = [name for name, read in zip(dataset.subset_names, found.figures.bytes) if not read and totals[name].bytes]
    if missing:
        names = ", ".join(missing[:LISTED]) + (f" and {len(missing) - LISTED} more" if len(missing) > LISTED else "")
        warnings.append(f"Not in the sample, so without histograms and documents: {names}.")
    if left_out:
        warnings.append(f"{left_out} documents are left out: the page shows {MOST_DOCUMENTS} at most.")
    return warnings


def _histograms(names: Sequence[str], found: Survey) -> list[dict[str, Any]]:
    """Counts in groups for all subsets together, then for each that the sample holds."""
    figures = found.figures

    def grouped(name: str, rows: Any) -> dict[str, Any]:
        return {
            "name": name,
            "lengths": by_length(figures.lengths[rows].sum(0)),
            "entropies": by_entropy(figures.entropies[rows].sum(0)),
            "sizes": found.documents_by_size[rows].sum(0).tolist(),
        }

    own = [grouped(name, [code]) for code, name in enumerate(names) if figures.bytes[code]]
    return [grouped(name_of_all(names), slice(None)), *own]


def _types(found: Survey) -> list[dict[str, Any]]:
    """Content types that occur, most bytes first."""
    figures = found.figures
    order = np.argsort(-figures.type_bytes, kind="stable").tolist()
    return [
        {
            "name": TYPES[kind],
            "bytes": int(figures.type_bytes[kind]),
            "nats": _ratio(figures.type_nats[kind], figures.type_scored[kind]),
            "bytes_a_patch": _ratio(figures.type_bytes[kind], figures.type_patches[kind]),
            "lengths": by_length(figures.type_lengths[kind]),
        }
        for kind in order
        if figures.type_bytes[kind]
    ]


def _document(group: str, example: Example) -> dict[str, Any]:
    return {
        "group": group,
        "id": example.id,
        "subset": example.subset,
        "size": example.size,
        "mean": None if math.isnan(example.mean) else example.mean,
        "whole": example.whole,
        "text": _encoded(np.frombuffer(example.text, np.uint8)),
        "values": None if example.values is None else _encoded(example.values),
        "lengths": None if example.lengths is None else _encoded(example.lengths),
        "specials": example.specials,
    }


def _encoded(values: np.ndarray) -> str:
    """Base64 of an array's little-endian bytes."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def _ratio(value: float, count: float) -> float | None:
    return float(value) / float(count) if count else None
