"""Trains the model that a recipe names on the shards that it names, on as many ranks as there are.

The same command resumes from the last checkpoint, and says so when there is nothing left to do.

usage: torchrun trainer/main.py RECIPE.toml [--section.key value]... [--plan] [--verbose | --quiet]
       python trainer/main.py [RECIPE.toml] --help

  --section.key value  instead of what the recipe says of that key; --section.key=value, too; a list as a,b
  --plan               print what the run will take in memory, FLOPs and time, and do nothing; needs no data and no GPU
  --verbose            say also what is opened, resumed and chosen
  --quiet              say only what is wrong: neither progress nor notes
  --version            what version of Patchwork this is
  --help               this text; with a recipe, the keys of its kind of model, with the recipe's own values

Examples:
  python trainer/main.py trainer/recipes/blt-small.toml --plan --plan.ranks 8 --plan.device H200
  torchrun --nproc-per-node 2 trainer/main.py trainer/recipes/blt-small.toml --data.path runs/stdlib/patched --run.out r
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

from shared import __version__
from shared.errors import ConfigError, ExitCode, did_you_mean
from shared.io.display.log import set_level
from shared.io.display.terminal import show
from shared.io.programs.child_processes import end_with_launcher
from shared.io.stores.locations import path_of
from trainer.data.run_data import RunData, with_length
from trainer.errors import USER_ERRORS, TrainingError, complain, exit_for_peer, run
from trainer.node import first_of_node
from trainer.provenance.identity import RunIdentity, run_identity, with_input_scale
from trainer.provenance.run_checks import check_run, finished
from trainer.provenance.run_folder import check_run_folder
from trainer.settings import TrainSettings
from trainer.settings.recipe import load_recipe

OPTIONS = ("--plan", "--help", "-h", "--verbose", "--quiet", "--version")
"""What is no key of the recipe."""


def main(arguments: Sequence[str]) -> int:
    """Train what the recipe says; returns the exit code."""
    options = {word for word in arguments if word in OPTIONS}
    words = [word for word in arguments if word not in OPTIONS]
    try:
        recipe = _recipe(words.pop(0)) if words and not words[0].startswith("-") else None
        set_level("--verbose" in options, "--quiet" in options)
        if options & {"--help", "-h"}:
            return print_help(recipe, words)
        if "--version" in options:
            show(f"patchwork {__version__}")
            return ExitCode.DONE
        if recipe is None:
            raise ConfigError("the recipe comes first (see python trainer/main.py --help)")
        for word in words:
            if word.startswith("--") and not set(".= ") & set(word):
                raise ConfigError(f"unknown option {word}{did_you_mean(word, OPTIONS)}")
        if "--plan" in options:
            return print_plan(recipe, words)
        settings = load_recipe(recipe, words, TrainSettings)
        data = RunData.of(settings)
        settings = with_input_scale(with_length(settings, data))
        check_run_folder(settings.run.out)
        check_run(settings, data)
        identity = run_identity(settings, data)
        if finished(settings.run.out, identity):
            if first_of_node():
                show(f"{settings.run.out}/model is current: nothing to train")
            return ExitCode.DONE
        return train(settings, data, identity)
    except USER_ERRORS as error:
        return complain(error)


def _recipe(text: str) -> Path:
    try:
        return path_of(text)
    except ValueError as error:
        raise ConfigError(f"recipe: {error}") from None


def print_help(recipe: Path | None, overrides: Sequence[str]) -> int:
    """Print what a recipe may say, once however many processes are started."""
    from trainer.settings.help import help_text

    text = help_text(recipe, overrides)
    if is_first_rank():
        show(f"{__doc__}\n{text}")
    return ExitCode.DONE


def print_plan(recipe: Path, overrides: Sequence[str]) -> int:
    """Print what the recipe will take, once however many processes are started."""
    if is_first_rank():
        from trainer.planning.plan import load_plan
        from trainer.planning.report import report

        show(report(load_plan(recipe, overrides)))
    return ExitCode.DONE


def is_first_rank() -> bool:
    """Also of a process that no launcher has started."""
    return os.environ.get("RANK", "0") == "0"


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
    return ExitCode.DONE


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_launcher()
    run(main, sys.argv[1:])
