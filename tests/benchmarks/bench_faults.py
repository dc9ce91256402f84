"""Kills of ranks, launchers, loader workers and machines, and bytes that flip; then what a save costs a step.

python tests/benchmarks/bench_faults.py [KILLS]

The drill: one run on 2 ranks under torchrun --max-restarts, every second kill inside a save; its final weights against
those of a quiet run. The cost: seconds for which a step waits for a save, in the background and not, alternately.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.drill import Drill, drill_recipe, quiet_run, weights
from helpers.tiny_runs import STATIC, losses, run_identity_of, tiny_data, tiny_settings

from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.distributed.world import started
from trainer.optim.optimizer import build_optimizer
from trainer.settings import CheckpointSettings

STEPS_A_KILL = 12
SAVES = 5


def drill(folder: Path, kills: int) -> None:
    """One run, killed again and again."""
    steps = STEPS_A_KILL * kills + 40
    recipe = drill_recipe(folder, steps, every=4)
    began = time.monotonic()
    quiet_run(recipe, folder / "quiet")
    print(f"{steps} steps on 2 ranks, a checkpoint every 4; quiet run {time.monotonic() - began:.0f} s", flush=True)
    run = Drill(recipe, folder / "drilled")
    plan = run.plan([run.victims[number % len(run.victims)] for number in range(kills)], 10, steps - 20)
    began = time.monotonic()
    run.finish(plan, folder / "log", limit=60 * kills + 600)
    said = (folder / "log").read_text()
    for victim, count in run.done.items():
        print(f"  killed {count} x {victim}")
    print(f"  {run.inside_saves} of {sum(run.done.values())} kills hit a checkpoint that was being written")
    print(
        f"  {run.starts} starts of the command, {said.count('going on after step')} resumes, {run.set_aside()} damaged",
        end="",
    )
    print(
        f" checkpoints set aside, {said.count('Traceback')} tracebacks, {len(run.left_behind())} processes left behind"
    )
    same = weights(run.out) == weights(folder / "quiet"), losses(run.out) == losses(folder / "quiet")
    print(f"  {time.monotonic() - began:.0f} s; weights {_equal(same[0])}, losses of all steps {_equal(same[1])}")
    assert all(same)


def _equal(same: bool) -> str:
    return "equal, bit for bit" if same else "DIFFER"


def cost(folder: Path) -> None:
    """Seconds that a save keeps the caller, and until it is complete."""
    stack = {"width": 512, "layers": 6, "heads": 8}
    settings = tiny_settings(
        *(tiny_data(folder / "cost", STATIC), folder / "cost" / "run"),
        model={
            "kind": "blt",
            "window": 64,
            "ngrams": {"sizes": [3, 4, 5], "rows": 10_000},
            "encoder": {"width": 256, "layers": 1, "heads": 4},
            "global": stack,
            "decoder": {"width": 256, "layers": 2, "heads": 4},
        },
    )
    with started(settings.run) as world:
        model = build_model(settings, world)
        optimizer = build_optimizer(model, settings.optimizer)
        state = TrainState(identity=run_identity_of(settings), config={})
        values = sum(parameter.numel() for parameter in model.parameters())
        stores = {
            name: Checkpoints(folder / name, CheckpointSettings(asynchronous=name == "background"), world)
            for name in ("waiting", "background")
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
        for step in range(1, SAVES + 2):
            for name, store in stores.items():
                began = time.perf_counter()
                store.save(model, optimizer, state.model_copy(update={"step": step}))
                blocked = time.perf_counter() - began
                assert store.wait()
                seconds[name].append((blocked, time.perf_counter() - began))
        print(f"save of {values / 1e6:.0f} M parameters with moments, one rank, median of {SAVES} after a first one")
        for name, pairs in seconds.items():
            blocked, whole = (statistics.median(values) for values in zip(*pairs[1:]))
            print(f"  {name}: a step waits {blocked:.3f} s (first {pairs[0][0]:.3f}), complete after {whole:.3f} s")
        began = time.perf_counter()
        assert stores["waiting"].newest()
        print(f"  reading and hashing it at a start: {time.perf_counter() - began:.3f} s")


def main(kills: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        cost(Path(name))
        drill(Path(name), kills)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
