"""What learning by rows saves and costs: python tests/benchmarks/bench_tables.py [BYTES [FACTOR...]] [--rows 200000]

1. Tables of 6 x 200,000 rows of width 128: bytes of gradient and state and time of a step, against the same with a
   dense gradient and AdamW, in turns; then the tables of the 1B model by rows alone.
2. The small recipe with tables of 6 x 50,000 rows, trained on BYTES (100,000) of the Python standard library: bits per
   byte of held-out text with both, their learning rate some FACTORs of the recipe's.

One thread; seconds are processor seconds of this process. Nothing is asserted.
"""

import argparse
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from shared.layers.batch import segments
from shared.layers.ngrams import NgramEmbedding
from shared.model_folder.files import build_model as empty_model
from shared.model_settings import NgramSettings
from shared.patching import PatchingSettings, patch_lengths
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens
from trainer.checkpoints.initial_weights import build_model
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.data.validation import ValidationPacks
from trainer.distributed.build import fill, shard
from trainer.distributed.row_sharded_tables import RowTables, local_rows
from trainer.distributed.world import World, started
from trainer.evaluation.documents import evaluate
from trainer.lr_schedule import progress, rate
from trainer.metrics.subset_score import total_of
from trainer.optim.optimizer import RowwiseAdagrad, build_optimizer
from trainer.optim.train_step import TrainStep, take_step
from trainer.settings import TableSettings, TrainSettings
from trainer.settings.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "trainer/recipes/blt-small.toml"
SOURCES = Path(sysconfig.get_path("stdlib"))
WIDTH, TOKENS = 128, 4096
STEPS = 5
ROWS = "row-wise Adagrad"
PATCHING = PatchingSettings(rule="space", max_length=64)
SPLITS: dict[Literal["train", "validation"], int] = {"train": 1_500_000, "validation": 100_000}
"""Bytes of text."""


def documents() -> Iterator[tuple[str, bytes]]:
    """Modules of the standard library, in an order that says nothing."""
    for path in sorted(SOURCES.glob("*.py"), key=lambda path: path.name[::-1]):
        if text := path.read_bytes()[:30_000]:
            yield path.name, text


