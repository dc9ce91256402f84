"""Muon against AdamW on the small BLT of the recipe: what a step costs, and bits per byte after equal bytes.

    python tests/benchmarks/bench_optimizers.py [--steps 60] [--lr 3e-3 1e-3 ...]

Both see the same packs of this repository's own sources, each byte once, so that the loss of a step is that of text not
seen before. Costs are CPU time of this process on one thread, taken alternately, as ratios to AdamW. Nothing is
asserted.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from bench_train import ROOT, sources

from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset
from trainer.checkpoints.initial_weights import build_model
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.data.packing.packs import Pack
from trainer.distributed.world import World, started
from trainer.lr_schedule import rate
from trainer.metrics.subset_score import bits_per_byte
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import TrainStep, take_step
from trainer.settings import TrainSettings
from trainer.settings.recipe import load_recipe

KINDS = ("adamw", "muon")
LAST = 0.25
"""Share of the steps that the figure is taken over."""


@dataclass
class Learner:
    """One model as it learns."""

    settings: TrainSettings
    world: World
    data: Dataset
    steps: float = 0.0
    """CPU seconds of whole steps."""
    updates: list[float] = field(default_factory=list)
    """CPU seconds of each step's update."""
    nats: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    targets: int = 0

    def __post_init__(self) -> None:
        self.model = build_model(self.settings, self.world)
        self.optimizer = build_optimizer(self.model, self.settings.optimizer)
        limits = pack_limits(self.data.manifest, self.settings.data.tokens)
        self.packs: Iterator[Pack] = iter(PackLoader(self.data, limits, 1))
        update = self.optimizer.step

        def timed() -> None:
            began = time.process_time()
            update()
            self.updates.append(time.process_time() - began)

        self.optimizer.step = timed  # type: ignore[method-assign]

    def step(self) -> None:
        """Learn from the next pack."""
        pack = next(self.packs)
        assert pack.step is not None
        self.targets += pack.step.targets
        lr = self.settings.optimizer.lr * rate(
            self.settings.schedule, self.settings.run, len(self.nats) + 1, self.targets
        )
        began = time.process_time()
        found = take_step(self.model, self.optimizer, TrainStep([pack.batch], pack.step.targets, lr=lr), self.world)
        self.steps += time.process_time() - began
        self.nats.append(found.nats)
        self.bytes.append(pack.step.bytes)

    @property
    def bits(self) -> float:
        """Bits per byte over the last part of the steps."""
        last = round(len(self.nats) * LAST)
        return bits_per_byte(sum(self.nats[-last:]), sum(self.bytes[-last:]))


def main() -> None:
    """Print a line for each learning rate and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(sources(Path(folder) / "train"))
        for lr in options.lr:
            learners = {}
            for kind in KINDS:
                overrides = ["--data.path", folder, "--run.out", folder, "--run.steps", str(options.steps)]
                overrides += ["--optimizer.lr", str(lr), "--optimizer.matrices", kind, "--schedule.warmup", "0.1"]
                recipe = load_recipe(ROOT / "trainer/recipes/blt-small.toml", overrides, TrainSettings)
                run = recipe.run.model_copy(update={"bytes": None})
                learners[kind] = recipe.model_copy(update={"run": run})
            with started(learners["adamw"].run) as world:
                both = {kind: Learner(settings, world, data) for kind, settings in learners.items()}
                for _ in range(options.steps):
                    for learner in both.values():
                        learner.step()
            plain = both["adamw"]
            for kind, learner in both.items():
                update = float(np.median(learner.updates))
                print(
                    f"lr {lr:g}  {kind:6s} {learner.bits:.3f} bits/byte over the last quarter of "
                    f"{sum(learner.bytes) / 1e3:.0f} kB   step {learner.steps / plain.steps:.2f} of AdamW's   "
                    f"update {update / float(np.median(plain.updates)):.1f} of AdamW's, "
                    f"{sum(learner.updates) / learner.steps:.0%} of its step"
                )


if __name__ == "__main__":
    main()
