"""How fast packs are planned, built and delivered.

    python tests/benchmarks/bench_loader.py [MEGABYTES] [--datasets PYTHON]

One process reads one pass from cold shards, of both formats, in packs of 16384 tokens, 8 a step; beside it pyarrow
decodes the same Arrow shards, and the package webdataset reads the others. Documents of 4 kB, 1 kB and 250 bytes on
average in three subsets, space patches. CPU seconds of this process, so that other work on the machine counts little;
what a worker delivers, as tensors in this process, is in elapsed time: that wants two idle cores.

PYTHON: an interpreter that has datasets, torch and webdataset. There one worker of a DataLoader reads the same shards
and sends the texts of as many documents as make 16384 bytes as one tensor: without order, patches, labels or a state
to resume from, but for the order of `datasets` map style, whose documents come shuffled.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, ShardFormat
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

PATCHING = PatchingSettings(rule="space", max_length=64)
MEAN_BYTES, SHARDS, TOKENS, LANES, RANKS = (4000, 1000, 250), 4, 16384, 64, (8, 64, 512)
PEERS = """
import sys, time
import datasets, torch, webdataset
from torch.utils.data import DataLoader
datasets.disable_progress_bars()
what, folder, together = sys.argv[1], sys.argv[2], int(sys.argv[3])

def texts(key):
    return lambda rows: torch.frombuffer(bytearray(b"".join(row[key] for row in rows)), dtype=torch.uint8)

if what == "webdataset":
    import glob
    data, key = webdataset.WebDataset(sorted(glob.glob(folder + "/*.tar")), shardshuffle=False), "bytes"
else:
    streaming, key = what == "streaming", "text"
    where = {"data_files": folder + "/*.arrow", "cache_dir": folder + "/hf"}
    data = datasets.load_dataset("arrow", split="train", streaming=streaming, **where)
    data = data.select_columns(["text"])
shuffle = {"shuffle": True} if what == "map" else {}
loader = iter(DataLoader(data, together, num_workers=1, collate_fn=texts(key), **shuffle))
for _ in range(4):
    next(loader)
began, text = time.perf_counter(), 0
for batch in loader:
    text += len(batch)
