"""What learning by rows saves and costs: python tests/benchmarks/bench_tables.py [BYTES [FACTOR...]]

1. A large table (6 x 200,000 rows of width 128) read by a step's tokens: bytes of gradient and state and time of a
   step, against the same table with a dense gradient and AdamW, in turns.
2. The small recipe with tables of 50,000 rows, trained on BYTES (100,000) of the Python standard library: bits per byte
   of held-out text with AdamW on dense gradients and with row-wise Adagrad at some FACTORs of the learning rate.

One thread; seconds are processor seconds of this process. Nothing is asserted.
"""

import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shared.batch import segments
from shared.config import load_recipe
from shared.model_files import build_model as empty_model
from shared.model_settings import NgramSettings
from shared.ngrams import NgramEmbedding
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.dataset import open_dataset
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, Manifest
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens
from trainer.data.limits import pack_limits
from trainer.data.loader import PackLoader
from trainer.data.validation import ValidationPacks
from trainer.distributed import World, started
from trainer.evaluate import evaluate, total_of
from trainer.optimizer import build_optimizer
from trainer.parallelize import build_model, fill, shard
from trainer.rowwise_adagrad import RowwiseAdagrad
from trainer.schedule import progress, rate
from trainer.settings import TableSettings, TrainSettings
from trainer.step import take_step
from trainer.tables import RowTables

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "trainer/recipes/blt-small.toml"
SOURCES = Path(sysconfig.get_path("stdlib"))
LARGE, WIDTH, TOKENS = NgramSettings(rows=200_000), 128, 4096
STEPS = 5
PATCHING = PatchingSettings(rule="space", max_length=64)
SPLITS = {"train": 1_500_000, "validation": 100_000}
"""Bytes of text."""


