"""How fast the small BLT of the recipe trains: bytes a second of one rank on one thread, and what each addition costs.

    python tests/benchmarks/bench_train.py

Rates are by CPU time of this process, with ratios to the plain unsharded model of the same run, since machines differ.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared.layers.batch import Batch
from shared.model_folder.files import build_model as plain_model
from shared.models.initialise import initialise
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
from trainer.distributed.world import World, started
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import TrainStep, backward, take_step
from trainer.settings import TrainSettings
from trainer.settings.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PATCHING = PatchingSettings(rule="space", max_length=64)
STEPS = 4


@dataclass
class Case:
    """One way to train."""

    name: str
    overrides: tuple[str, ...]
    sharded: bool = True


CASES = (
    Case("plain model, no FSDP, no update", (), sharded=False),
    Case("FSDP2 on one rank, clip and AdamW", ()),
    Case("... with activation checkpointing", ("--parallel.activation_checkpointing", "full")),
    Case("... in bfloat16", ("--run.dtype", "bfloat16")),
)


def sources(folder: Path) -> Path:
    """This repository's own sources as a patched dataset."""
    rows = []
    for path in sorted(ROOT.glob("*/*.py")):
        text = path.read_bytes()
        if text:
            rows.append(Row(str(path), "code", text, 0, patch_lengths(document_tokens(text), PATCHING)))
    entry = write_shard(folder, "shard-00000", rows, "arrow")
    identity = DatasetIdentity(
        split="train", format="arrow", sidecar="none", patching=PATCHING, entropy_model=None, source="bench"
    )
    commit_dataset(folder, identity, [entry])
    return folder


def measure(case: Case, data: Path, world: World) -> float:
    """Bytes of text a second of CPU time."""
    overrides = ["--data.path", str(data), "--run.out", "unused", *case.overrides]
    settings = load_recipe(ROOT / "trainer/recipes/blt-small.toml", overrides, TrainSettings)
    dataset = open_dataset(data)
    packs = iter(PackLoader(dataset, pack_limits(dataset.manifest, settings.data.tokens), 1))
    model: nn.Module
    if case.sharded:
        model = build_model(settings, world)
    else:
        model = plain_model(settings.model)
        initialise(model, 0)
    optimizer = build_optimizer(model, settings.optimizer)

    def one(batch: Batch, targets: int) -> None:
        if case.sharded:
            take_step(model, optimizer, TrainStep([batch], targets, lr=1e-3), world)
        else:
            backward(model, [batch], targets, world)
            optimizer.zero_grad()

    rates = []
    for number in range(STEPS + 1):
        pack = next(packs)
        batch = pack.batch
        began = time.process_time()
        one(batch, pack.step.targets)
        if number:  # the first one warms up
            rates.append(pack.step.bytes / (time.process_time() - began))
    return float(np.median(rates))


def main() -> None:
    """Print one line a case."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = sources(Path(folder) / "train")
        settings = load_recipe(
            ROOT / "trainer/recipes/blt-small.toml", ["--data.path", folder, "--run.out", folder], TrainSettings
        )
        with started(settings.run) as world:
            base = None
            for case in CASES:
                rate = measure(case, data, world)
                base = base or rate
                print(f"{case.name:40s} {rate / 1e3:6.1f} kB/s  {rate / base:5.2f} of plain")


if __name__ == "__main__":
    main()
