"""Counting beside the entropy transformer: seconds to build, MB/s to score, and what a large corpus takes.

python tests/benchmarks/bench_counts.py [--megabytes 20] [--memory 1024] [--workers 1] [--scored 1000000]

A generated corpus of so many megabytes is counted in processes of their own (`python -m pipeline count`): seconds, CPU
seconds, most private memory of the driver and of a worker, temporary disk at its largest. --random of its
bytes are letters at random, the others words of a few thousand with frequencies as in text: 2000 megabytes have more
than 10^8 distinct contexts. Then documents of it are scored by the table, and the first of
them by a transformer of the default size (its weights do not matter to its speed), in turn, in one thread of this
process: MB/s by CPU time, the median of three.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline.counting.made_by import load_counts_making
from shared.counts.files import load_counts
from shared.counts.scorer import CountScorer
from shared.model_settings import EntropyModelSettings
from shared.models.entropy_model import EntropyModel
from shared.models.initialise import initialise
from shared.models.scoring import Scorer
from shared.vocabulary import document_tokens

TRANSFORMER = EntropyModelSettings(width=192, layers=2, heads=4, feed_forward=512, window=128)
DOCUMENT, FILE = 4096, 2**26
"""Bytes of a document, and about of a file."""
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", np.uint8)
ROUNDS = 3


def document(rng: np.random.Generator, words: list[bytes], random: float) -> bytes:
    """Words with frequencies as in text, then a share of letters at random."""
    picks = np.minimum(rng.zipf(1.3, DOCUMENT // 3), len(words)) - 1
    text = b" ".join(words[pick] for pick in picks.tolist())[: int(DOCUMENT * (1 - random))]
    return text + rng.choice(LETTERS, DOCUMENT - len(text)).tobytes()


def generated(folder: Path, size: int, random: float) -> list[Path]:
    """Files of JSON lines with so many bytes of text."""
    rng = np.random.default_rng(0)
    words = [rng.choice(LETTERS[:26], rng.integers(2, 10)).tobytes() for _ in range(5000)]
    paths: list[Path] = []
    for begin in range(0, size, FILE):
        paths.append(folder / f"{len(paths):03d}.jsonl")
        with paths[-1].open("w") as file:
            for _ in range(-(-min(FILE, size - begin) // DOCUMENT)):
                file.write(json.dumps({"text": document(rng, words, random).decode()}) + "\n")
    return paths


class Watch:
    """The most private memory of a process and of the largest that it has started, and the most bytes in a folder."""

    def __init__(self, process: int, folder: Path) -> None:
        self.driver = self.worker = self.disk = 0
        self._process, self._folder, self._ended = process, folder, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.driver = max(self.driver, _private(self._process))
            for children in Path(f"/proc/{self._process}/task").glob("*/children"):
                try:
                    own = [int(number) for number in children.read_text().split()]
                except OSError:
                    continue
                self.worker = max([self.worker, *map(_private, own)])
            self.disk = max(self.disk, _size(self._folder))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def _private(process: int) -> int:
    """Bytes that are no page of a file; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def _size(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_size
        except OSError:  # was removed meanwhile
            continue
    return found


def build(inputs: Path, out: Path, memory: int, workers: int) -> None:
    """Count, and print what it took."""
    words = ["--executor", "inline", "--workers", str(workers), "--memory", str(memory)]
    line = [sys.executable, "-m", "pipeline", "count", str(inputs), "--out", str(out), *words]
    began, before = time.monotonic(), os.times()
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watch = Watch(process.pid, out / "counting")
        summary, said = process.communicate()
        watch.end()
    if process.returncode:
        raise SystemExit(said)
    after, making = os.times(), load_counts_making(out)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    seconds = time.monotonic() - began
    print(f"count: {making.bytes:,} bytes in {seconds:.1f} s, {cpu:.1f} CPU s, {making.bytes / cpu / 1e6:.2f} MB/CPU s")
    print(
        f"  memory: driver {watch.driver / 2**20:.0f} MiB, a worker {watch.worker / 2**20:.0f} MiB, --memory {memory}"
    )
    kept = sum(making.contexts_by_order[1:])
    print(f"  temporary disk {watch.disk / 1e9:.2f} GB; {kept:,} of {making.distinct:,} distinct contexts kept")
    print(f"  {summary.splitlines()[-1].strip()}")


def score(table: Path, paths: list[Path], size: int) -> None:
    """Score some documents in both ways, and print how fast each was."""
    texts: list[bytes] = []
    with paths[0].open() as file:
        for line in file:
            texts.append(json.loads(line)["text"].encode())
            if len(texts) * DOCUMENT >= size:
                break
    documents = [document_tokens(text) for text in texts]
    torch.set_num_threads(1)
    network = EntropyModel(TRANSFORMER)
    initialise(network, 0)
    ways: dict[str, tuple[Callable[[], object], int]] = {}
    few = documents[: max(len(documents) // 20, 1)]
    counts, scorer = CountScorer(load_counts(table)), Scorer(network.eval(), 4096)
    ways["counts"] = lambda: [*counts.score(documents)], sum(map(len, documents))
    ways["transformer"] = lambda: [*scorer.score(few)], sum(map(len, few))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (way, _) in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    for name, (_, tokens) in ways.items():
        print(f"score, {name}: {tokens / statistics.median(seconds[name]) / 1e6:.3f} MB/s by CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--random", type=float, default=0.1, help="share of bytes that are letters at random")
    parser.add_argument("--scored", type=int, default=1_000_000, help="bytes that are scored")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "text").mkdir()
        paths = generated(folder / "text", int(given.megabytes * 1e6), given.random)
        print(f"{given.megabytes:g} MB of text in {len(paths)} files")
        build(folder / "text", folder / "counts", given.memory, given.workers)
        score(folder / "counts", paths, given.scored)


if __name__ == "__main__":
    main()
