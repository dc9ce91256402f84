"""Documents and datasets that the tests of packs share, and what their packs must be, in plain Python."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, ShardFormat
from shared.shards.open import open_dataset
from shared.shards.spans import Spans, joined_spans, spans_of
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import BOE, IGNORED_LABEL, document_tokens
from trainer.data.documents import documents_in_order
from trainer.data.packing.packs import Pack
from trainer.data.source import Source

SPACE = PatchingSettings(rule="space", max_length=8)
NONE = PatchingSettings(rule="none")
ALPHABET = np.frombuffer(b"abcdef  \n\xff\x00", np.uint8)


def document(id: str, subset: str, text: bytes, patching: PatchingSettings = SPACE) -> Row:
    lengths = patch_lengths(document_tokens(text), patching) if patching.patched else None
    return Row(id, subset, text, 0, lengths)


SPECIALS = ("user", "assistant", "end")


def random_spans(size: int, rng: np.random.Generator) -> Spans:
    """Spans of a text of so many bytes: empty ones too, with and without special ids, some learned."""
    ends = np.sort(rng.integers(0, size + 1, rng.integers(0, 6))).tolist()
    ids = rng.choice([None, 260, 261, 262], len(ends) + 1).tolist()
    return spans_of(list(zip([*ends, size], ids, (rng.random(len(ends) + 1) < 0.4).tolist())))


def with_spans(row: Row, rng: np.random.Generator, patching: PatchingSettings = SPACE) -> Row:
    """The same text with spans, patched anew."""
    marked = replace(row, spans=random_spans(len(row.text), rng), patch_lengths=None)
    lengths = patch_lengths(marked.tokens(True), patching) if patching.patched else None
    return replace(marked, patch_lengths=lengths)


def in_parts(row: Row) -> list[Row]:
    """The same document in three rows, cut on patch boundaries."""
    assert row.patch_lengths is not None
    ends = np.cumsum(row.patch_lengths.astype(int))
    inner = ends[(ends > 1) & (ends < row.size + 1)]
    if len(inner) < 2:
        return [row]
    bounds = [0, int(inner[len(inner) // 3]), int(inner[-1]), row.size + 2]
    parts, text, spans = [], row.text, row.spans
    for part, (low, high) in enumerate(pairwise(bounds)):
        size, own = high - low - (part == 0) - (part == 2), None
        if spans is not None:
            own, spans, size = spans.split(size)
        lengths = row.patch_lengths[(ends > low) & (ends <= high)]
        parts.append(Row(row.id, row.subset, text[:size], part, lengths, spans=own))
        text = text[size:]
    return parts


def random_documents(
    seed: int, count: int, mean: int = 30, patching: PatchingSettings = SPACE, subsets: Sequence[str] = ("a", "b", "c")
) -> list[Row]:
    """Documents of random bytes and sizes, some empty; ids tell them apart."""
    rng = np.random.default_rng(seed)
    sizes = rng.exponential(mean, count).astype(int) * (rng.random(count) > 0.1)
    names = rng.choice(np.array(subsets), count, p=np.arange(1, len(subsets) + 1) / sum(range(len(subsets) + 1)))
    return [
        document(f"{seed}-{number}", str(name), rng.choice(ALPHABET, size).tobytes(), patching)
        for number, (size, name) in enumerate(zip(sizes, names))
    ]


def make_dataset(
    folder: Path,
    shards: Sequence[Sequence[Row]],
    format: ShardFormat = "arrow",
    patching: PatchingSettings = SPACE,
    split: str = "train",
    specials: Sequence[str] = (),
) -> Dataset:
    entries = [write_shard(folder, f"shard-{n:05d}", rows, format) for n, rows in enumerate(shards)]
    identity = DatasetIdentity(
        split=split,
        format=format,
        sidecar="none",
        patching=patching,
        entropy_model=None,
        source="a test",
        specials=tuple(specials),
    )
    commit_dataset(folder, identity, entries)
    return open_dataset(folder)


def random_dataset(folder: Path, seed: int, count: int = 60, shards: int = 5, **kwargs) -> Dataset:
    rows = random_documents(seed, count, patching=kwargs.get("patching", SPACE))
    return make_dataset(folder, [rows[n::shards] for n in range(shards)], **kwargs)


def whole_documents(dataset: Dataset) -> list[Row]:
    """The documents of a dataset in order, parts joined."""
    documents: list[Row] = []
    for row in dataset.rows():
        if row.part:
            before = documents.pop()
            lengths = None
            if row.patch_lengths is not None and before.patch_lengths is not None:
                lengths = np.concatenate([before.patch_lengths, row.patch_lengths])
            spans = None
            if row.spans is not None and before.spans is not None:
                spans = joined_spans([(before.spans, len(before.text)), (row.spans, len(row.text))])
            row = Row(row.id, row.subset, before.text + row.text, 0, lengths, spans=spans)
        documents.append(row)
    return documents


def document_numbers(source: Source) -> dict[int, int]:
    """The number in the dataset of each document, by its reference."""
    references = [documents.reference for documents in documents_in_order(source, 100)]
    return {reference: number for number, reference in enumerate(np.concatenate(references).tolist())}


def slices_of(pack: Pack) -> list[dict[str, list[int]]]:
    """What a pack holds for each of its slices, patches numbered from 0 in each."""
    found = []
    ends = np.cumsum(pack.in_slice)
    first_patch = 0
    for number, (low, high) in enumerate(zip(ends - pack.in_slice, ends)):
        one = {"ids": pack.ids[low:high].tolist(), "labels": pack.labels[low:high].tolist()}
        if pack.patches is not None:
            one["of_token"] = (pack.patches.of_token[low:high] - first_patch).tolist()
            one["of_decoder"] = (pack.patches.of_decoder[low:high] - first_patch).tolist()
            first_patch += int(pack.in_patches[number])
        found.append(one)
    return found


def expected_slice(row: Row, start: int, stop: int) -> dict[str, list[int]]:
    """A slice of inputs [start, stop) of a document, from the definitions, byte by byte."""
    tokens = row.tokens(True).tolist()
    trained = [True] * len(tokens)
    if row.spans is not None:
        trained = [True, *row.spans.target_mask().tolist(), row.spans.last_loss]
    boe = [BOE] if start else []
    wanted = {
        "ids": boe + tokens[start:stop],
        "labels": [IGNORED_LABEL] * len(boe)
        + [tokens[i] if trained[i] else IGNORED_LABEL for i in range(start + 1, stop + 1)],
    }
    if row.patch_lengths is not None:
        patch = np.repeat(np.arange(len(row.patch_lengths)), row.patch_lengths).tolist()  # of each token, EOS included
        shift = patch[start] - len(boe)
        wanted["of_token"] = [0] * len(boe) + [patch[i] - shift for i in range(start, stop)]
        wanted["of_decoder"] = [0] * len(boe) + [patch[i + 1] - 1 - shift for i in range(start, stop)]
    return wanted


def pack_digest(pack: Pack) -> str:
    """sha256 of everything a model or a metric reads of a pack; the same for every rank, worker and shard format."""
    step = pack.step
    content = hashlib.sha256(f"{pack.number} {step.number} {step.targets} {step.bytes} {pack.limits}".encode())
    arrays = [pack.ids, pack.labels, pack.in_slice, pack.subset, pack.slice_bytes, pack.slice_patches, pack.ended]
    arrays += [pack.slice_targets, pack.slice_text]
    if pack.subword_ids is not None:
        arrays += [pack.subword_ids, pack.subword_labels]
    if pack.patches is not None:
        arrays += [pack.patches.of_token, pack.patches.of_decoder, pack.in_patches]
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