def size(tensors: Sequence[Tensor]) -> float:
    """Megabytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


@dataclass
class Table:
    """One way to learn a table, and what it has held at most."""

    weight: Tensor
    learn: Callable[[Tensor], None]
    """From the token ids of a step."""
    gradient: float = 0.0
    """Megabytes, as the state."""
    state: float = 0.0
    times: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        return float(np.median(self.times[1:])) * 1e3


def dense_table(settings: NgramSettings, width: int) -> Table:
    """A gradient of the size of the table, and AdamW."""
    module = NgramEmbedding(settings, width)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True, weight_decay=0.0)

    def learn(ids: Tensor) -> None:
        module(ids, segments([len(ids)])).square().sum().backward()
        assert module.weight.grad is not None
        table.gradient = size([module.weight.grad])
        optimizer.step()
        optimizer.zero_grad()
        table.state = size(list(optimizer.state[module.weight].values()))

    table = Table(module.weight, learn)
    return table


def row_table(settings: NgramSettings, width: int, world: World) -> Table:
    """Touched rows, and row-wise Adagrad. Memory is not written here: rows that nobody reads then take none."""
    with torch.device("meta"):
        plain = NgramEmbedding(settings, width)
    module = RowTables(plain, world.mesh, torch.float32).to_empty(device="cpu")
    optimizer = RowwiseAdagrad({module: 1.0}, 1e-3, TableSettings())

    def learn(ids: Tensor) -> None:
        module(ids, segments([len(ids)])).square().sum().backward()
        module.collect()
        assert module.gradient is not None
        table.gradient = max(table.gradient, size([module.gradient.rows, module.gradient.values]))
        optimizer.step()
        optimizer.zero_grad()
        table.state = size([local_rows(value) for value in optimizer.state[module.weight].values()])

    table = Table(local_rows(module.weight), learn)
    return table


def take_turns(tables: Sequence[Table], tokens: int) -> None:
    """A few steps of each on the same text."""
    text = b"".join(text for _, text in documents())
    for step in range(STEPS + 1):
        ids = torch.from_numpy(document_tokens(text[step * tokens : (step + 1) * tokens]).astype(np.int64))
        for table in tables:
            began = time.process_time()
            table.learn(ids)
            table.times.append(time.process_time() - began)


def of_a_step(large: NgramSettings, world: World) -> None:
    """A table both ways, and the tables of the largest published model by rows alone."""
    ours, theirs = row_table(large, WIDTH, world), dense_table(large, WIDTH)
    ours.weight.normal_()
    take_turns([ours, theirs], TOKENS)
    print(f"tables of {size([theirs.weight]):,.0f} MB, {TOKENS:,} tokens a step")
    for what, unit in (("gradient", "MB"), ("state", "MB"), ("milliseconds", "ms")):
        rows, dense = getattr(ours, what), getattr(theirs, what)
        name = "step" if unit == "ms" else what
        print(f"  {name:9} {rows:8.1f} {unit}  dense AdamW {dense:8.1f} {unit}  ratio {dense / rows:6.1f}")
    largest = row_table(NgramSettings(), 1024, world)
    take_turns([largest], 2 * TOKENS)
    whole = size([largest.weight])
    print(f"tables of {whole:,.0f} MB (1B model), {2 * TOKENS:,} tokens a step")
    for what, rows, dense in (("gradient", largest.gradient, whole), ("state", largest.state, 2 * whole)):
        print(f"  {what:9} {rows:8.1f} MB  dense AdamW {dense:8.1f} MB (not made)  ratio {dense / rows:6.1f}")


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
            split=split, format="arrow", sidecar="none", patching=PATCHING, entropy_model=None, source="bench"
        )
        commit_dataset(folder / split, identity, [entry])


def dense_model(settings: TrainSettings, world: World) -> nn.Module:
    """The same model with its tables left to FSDP."""
    with torch.device("meta"):
        model = empty_model(settings.model)
    shard(model, world.mesh, torch.float32, settings.parallel.keep_gathered)
    model.to_empty(device=world.device)
    fill(model, settings.run.seed)
    return model


def trained(settings: TrainSettings, data: Path, world: World, rows: bool) -> tuple[float, float]:
    """Bits per byte of the validation split after a run, and its processor seconds."""
    train, validation = (open_dataset(data / split) for split in SPLITS)
    limits = pack_limits(train.manifest, settings.data.tokens)
    packs = iter(PackLoader(train, limits, settings.data.packs))
    model = build_model(settings, world) if rows else dense_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    step = targets = 0
    began = time.process_time()
    while progress(settings.run, step, targets) < 1:
        mine = [next(packs) for _ in range(settings.data.packs)]
        step, targets = step + 1, targets + mine[0].step.targets
        lr = settings.optimizer.lr * rate(settings.schedule, settings.run, step, targets)
        batches = [pack.batch for pack in mine]
        take_step(
            model, optimizer, TrainStep(batches, mine[0].step.targets, lr=lr, clip=settings.optimizer.clip), world
        )
    took = time.process_time() - began
    scores = evaluate(model, ValidationPacks(validation, limits), world.device)
    return total_of(scores.by_subset()).bits_per_byte, took


def of_a_run(world: World, folder: Path, length: int, factors: list[float]) -> None:
    """Bits per byte both ways."""
    print(f"small recipe with tables of 6 x 50,000 rows, {length:,} bytes of training")

    for factor in factors:
        for name, rows, key in (("AdamW, dense gradient", False, "rates.ngrams"), (ROWS, True, "tables.rate")):
            changes = ["--data.path", str(folder), "--run.out", "unused", "--run.bytes", str(length)]
            changes += ["--model.ngrams.rows", "50000", f"--optimizer.{key}", str(factor)]
            score, took = trained(load_recipe(RECIPE, changes, TrainSettings), folder, world, rows)
            print(f"  rate x {factor:<4g} {name:22} {score:.4f} bits/byte  {took:5.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bytes", type=int, nargs="?", default=100_000)
    parser.add_argument("factors", type=float, nargs="*", default=[1.0, 10.0, 20.0, 40.0])
    parser.add_argument("--rows", type=int, default=200_000, help="of each table of the first part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        settings = load_recipe(RECIPE, ["--data.path", folder, "--run.out", folder], TrainSettings)
        with started(settings.run) as world:
            of_a_step(NgramSettings(rows=arguments.rows), world)
            of_a_run(world, Path(folder), arguments.bytes, arguments.factors)


if __name__ == "__main__":
    main()
