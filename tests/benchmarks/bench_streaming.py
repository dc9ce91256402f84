"""Law 2 on real text: boundaries that a dataset stores against those found while the same documents are streamed.

python tests/benchmarks/bench_streaming.py [DATASET] [--bytes N]

DATASET is patched with a rule on entropy; by default it is what `make preprocess` leaves.

Documents are read one byte at a time, as generation reads them, in the dtype that the dataset records: every decision
that differs from the stored one is listed with how far its entropy is from the threshold. Then the same in bf16,
offline and streamed, where only the rate of differing decisions can be told.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from shared.incremental.documents import EntropyRows
from shared.model_folder.files import load_model
from shared.models.entropy_model import EntropyModel, entropy
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings, PatchStream, patch_lengths
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.manifest import ENTROPY_MODEL_FOLDER
from shared.shards.open import find_datasets, open_dataset
from shared.vocabulary import document_tokens

ROWS = 32
"""Documents streamed side by side."""


def documents(dataset: Dataset, most: int) -> Iterator[Row]:
    """Whole documents, up to ``most`` bytes of text."""
    total = 0
    for row in dataset.rows():
        total += len(row.text)
        if total > most:
            return
        yield row


@torch.inference_mode()
def streamed(model: EntropyModel, tokens: Sequence[np.ndarray]) -> list[np.ndarray]:
    """float32 [n + 1] nats of each document, one byte at a time; longest first, so that rows leave at the end."""
    order = sorted(range(len(tokens)), key=lambda number: -len(tokens[number]))
    rows, live = EntropyRows(model, len(tokens)), len(tokens)
    found = [np.zeros(len(tokens[number]) - 1, np.float32) for number in order]
    for place in range(len(found[0])):
        going = sum(len(scores) > place for scores in found[:live])
        if going < live:
            rows.select(range(going))
            live = going
        ids = torch.tensor([[int(tokens[number][place])] for number in order[:live]])
        values = entropy(rows.advance(ids))[:, 0].numpy()
        rows.accept([1] * live)
        for row, value in enumerate(values):
            found[row][place] = value
    return [found[order.index(number)] for number in range(len(tokens))]


def streamed_starts(tokens: np.ndarray, rule: PatchingSettings, entropies: np.ndarray) -> np.ndarray:
    """bool [N], as generation decides token by token."""
    stream = PatchStream(rule)
    starts = [stream.push(int(token), float(nats)) for token, nats in zip(tokens[:-1], entropies)]
    return np.array([True, *starts])


def starts_of(lengths: np.ndarray, count: int) -> np.ndarray:
    starts = np.zeros(count, bool)
    starts[np.cumsum(lengths) - lengths] = True
    return starts


def compare(dataset: Dataset, dtype: Literal["float32", "bfloat16"], most: int, stored: bool) -> None:
    identity = dataset.manifest.identity
    assert identity.entropy_model is not None
    assert identity.entropy_model.numerics is not None, "of a model that counts there is nothing to compare"
    model = load_model(dataset.folder / ENTROPY_MODEL_FOLDER, dtype=dtype)
    assert isinstance(model, EntropyModel)
    scorer = Scorer(model, identity.entropy_model.numerics.stream_length, dtype)
    rows, began = documents(dataset, most), time.perf_counter()
    decided = text_bytes = differing = far = 0
    largest = 0.0
    while batch := list(islice(rows, ROWS)):
        tokens = [document_tokens(row.text) for row in batch]
        offline = list(scorer.score(tokens))
        online = streamed(model, tokens)
        for row, ids, wanted, nats in zip(batch, tokens, offline, online):
            rule = identity.patching.for_subset(row.subset)
            lengths = row.patch_lengths if stored else patch_lengths(ids, rule, wanted)
            assert lengths is not None
            before, after = starts_of(lengths.astype(np.int64), len(ids)), streamed_starts(ids, rule, nats)
            text_bytes += len(row.text)
            decided += len(ids) - 2
            largest = max(largest, float(np.abs(wanted - nats).max()))
            # The last decision is about EOS, which the stored lengths hold like any other.
            places = np.flatnonzero(before != after)
            differing += len(places)
            for place in places if dtype == "float32" else ():
                assert rule.theta is not None
                distance = abs(float(nats[place - 1]) - rule.theta)
                far += distance >= 1e-4
                stored_as = "start" if before[place] else "no start"
                print(f"  {row.id} token {place}: stored as {stored_as}, |H - theta| {distance:.2e} nats")
    speed = text_bytes / (time.perf_counter() - began)
    rate = differing / max(decided, 1)
    print(
        f"{dataset.folder.name} {dtype}: {text_bytes:,} bytes, {decided:,} decisions, {differing} differ ({rate:.2e}), "
        + (f"{far} of them further than 1e-4 from theta, " if dtype == "float32" else "")
        + f"largest difference of entropies {largest:.1e} nats, {speed:,.0f} bytes/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?", default=Path("runs/stdlib/patched"))
    parser.add_argument("--bytes", type=int, default=60_000, help="of text, from the beginning of each split")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.dataset.exists():
        print(f"{arguments.dataset} is not there: `make preprocess` makes it")
        return
    for folder in find_datasets(arguments.dataset):
        dataset = open_dataset(folder)
        recorded = dataset.manifest.identity.entropy_model
        if recorded is None or not dataset.manifest.identity.patching.needs_entropy:
            raise SystemExit(f"{folder}: rule {dataset.manifest.identity.patching.rule!r} needs no entropies")
        for dtype in ("float32", "bfloat16"):
            compare(dataset, dtype, arguments.bytes, stored=recorded.dtype == dtype)


if __name__ == "__main__":
    main()
