"""What the trainer adds to a step: the bare model against the whole loop with loader, figures and logging.

    python tests/benchmarks/bench_overhead.py [ROUNDS]

Both train the small BLT of the recipe on this repository's sources, on one rank and one thread, in turn, a step each.
Bare: forward, loss, backward, clipping and AdamW of the plain model on packs that are ready; its n-gram tables learn
by the same optimizer as the trainer's. Whole: what `trainer/main.py` does for a step, its line of metrics, TensorBoard
and progress included. Seconds are those of this process's own work, the packs' loading in it too.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_train import ROOT, sources
from torch import nn

from shared.batch import Batch
from shared.config import load_recipe
from shared.initialise import initialise
from shared.model_files import build_model as plain_model
from trainer.data.loader import PackLoader
from trainer.identity import run_identity
from trainer.job import prepare
from trainer.learning.optimizer import build_optimizer
from trainer.learning.step import predict
from trainer.loop import Job, one_step
from trainer.parallel.world import started
from trainer.settings import TrainSettings
from trainer.stopping import StopRequest

WARM_UP = 2


def bare(job: Job, packs: list[Batch]) -> Callable[[], None]:
    """A step of the plain model on the next of some ready batches."""
    model: nn.Module = plain_model(job.settings.model)
    initialise(model, 0)
    tables = {name for name, _ in model.named_parameters() if name.startswith("ngrams")}
    rest = [parameter for name, parameter in model.named_parameters() if name not in tables]
    optimizer = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    per_step = job.settings.data.packs
    number = 0

    def step() -> None:
        nonlocal number
        for _ in range(per_step):
            batch = packs[number % len(packs)]
            number += 1
            F.cross_entropy(predict(model, batch), batch.labels, reduction="mean").backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            if name in tables:
                parameter.grad = None

    return step


def whole(job: Job) -> Callable[[], None]:
    """A step of the loop, with its figures."""
    packs, stop = iter(job.loader), StopRequest(())
    job.reporter.begin(0.0)

    def step() -> None:
        one_step(job, packs, stop)
        job.reporter.interval(job.state.step, job.state.targets, job.done(), job.optimizer)

    return step


def main() -> None:
    """Print seconds of both and their ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "validation"):
            sources(Path(folder) / split)
        overrides = [
            "--data.path",
            folder,
            "--run.out",
            f"{folder}/run",
            "--data.workers",
            "0",
            "--run.dtype",
            "float32",
        ]
        settings = load_recipe(ROOT / "trainer/recipes/blt-small.toml", overrides, TrainSettings)
        identity = run_identity(settings)
        with started(settings.run) as world:
            job = prepare(settings, identity, world)
            ready = iter(PackLoader(job.loader.dataset, job.limits, settings.data.packs))
            batches = [next(ready).batch for _ in range(4 * settings.data.packs)]
            works = {"bare": bare(job, batches), "whole": whole(job)}
            seconds: dict[str, list[float]] = {name: [] for name in works}
            for number in range(WARM_UP + rounds):
                for name, work in works.items():
                    began = time.process_time()
                    work()
                    if number >= WARM_UP:
                        seconds[name].append(time.process_time() - began)
            job.close()
    totals = {name: sum(taken) / rounds for name, taken in seconds.items()}
    for name, mean in totals.items():
        print(f"{name:6s} {1000 * mean:8.1f} ms a step in the mean of {rounds}, least {1000 * min(seconds[name]):.1f}")
    print(
        f"ratio  {totals['whole'] / totals['bare']:.3f} of means, {min(seconds['whole']) / min(seconds['bare']):.3f} of least"
    )


if __name__ == "__main__":
    main()
