"""Rows that run the programs: scored shards, two trainings and a resume, several ranks."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from infra.gpu.bench import ROOT, Bench
from infra.gpu.models import small_entropy_model, text
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens

STREAM = 512
STEPS, EVERY = 12, 6


def shards(bench: Bench) -> None:
    """One shard's documents scored alone, among others, and with another number of streams in flight."""
    texts = [text(length, seed=length) for length in (1, 700, 64, 129, 300, 2000, 5)]
    others = [text(length, seed=length) for length in (333, 90, 1500)]
    for dtype in ("float32", "bfloat16"):
        ways = {
            "one stream in flight": scored(bench, texts, [], dtype, 1),
            "two streams in flight": scored(bench, texts, [], dtype, 2),
            "among other documents": scored(bench, texts, others, dtype, 2),
        }
        digests = {name: shard_digest(bench, texts, found) for name, found in ways.items()}
        same = len(set(digests.values())) == 1
        apart = [name for name, digest in digests.items() if digest != digests["one stream in flight"]]
        found = f"{len(digests)} shards, the same bytes" if same else f"other bytes: {', '.join(apart)}"
        bench.found(f"entropies, {dtype}", found, same)


def scored(
    bench: Bench, texts: Sequence[bytes], others: Sequence[bytes], dtype: str, in_flight: int
) -> list[np.ndarray]:
    """Entropies of ``texts``, which stand behind ``others`` in the streams."""
    scorer = Scorer(small_entropy_model(), STREAM, dtype, bench.device, in_flight)  # type: ignore[arg-type]
    found = list(scorer.score([document_tokens(each) for each in (*others, *texts)]))
    return found[len(others) :]


def shard_digest(bench: Bench, texts: Sequence[bytes], entropies: Sequence[np.ndarray]) -> str:
    """Of the files of a shard with these patches and entropies."""
    rule = PatchingSettings(rule="entropy", theta=5.0, max_length=64)
    rows = [
        Row(f"document-{n}", "all", each, 0, patch_lengths(document_tokens(each), rule, found), found)
        for n, (each, found) in enumerate(zip(texts, entropies))
    ]
    folder = bench.folder / "shard"
    shutil.rmtree(folder, ignore_errors=True)
    write_shard(folder, "shard-00000", rows, "arrow", "float32")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def dataset(folder: Path) -> Path:
    """A folder with train/ and validation/ of static patches."""
    patching = PatchingSettings(rule="static", stride=4, max_length=64)
    counts: dict[Literal["train", "validation"], int] = {"train": 64, "validation": 8}
    for split, count in counts.items():
        texts = [text(20 + 37 * n % 400, seed=n) for n in range(count)]
        rows = [
            Row(f"{split}-{n}", "ab"[n % 2], each, 0, patch_lengths(document_tokens(each), patching))
            for n, each in enumerate(texts)
        ]
        entries = [write_shard(folder / split, f"shard-{n:05d}", rows[n::2], "arrow", "none") for n in range(2)]
        identity = DatasetIdentity(
            split=split, format="arrow", sidecar="none", patching=patching, entropy_model=None, source="gpu_check"
        )
        commit_dataset(folder / split, identity, entries)
    return folder


STACK = "{width = 64, layers = 2, heads = 2, feed_forward = 128}"


def train(bench: Bench, data: Path, out: Path, packs: int = 2, ranks: int | None = None) -> list[float]:
    """Run the trainer; the losses of its steps. Raises RuntimeError with its last line."""
    recipe = bench.folder / "recipe.toml"
    recipe.write_text(
        f"""[run]
out = "{out}"
steps = {STEPS}
device = "{bench.device.type}"
dtype = "{"bfloat16" if bench.cuda else "float32"}"
[data]
path = "{data}"
tokens = 1024
packs = {packs}
workers = 0
[model]
kind = "blt"
window = 64
ngrams = {{sizes = [3, 4], rows = 64}}
encoder = {STACK}
global = {STACK}
decoder = {STACK}
[optimizer]
lr = 3e-3
[checkpoint]
every = {EVERY}
[metrics]
log_every = 1
"""
    )
    command = [sys.executable, "-m", "trainer.main", str(recipe)]
    if ranks is not None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *launcher, str(ROOT / "trainer" / "main.py"), str(recipe)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"training ended with {ended.returncode}: {' '.join(last_words(ended.stderr))}")
    return list(losses(out))


def last_words(said: str) -> list[str]:
    """The last line of what a program said."""
    return [line.strip() for line in said.splitlines() if line.strip()][-1:]


def losses(out: Path) -> Iterator[float]:
    """Of a run's steps in order; those that were done again count once."""
    by_step = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        if "loss" in figures:
            by_step[figures["step"]] = figures["loss"]
    yield from (by_step[step] for step in sorted(by_step))


def runs(bench: Bench) -> None:
    """The same run twice, then the second half of it once more from its checkpoint."""
    data = dataset(bench.folder / "data")
    first, second = (bench.folder / name for name in ("first", "second"))
    wanted = train(bench, data, first)
    bench.found("loss of the first run", f"{wanted[0]:.4f} to {wanted[-1]:.4f} nats", wanted[-1] < wanted[0])
    again = train(bench, data, second)
    report_equal(bench, "the same run again", again, wanted, second, first)
    weights = (first / "model").rename(bench.folder / "model")
    newest = sorted((first / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    resumed = train(bench, data, first)
    report_equal(bench, f"resumed after step {EVERY}", resumed, wanted, first, weights.parent)


def report_equal(
    bench: Bench, what: str, found: Sequence[float], wanted: Sequence[float], run: Path, other: Path
) -> None:
    """Losses and weights: equal bit for bit is promised on a processor; on a GPU sums with atomics may differ."""
    apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    same = digest_of(run / "model") == digest_of(other / "model")
    ok = same if not bench.cuda else apart <= 0.02 * wanted[0]
    words = "the same bits" if same else "other bits in the weights"
    bench.found(what, f"{words}, losses differ by {apart:.1e} nats", ok, difference=apart, same=same)


def digest_of(folder: Path) -> str:
    """Of the weights in a model folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def nccl(bench: Bench) -> None:
    """As many ranks as there are GPUs (two on a processor, by gloo) against one rank."""
    ranks = torch.cuda.device_count() if bench.cuda else 2
    by = "NCCL" if bench.cuda else "gloo"
    data = dataset(bench.folder / "data")
    wanted = train(bench, data, bench.folder / "one", packs=ranks)
    found = train(bench, data, bench.folder / "several", packs=ranks, ranks=ranks)
    apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    allowed = (0.02 if bench.cuda else 1e-4) * wanted[0]
    what = f"{ranks} rank{'s' * (ranks > 1)} by {by} against one"
    bench.found(what, f"losses differ by {apart:.1e} nats, {allowed:.1e} allowed", apart <= allowed, difference=apart)