print(text / (time.perf_counter() - began) / 1e6)
"""


def documents(megabytes: int, mean: int) -> list[Row]:
    rng = np.random.default_rng(0)
    alphabet = np.frombuffer(b"abcdefghijkl   \n", np.uint8)
    rows, held = list[Row](), 0
    while held < megabytes * 10**6:
        text = rng.choice(alphabet, int(rng.exponential(mean))).tobytes()
        rows.append(Row(str(len(rows)), "abc"[len(rows) % 3], text, 0, patch_lengths(document_tokens(text), PATCHING)))
        held += len(text)
    return rows


def write(folder: Path, rows: list[Row], format: ShardFormat) -> Dataset:
    shards = [write_shard(folder, f"shard-{n:05d}", rows[n::SHARDS], format) for n in range(SHARDS)]
    identity = DatasetIdentity(
        split="train", format=format, sidecar="none", patching=PATCHING, entropy_model=None, source="a benchmark"
    )
    commit_dataset(folder, identity, shards)
    return open_dataset(folder)


def report(what: str, began: float, text_bytes: int) -> float:
    seconds = time.process_time() - began
    print(f"{what:<46} {text_bytes / seconds / 1e6:8.1f} MB/s of text")
    return seconds


def decode(dataset: Dataset) -> float:
    """Every record batch by pyarrow alone."""
    began, text = time.process_time(), 0
    for shard in dataset.shards():
        options = pa.ipc.IpcReadOptions(use_threads=False)
        reader = pa.ipc.open_file(pa.memory_map(str(dataset.folder / shard.name)), options=options)
        for batch in range(reader.num_record_batches):
            text += pa.compute.binary_length(reader.get_batch(batch).column("text")).to_numpy().sum()
    return report("plain pyarrow, zstd Arrow", began, int(text))


def plan(dataset: Dataset) -> None:
    limits = pack_limits(dataset.manifest, TOKENS)
    planner = Planner(dataset, SliceReader(dataset), limits, Mixing(), first_cursor(dataset, 0, LANES))
    whole = dataset.manifest.totals.bytes
    began, text = time.process_time(), 0
    while text < whole:
        text += planner.next_pack().bytes
    report("planning, with cuts", began, text)


def load(dataset: Dataset, what: str, batches: bool) -> float:
    """One pass in this process, from shards that it has not checked yet; batches: as tensors, too."""
    dataset = open_dataset(dataset.folder)
    limits, whole = pack_limits(dataset.manifest, TOKENS), dataset.manifest.totals.bytes
    packs = iter(PackLoader(dataset, limits, packs_per_step=8, streams=LANES))
    began, text = time.process_time(), 0
    while text < whole:
        pack = next(packs)
        text += int(pack.slice_text.sum())
        assert not batches or len(pack.batch.ids) == TOKENS
    return report(what, began, text)


def one_of_many(dataset: Dataset) -> None:
    """What one process builds as a rank of R, which plans the packs of all; and what the state after a step costs."""
    limits = pack_limits(dataset.manifest, TOKENS)
    for ranks in RANKS:
        packs = iter(loader := PackLoader(dataset, limits, max(ranks, 8), streams=LANES, ranks=ranks))
        for _ in range(16):
            next(packs)
        began, text = time.process_time(), 0
        for _ in range(max(1024 // ranks, 16)):
            text += int(next(packs).slice_text.sum())
        report(f"packs of one of {ranks} ranks", began, text)
    began = time.process_time()
    for _ in range(100):
        loader.cursor.model_dump_json()
    print(f"{'the state after a step, as it is saved':<46} {(time.process_time() - began) * 1e4:8.0f} us")


def deliver(dataset: Dataset, what: str) -> None:
    """Two passes as tensors in this process, built by one worker.

    In the first one shards are checked and batches decoded, as ever of a large corpus; the second finds many in the
    256 MB that a reader keeps. What the worker does until it is at work is left out.
    """
    dataset = open_dataset(dataset.folder)
    limits, whole = pack_limits(dataset.manifest, TOKENS), dataset.manifest.totals.bytes
    packs = iter(PackLoader(dataset, limits, packs_per_step=8, streams=LANES, workers=1))
    for _ in range(16):
        next(packs)
    for number in ("first", "second"):
        began, text = time.perf_counter(), 0
        while text < whole:
            pack = next(packs)
            text += int(pack.slice_text.sum())
            assert len(pack.batch.ids) == TOKENS
        seconds = time.perf_counter() - began
        print(
            f"{f'delivered by a worker, {what}, {number} pass':<46} {text / seconds / 1e6:8.1f} MB/s of text, elapsed"
        )


def plain_webdataset(dataset: Dataset) -> None:
    """Every text by the package webdataset alone, in this process."""
    import webdataset

    shards = [str(dataset.folder / shard.name) for shard in dataset.shards()]
    began, text = time.process_time(), 0
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        text += len(sample["bytes"])
    report("plain webdataset", began, text)


def peer(python: str, what: str, dataset: Dataset, mean: int) -> None:
    """What one worker of a DataLoader delivers from the same shards by another library."""
    command = [python, "-c", PEERS, what, str(dataset.folder), str(max(TOKENS // mean, 1))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what}: {done.stderr.strip().splitlines()[-1]}")
    name = "webdataset" if what == "webdataset" else f"datasets, {what}"
    print(f"{'by a DataLoader, ' + name:<46} {float(done.stdout.split()[-1]):8.1f} MB/s of text, elapsed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", nargs="?", type=int, default=40)
    parser.add_argument("--datasets", metavar="PYTHON")
    options = parser.parse_args()
    for mean in MEAN_BYTES:
        print(f"documents of about {mean:,} bytes")
        rows = documents(options.megabytes, mean)
        with tempfile.TemporaryDirectory() as folder:
            arrow = write(Path(folder) / "arrow", rows, "arrow")
            tar = write(Path(folder) / "webdataset", rows, "webdataset")
            plain = decode(arrow)
            plain_webdataset(tar)
            plan(arrow)
            packed = load(arrow, "packs, zstd Arrow", batches=False)
            load(arrow, "packs and batches, zstd Arrow", batches=True)
            one_of_many(arrow)
            deliver(arrow, "zstd Arrow")
            for what in ("streaming", "map") if options.datasets else ():
                peer(options.datasets, what, arrow, mean)
            load(tar, "packs, WebDataset", batches=False)
            deliver(tar, "WebDataset")
            if options.datasets:
                peer(options.datasets, "webdataset", tar, mean)
            print(f"packs cost {packed / plain:.1f} times what decoding alone does")


if __name__ == "__main__":
    main()
