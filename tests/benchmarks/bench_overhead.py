"""What the trainer adds to a step: the bare model against the whole loop with loader, figures and logging.

    python tests/benchmarks/bench_overhead.py [ROUNDS]

Both train the small BLT of the recipe on this repository's sources, on one rank and one thread, in turn, a step each on
the same packs. Bare: forward, loss, backward, clipping and the optimizers of a model without FSDP, on packs that are
ready. Step: the trainer's model and step on the same. Whole: what a run does for a step, with
packs from a loading process, the guard, and a line of metrics, TensorBoard and progress after every step. Seconds are
those that this process worked, by its own clock.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from bench_train import ROOT, sources

from shared.layers.batch import Batch
from shared.layers.blocks import DTYPES
from shared.model_folder.files import build_model as plain_model
from shared.models.blt import Blt
from shared.vocabulary import IGNORED_LABEL
from trainer.checkpoints.initial_weights import build_model
from trainer.data.loader import PackLoader
from trainer.data.run_data import RunData
from trainer.distributed.build import fill
from trainer.distributed.row_sharded_tables import RowTables, row_tables
from trainer.distributed.world import World, started
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import TrainStep, clip, predict, take_step
from trainer.provenance.identity import run_identity
from trainer.run.job import Job
from trainer.run.loop import end_interval, one_step
from trainer.run.setup import callback_classes, prepare
from trainer.run.stopping import StopRequest
from trainer.settings import TrainSettings
from trainer.settings.recipe import load_recipe

WARM_UP = 2


def bare(settings: TrainSettings, world: World) -> Callable[[Sequence[Batch]], None]:
    """A step of the plain model on ready batches."""
    with torch.device("meta"):
        model = plain_model(settings.model)
    assert isinstance(model, Blt)
    model.ngrams = RowTables(model.ngrams, world.mesh, DTYPES[settings.run.dtype])
    model.to_empty(device=world.device)
    fill(model, settings.run.seed)
    optimizer = build_optimizer(model, settings.optimizer)
    (tables,) = row_tables(model)

    def step(batches: Sequence[Batch]) -> None:
        for batch in batches:
            moved = batch.to(world.device)
            logits = predict(model, moved)
            F.cross_entropy(logits, moved.labels, ignore_index=IGNORED_LABEL, reduction="mean").backward()
        tables.collect()
        clip(model, settings.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainers(settings: TrainSettings, world: World) -> Callable[[Sequence[Batch]], None]:
    """The same for the trainer's own model and step, without its loop."""
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)

    def step(batches: Sequence[Batch]) -> None:
        targets = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
        gathered = settings.parallel.keep_gathered
        take_step(
            model,
            optimizer,
            TrainStep(batches, targets, lr=1e-3, clip=settings.optimizer.clip, keep_gathered=gathered),
            world,
        )

    return step


def whole(job: Job) -> Callable[[], None]:
    """A step of the loop, with its figures."""
    packs, stop = iter(job.loader), StopRequest()
    callbacks = [made(job) for made in callback_classes(job.settings)]
    for callback in callbacks:
        callback.on_run_start()

    def step() -> None:
        one_step(job, callbacks, packs, stop)
        end_interval(job, callbacks)

    return step


def main() -> None:
    """Print seconds of both and their ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "validation"):
            sources(Path(folder) / split)
        overrides = ["--data.path", folder, "--run.out", f"{folder}/run", "--run.dtype", "float32"]
        overrides += ["--data.workers", "1"]
        settings = load_recipe(ROOT / "trainer/recipes/blt-small.toml", overrides, TrainSettings)
        with started(settings.run) as world:
            seconds = alternate(settings, world, rounds)
    means = {name: sum(taken) / rounds for name, taken in seconds.items()}
    least = {name: min(taken) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        ratio = median(own / base for own, base in zip(taken, seconds["bare"]))
        words = f"{1000 * means[name]:8.1f} ms a step in the mean of {rounds}, {1000 * least[name]:.1f} at least"
        print(f"{name:8s}{words}; of bare {ratio:.3f} in the median, {least[name] / least['bare']:.3f} at least")


def alternate(settings: TrainSettings, world: World, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of both."""
    data = RunData(settings.data, settings.model.patch_credit)
    job = prepare(settings, data, run_identity(settings, data), world)
    bare_step, trainer_step, whole_step = bare(settings, world), trainers(settings, world), whole(job)
    ready = iter(PackLoader(data.train, job.loader.limits, settings.data.packs, streams=settings.data.streams))
    seconds: dict[str, list[float]] = {"bare": [], "step": [], "whole": []}
    for number in range(WARM_UP + rounds):
        batches = [next(ready).batch for _ in range(settings.data.packs)]
        works: tuple[Callable[[], None], ...] = (
            partial(bare_step, batches),
            partial(trainer_step, batches),
            whole_step,
        )
        for name, work in zip(seconds, works):
            began = time.process_time()
            work()
            if number >= WARM_UP:
                seconds[name].append(time.process_time() - began)
    job.monitor.close()
    return seconds


if __name__ == "__main__":
    main()
