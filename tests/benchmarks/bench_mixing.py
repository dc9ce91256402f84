"""What mixing many subsets costs: `python tests/benchmarks/bench_mixing.py [MEGABYTES [SHARDS [MEAN [SHARD_BYTES]]]]`.

Datasets of 1, 100 and 5,000 subsets, each in every shard: two shards of 64 MB are written, and SHARDS are hard links to
them under names of their own. Packs of 16,384 tokens are planned and built in this process from MEGABYTES of text,
beginning at the first document. Prints packs a second, what planning alone takes, private memory, and bytes decoded
over bytes used. A process of its own for each number of subsets, so that memory is that of one.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.columns import BatchColumns
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.index import index_name
from shared.shards.manifest import DatasetIdentity
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.data.packing.planner import Planner
from trainer.data.packing.slices import SliceReader
from trainer.data.sampling.cursor import first_cursor
from trainer.data.sampling.schedule import Mixing

PATCHING = PatchingSettings(rule="static", stride=4, max_length=64)
SUBSETS, WRITTEN, TOKENS, STREAMS = (1, 100, 5000), 2, 16384, 64
DEFAULTS = (400, 16, 4000, 64 * 10**6)


def write(folder: Path, subsets: int, shards: int, mean: int, shard_bytes: int) -> None:
    """A dataset of ``shards`` shards with all subsets in each."""
    entries = []
    for number in range(min(WRITTEN, shards)):
        rng = np.random.default_rng(number)
        text = rng.choice(np.frombuffer(b"abcdefghijkl   \n", np.uint8), shard_bytes + 2**20).tobytes()
        rows, at = list[Row](), 0
        while at < shard_bytes:
            own = text[at : at + int(rng.exponential(mean))]
            at += len(own) + 1
            lengths = patch_lengths(document_tokens(own), PATCHING)
            rows.append(Row(str(len(rows)), f"{rng.integers(subsets):05d}", own, 0, lengths))
        entries.append(write_shard(folder, f"written-{number}", rows, "arrow"))
    linked = []
    for number in range(shards):
        entry = entries[number % len(entries)]
        name = f"shard-{number:05d}.arrow"
        os.link(folder / entry.name, folder / name)
        os.link(folder / index_name(entry.name), folder / index_name(name))
        linked.append(entry.model_copy(update={"name": name}))
    identity = DatasetIdentity(
        split="train", format="arrow", sidecar="none", patching=PATCHING, entropy_model=None, source="a benchmark"
    )
    commit_dataset(folder, identity, linked)


def private_bytes() -> int:
    """Memory of this process alone: RssAnon and RssShmem."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


class Counted(Dataset):
    """A dataset that counts the text that it decodes."""

    decoded = 0

    def batch(self, shard: int, batch: int) -> BatchColumns:
        columns = super().batch(shard, batch)
        self.decoded += int((columns.texts.ends - columns.texts.starts).sum())
        return columns


def measure(folder: Path, text_bytes: int) -> None:
    before = private_bytes()
    dataset = Counted(folder, open_dataset(folder).manifest)
    limits = pack_limits(dataset, TOKENS)
    for shard in range(dataset.shard_count):  # hashed and checked once, which is not what this measures
        dataset.shard_index(shard), dataset.batch_count(shard)
    planner = Planner(dataset, SliceReader(dataset), limits, Mixing(), first_cursor(dataset, 0, STREAMS))
    began, planned, packs = time.process_time(), 0, 0
    while planned < text_bytes:
        planned += planner.next_pack().bytes
        packs += 1
    planning = (time.process_time() - began) / packs
    del planner
    dataset.decoded = 0
    loader = iter(PackLoader(dataset, limits, packs_per_step=8, streams=STREAMS))
    began, used, packs, peak = time.process_time(), 0, 0, 0
    while used < text_bytes:
        used += int(next(loader).slice_text.sum())
        packs += 1
        peak = max(peak, private_bytes() - before)
    seconds = (time.process_time() - began) / packs
    print(
        f"{len(dataset.subset_names):>7,} {1 / seconds:8.0f} {used / packs / seconds / 1e6:8.1f} {planning * 1e3:10.2f}"
        f" {peak / 1e6:12.0f} {dataset.decoded / used:22.2f}"
    )


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--in":
        measure(Path(sys.argv[2]), int(sys.argv[3]))
        return
    given = tuple(map(int, sys.argv[1:]))
    megabytes, shards, mean, shard_bytes = given + DEFAULTS[len(given) :]
    print("subsets  packs/s     MB/s  planning ms   private MB   decoded / used bytes")
    for subsets in SUBSETS:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), subsets, shards, mean, shard_bytes)
            subprocess.run([sys.executable, __file__, "--in", folder, str(megabytes * 10**6)], check=True)


if __name__ == "__main__":
    main()
