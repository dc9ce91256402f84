"""The entry that torchrun starts: `torchrun trainer/main.py RECIPE [--section.key value]...`.

Trains the model that the recipe names on the shards that it names, on as many ranks as there are; run again, it goes on
from the last checkpoint, and says so when there is nothing left to do. With `--plan` it only says what all that will
take, in memory, FLOPs and time; no launcher and no data are needed for that.
"""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path: trainer/data would be `data` and shadow whatever has that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all is imported: Ctrl-C would be a traceback

from shared.io.child_processes import end_with_launcher
from shared.io.config import load_recipe
from trainer.data.run_data import RunData, with_length
from trainer.errors import USER_ERRORS, TrainingError, complain, exit_for_peer, run
from trainer.node import first_of_node
from trainer.provenance.identity import RunIdentity, run_identity
from trainer.provenance.run_checks import check_run, finished
from trainer.provenance.run_folder import check_run_folder
from trainer.settings import TrainSettings

USAGE = "usage: torchrun trainer/main.py RECIPE.toml [--plan] [--section.key value]..."
PLAN = "--plan"


def main(arguments: Sequence[str]) -> int:
    """Train what the recipe says; returns the exit code."""
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    recipe, *overrides = arguments
    try:
        if PLAN in overrides:
            return tell_plan(Path(recipe), [part for part in overrides if part != PLAN])
        settings = load_recipe(Path(recipe), overrides, TrainSettings)
        data = RunData(settings.data)
        settings = with_length(settings, data)
        check_run_folder(settings.run.out)
        check_run(settings, data)
        identity = run_identity(settings, data)
        if finished(settings.run.out, identity):
            if first_of_node():
                print(f"{settings.run.out}/model is current: nothing to train")
            return 0
        return train(settings, data, identity)
    except USER_ERRORS as error:
        return complain(error)


def tell_plan(recipe: Path, overrides: Sequence[str]) -> int:
    """Print what the recipe will take, once however many processes are started."""
    if os.environ.get("RANK", "0") == "0":
        from trainer.planning.plan import load_plan
        from trainer.planning.report import report

        print(report(load_plan(recipe, overrides)))
    return 0


def train(settings: TrainSettings, data: RunData, identity: RunIdentity) -> int:
    """The run itself. torch is imported from here on."""
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own import
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a run of one rank saves alone
    from trainer.distributed.world import is_lost_peer, is_timeout, started
    from trainer.run.loop import run_steps
    from trainer.run.setup import callback_classes, claimed, close, export, prepare, summarise
    from trainer.run.stopping import stop_on_signals

    classes = callback_classes(settings)
    try:
        with (
            started(settings.run) as world,
            stop_on_signals(world.neighbours) as stop,
            claimed(settings, identity, world),
        ):
            job = prepare(settings, data, identity, world)
            callbacks = [made(job) for made in classes]
            done = run_steps(job, callbacks, stop)
            if done:
                export(job, identity)
            close(job, callbacks)
            if done:
                summarise(job)
    except RuntimeError as error:
        if is_timeout(error):
            return complain(
                TrainingError(f"other ranks have not answered for {settings.run.timeout:g} s (run.timeout)")
            )
        if not is_lost_peer(error):
            raise
        return exit_for_peer()
    return 0


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_launcher()
    run(main, sys.argv[1:])