def documents() -> Iterator[tuple[str, bytes]]:
    """Modules of the standard library, in an order that says nothing."""
    for path in sorted(SOURCES.glob("*.py"), key=lambda path: path.name[::-1]):
        if text := path.read_bytes()[:30_000]:
            yield path.name, text


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def size(tensors: list[Tensor]) -> float:
    """Megabytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def of_a_step(world: World) -> None:
    """One table, both ways, in turns."""
    dense = NgramEmbedding(LARGE, WIDTH)
    adam = torch.optim.AdamW(dense.parameters(), lr=1e-3, fused=True, weight_decay=0.0)
    with torch.device("meta"):
        plain = NgramEmbedding(LARGE, WIDTH)
    tables = RowTables(plain, world.mesh, torch.float32).to_empty(device="cpu")
    nn.init.normal_(tables.weight.to_local())
    adagrad = RowwiseAdagrad({tables: 1.0}, 1e-3, TableSettings())
    text = b"".join(text for _, text in documents())
    held: dict[str, float] = {}

    def densely(ids: Tensor) -> None:
        dense(ids, segments([len(ids)])).square().sum().backward()
        assert dense.weight.grad is not None
        held["gradient, dense"] = size([dense.weight.grad])
        adam.step()
        adam.zero_grad()
        held["state, dense"] = size(list(adam.state[dense.weight].values()))

    def by_rows(ids: Tensor) -> None:
        tables(ids, segments([len(ids)])).square().sum().backward()
        tables.collect()
        assert tables.gradient is not None
        held["gradient, rows"] = size([tables.gradient.rows, tables.gradient.values])
        adagrad.step()
        adagrad.zero_grad()
        held["state, rows"] = size([value.to_local() for value in adagrad.state[tables.weight].values()])

    took: dict[str, list[float]] = {"dense": [], "rows": []}
    for step in range(STEPS + 1):
        ids = torch.from_numpy(document_tokens(text[step * TOKENS : (step + 1) * TOKENS]).astype(np.int64))
        for name, run in (("dense", densely), ("rows", by_rows)):
            took[name].append(seconds(lambda run=run, ids=ids: run(ids)))
    print(f"table of {size([dense.weight]):,.0f} MB, {TOKENS} tokens a step")
    for what in ("gradient", "state"):
        ours, theirs = held[f"{what}, rows"], held[f"{what}, dense"]
        print(f"  {what:9} {ours:8.1f} MB  dense AdamW {theirs:8.1f} MB  ratio {theirs / ours:8.1f}")
    ours, theirs = (float(np.median(took[name][1:])) * 1e3 for name in ("rows", "dense"))
    print(f"  {'step':9} {ours:8.1f} ms  dense AdamW {theirs:8.1f} ms  ratio {theirs / ours:8.1f}")


def write_data(folder: Path) -> None:
    """Modules in turn until each split has its bytes."""
    files = documents()
    for split, wanted in reversed(SPLITS.items()):
        rows: list[Row] = []
        while sum(len(row.text) for row in rows) < wanted:
            name, text = next(files)
            rows.append(Row(name, "code", text, 0, patch_lengths(document_tokens(text), PATCHING)))
        entry = write_shard(folder / split, "shard-00000", rows, "arrow")
        identity = DatasetIdentity(
            split=split, format="arrow", sidecar="none", patching=PATCHING, patcher=None, source="bench"
        )
        Manifest(identity=identity, shards=[entry]).save(folder / split)


def dense_model(settings: TrainSettings, world: World) -> nn.Module:
    """The same model with its tables left to FSDP."""
    with torch.device("meta"):
        model = empty_model(settings.model)
    shard(model, world, torch.float32, settings.parallel.keep_gathered)
    model.to_empty(device=world.device)
    fill(model, settings.run.seed)
    return model


def learnt(settings: TrainSettings, world: World, rows: bool) -> tuple[float, float]:
    """Bits per byte of the validation split after a run, and its processor seconds."""
    train, validation = (open_dataset(settings.data.path / split) for split in SPLITS)
    limits = pack_limits(train.manifest, settings.data.tokens)
    packs = iter(PackLoader(train, limits, settings.data.packs))
    model = build_model(settings, world) if rows else dense_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    step = targets = 0
    began = time.process_time()
    while progress(settings.run, step, targets) < 1:
        mine = [next(packs) for _ in range(settings.data.packs)]
        step, targets = step + 1, targets + mine[0].step.targets
        lr = settings.optimizer.lr * rate(settings.schedule, progress(settings.run, step, targets))
        batches = [pack.batch for pack in mine]
        take_step(model, optimizer, batches, mine[0].step.targets, world, lr, settings.optimizer.clip, [])
    took = time.process_time() - began
    return total_of(evaluate(model, ValidationPacks(validation, limits), world.device)).bits_per_byte, took


def of_a_run(world: World, folder: Path, length: int, factors: list[float]) -> None:
    """Bits per byte both ways."""
    print(f"small recipe with tables of 50,000 rows, {length:,} bytes of training")

    def one(name: str, rows: bool, *overrides: str) -> None:
        fixed = ["--data.path", str(folder), "--run.out", "unused", "--run.bytes", str(length)]
        fixed += ["--model.ngrams.rows", "50000", "--data.workers", "0"]
        score, took = learnt(load_recipe(RECIPE, [*fixed, *overrides], TrainSettings), world, rows)
        print(f"  {name:32} {score:.4f} bits/byte  {took:6.0f} s", flush=True)

    one("AdamW, dense gradient", False)
    for factor in factors:
        one(f"row-wise Adagrad, rate x {factor:g}", True, "--optimizer.tables.rate", str(factor))


def main() -> None:
    torch.set_num_threads(1)
    length = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    factors = [float(factor) for factor in sys.argv[2:]] or [1.0, 3.0, 10.0]
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        settings = load_recipe(RECIPE, ["--data.path", folder, "--run.out", folder], TrainSettings)
        with started(settings.run) as world:
            of_a_step(world)
            of_a_run(world, Path(folder), length, factors)


if __name__ == "__main__":
    main()
