"""How fast packs are planned, built and handed out: `python tests/benchmarks/bench_loader.py`.

One thread, documents of about 2 kB in three subsets, space patches, packs of 8192 tokens, 8 packs a step.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset, open_dataset
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, Manifest
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens
from trainer.data.catalogue import catalogue_of
from trainer.data.cursor import first_cursor
from trainer.data.limits import pack_limits
from trainer.data.loader import PackLoader
from trainer.data.plan import Planner
from trainer.data.schedule import Mixing
from trainer.data.slices import SliceReader

PATCHING = PatchingSettings(rule="space", max_length=64)
DOCUMENTS, MEAN_BYTES, SHARDS = 5000, 2000, 4
TOKENS, PACKS = 8192, 1000


def example(folder: Path) -> Dataset:
    rng = np.random.default_rng(0)
    alphabet = np.frombuffer(b"abcdefghijkl   \n", np.uint8)
    rows = []
    for number in range(DOCUMENTS):
        text = rng.choice(alphabet, int(rng.exponential(MEAN_BYTES))).tobytes()
        rows.append(Row(str(number), "abc"[number % 3], text, 0, patch_lengths(document_tokens(text), PATCHING)))
    shards = [write_shard(folder, f"shard-{n:05d}", rows[n::SHARDS], "arrow") for n in range(SHARDS)]
    identity = DatasetIdentity(
        split="train", format="arrow", sidecar="none", patching=PATCHING, patcher=None, source="a benchmark"
    )
    Manifest(identity=identity, shards=shards).save(folder)
    return open_dataset(folder)


def report(what: str, seconds: float, text_bytes: int) -> None:
    print(f"{what:<28} {seconds / PACKS * 1e6:8.0f} us/pack {text_bytes / seconds / 1e6:8.1f} MB/s of text")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = example(Path(folder))
        limits = pack_limits(dataset.manifest, TOKENS)
        catalogue = catalogue_of(dataset)
        reader = SliceReader(dataset, catalogue)
        planner = Planner(catalogue, reader, limits, Mixing(), first_cursor(dataset, 0, 64))
        planner.next_pack()
        began = time.perf_counter()
        text = sum(planner.next_pack().bytes for _ in range(PACKS))
        report("planning alone", time.perf_counter() - began, text)
        for workers in (0, 1, 2):
            packs = iter(PackLoader(dataset, limits, packs_per_step=8, workers=workers))
            next(packs)
            began = time.perf_counter()
            text, fill = 0, []
            for _ in range(PACKS):
                pack = next(packs)
                assert len(pack.batch.ids) == TOKENS
                text += int(pack.slice_bytes.sum())
                fill.append((pack.token_fill, pack.patch_fill))
            report(f"loading, {workers} workers", time.perf_counter() - began, text)
        token_fill, patch_fill = np.mean(fill, axis=0)
        print(f"fill: {token_fill:.1%} of tokens, {patch_fill:.1%} of patches")


if __name__ == "__main__":
    main()
