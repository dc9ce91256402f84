"""What the knobs of [parallel] cost and save: python tests/benchmarks/bench_parallel.py

1. A small BLT, packs of 4,096 tokens, one process: what a dry run finds with each way of keeping activations, and the
   processor seconds of a forward and backward pass against those of keeping everything, in turns.
2. The n-gram tables of the 1B model at the start of a run: what one rank of 64 draws, how long it takes, and what the
   process has grown by, against drawing the whole of them.

One thread. Nothing is asserted.
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from torch import nn

from shared.model_settings import BltSettings
from shared.models.initialise import set_initial_rows
from trainer.checkpoints.initial_weights import build_model
from trainer.data.packing.limits import PackLimits
from trainer.distributed.world import World, started
from trainer.memory.dry_run import dry_run, one_document
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import backward
from trainer.settings import DataSettings, OptimizerSettings, ParallelSettings, RunSettings, TrainSettings

LOCAL = {"width": 128, "layers": 2, "heads": 4}
MODEL = {"encoder": LOCAL | {"layers": 1}, "decoder": LOCAL, "global": {"width": 256, "layers": 8, "heads": 4}}
LAYOUTS: dict[str, dict[str, object]] = {
    "none": {},
    "selective": {"activation_checkpointing": "selective"},
    "full": {"activation_checkpointing": "full"},
    "keep_gathered": {"keep_gathered": True},
}
TABLE, RANKS, RANK = (6 * 500_002, 1024), 64, 5
MB = 1e6


def settings_for(parallel: dict[str, object], tokens: int) -> TrainSettings:
    """The small model, in one layout."""
    nowhere = Path("unused")
    return TrainSettings(
        run=RunSettings(out=nowhere, steps=1, device="cpu", dtype="float32"),
        data=DataSettings(path=nowhere, tokens=tokens, packs=1),
        model=BltSettings.model_validate(MODEL | {"ngrams": {"rows": 4096}}),
        optimizer=OptimizerSettings(lr=1e-3),
        # On the host, which is here already: one rank that computes in fp32 would have no FSDP otherwise.
        parallel=ParallelSettings.model_validate({"offload": True, **parallel}),
    )


def memory_by_part(limits: PackLimits, world: World) -> dict[str, nn.Module]:
    """Print a table; returns the models."""
    models, found = {}, {}
    for name, parallel in LAYOUTS.items():
        settings = settings_for(parallel, limits.tokens)
        models[name] = build_model(settings, world)
        optimizer = build_optimizer(models[name], settings.optimizer)
        (found[name],) = dry_run(models[name], optimizer, settings, limits, world).ranks
    print(f"a BLT of {sum(p.numel() for p in models['none'].parameters()) / MB:.1f} M parameters, MB by part")
    print(f"  {'':14s}" + "".join(f"{name:>15s}" for name in found))
    for part in (*found["none"].largest_first(), "peak"):
        print(f"  {part:14s}" + "".join(f"{getattr(memory, part) / MB:15.1f}" for memory in found.values()))
    return models


def seconds_of_a_pass(models: dict[str, nn.Module], limits: PackLimits, rounds: int, world: World) -> None:
    """Print processor seconds, the least of a few rounds, and ratios of them."""
    batch, least = one_document(limits), dict.fromkeys(models, float("inf"))
    for _ in range(rounds):
        for name, model in models.items():
            began = time.process_time()
            backward(model, [batch], limits.tokens, world, keep_gathered=name == "keep_gathered")
            least[name] = min(least[name], time.process_time() - began)
            for parameter in model.parameters():
                parameter.grad = None
    for name, seconds in least.items():
        print(f"  {name:14s} {seconds:6.2f} s a pass, ratio {seconds / least['none']:.3f}")


def drawn_at_the_start() -> None:
    """Print what one rank of many holds while it draws its rows."""
    run = -(-TABLE[0] // RANKS)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    own = torch.empty(run, TABLE[1])
    set_initial_rows(own, "ngrams.weight", TABLE, 0, RANK * run)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    whole = TABLE[0] * TABLE[1] * 4
    print(f"tables of the 1B model, {whole / MB:,.0f} MB: rank {RANK} of {RANKS} owns {own.nbytes / MB:.1f} MB,")
    print(f"  has grown by {grown / MB:.1f} MB and taken {time.process_time() - began:.2f} s to draw them")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="of a pack")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    limits = PackLimits(arguments.tokens, arguments.tokens // 4)
    torch.set_num_threads(1)
    drawn_at_the_start()
    with started(settings_for({}, limits.tokens).run) as world:
        seconds_of_a_pass(memory_by_part(limits, world), limits, arguments.rounds, world)


if __name__ == "__main__":
    main()
