"""The runs of an experiment: several at a time, each a run folder of its own that goes on where it was stopped.

A run is a recipe, trained by the same loop as any other and then scored. Each is a process that was forked from a
server in which everything is imported already. What it says is in its log; one that fails leaves the others alone.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from tomli_w import dumps as to_toml

from shared.errors import ExitCode
from shared.io.display.log import LOG
from shared.io.display.progress import Progress
from shared.io.files.atomic import write_atomic
from shared.io.programs.child_processes import STOP_SIGNALS, end_with_starter, start_server
from trainer.metrics.files import read_lines
from trainer.provenance.run_folder import METRICS_NAME

RECIPE_NAME, LOG_NAME = "recipe.toml", "log.txt"
PRELOADED = [__name__, "trainer.run.setup", "trainer.experiments.scoring", "torch._dynamo", "torch.utils.tensorboard"]
"""What the server imports once, and no run again."""
EVERY_SECONDS = 2.0
"""From one look at the runs under way to the next."""


@dataclass(frozen=True)
class Run:
    """A run to do."""

    name: str
    """As it is called in messages."""
    recipe: Mapping[str, Any]
    """All sections; ``run.out`` is its folder."""
    score: bool = True
    """Whether the model is then scored on the validation split, document by document."""

    @property
    def folder(self) -> Path:
        return Path(self.recipe["run"]["out"])

    def share(self) -> float:
        """The share of it that is behind."""
        length = self.recipe["run"]
        try:
            last = read_lines(self.folder / METRICS_NAME)[-1]
        except (OSError, IndexError):
            return 0.0
        done = [last.get("step", 0) / length["steps"]] if length.get("steps") else []
        done += [last.get("targets", 0) / length["bytes"]] if length.get("bytes") else []
        return min(max(done, default=0.0), 1.0)


R = TypeVar("R", bound=Run)


def run_all(
    runs: Sequence[R], jobs: int, line: Progress, finished: Callable[[R], None] | None = None
) -> dict[str, Path]:
    """Do these runs, ``jobs`` at a time, in their order; finished ones are recognised by themselves.

    ``finished`` is called after each that has ended well. Returns the logs of those that failed, by name. At an
    error or an interrupt the runs under way are told to save, and waited for, and it is raised again.
    """
    waiting, under_way, failed, done = list(runs), dict[int, tuple[BaseProcess, R]](), dict[str, Path](), 0
    context = get_context("forkserver")
    start_server(context, PRELOADED)
    line.begin(0.0)
    try:
        while waiting or under_way:
            while waiting and len(under_way) < jobs:
                run = waiting.pop(0)
                process: BaseProcess = context.Process(target=_work, args=(_prepared(run), run.score), name=run.name)
                process.start()
                under_way[process.sentinel] = process, run
            for sentinel in connection.wait(list(under_way), EVERY_SECONDS):
                assert isinstance(sentinel, int)
                process, run = under_way.pop(sentinel)
                process.join()
                done += 1
                if process.exitcode:
                    failed[run.name] = run.folder / LOG_NAME
                    why = _last_line(failed[run.name]).removeprefix("patchwork: error: ")
                    LOG.warning("%s has failed: %s (log: %s)", run.name, why, failed[run.name])
                elif finished is not None:
                    finished(run)
            shares = [run.share() for _, run in under_way.values()]
            names = ", ".join(f"{run.name} {share:.0%}" for share, (_, run) in zip(shares, under_way.values()))
            share = (done + sum(shares)) / len(runs)
            # A run that is trained is yet to be scored: not all is done before each has ended.
            line.show(
                min(share, 0.9999) if done < len(runs) else 1.0,
                f"{done} of {len(runs)} runs",
                *([names] if names else []),
            )
    finally:
        for process, _ in under_way.values():
            process.terminate()  # a terminal interrupts the runs too, `kill` this process alone
        for process, _ in under_way.values():
            process.join()
    return failed


def _prepared(run: Run) -> Path:
    """The recipe of a run as a file in its folder: what `python trainer/main.py` takes."""
    path = run.folder / RECIPE_NAME
    write_atomic(path, to_toml(run.recipe))
    return path


def _work(recipe: Path, score: bool) -> None:
    """The whole of a process: train, score, and end with the exit code."""
    from trainer.errors import run

    end_with_starter()
    log = os.open(recipe.with_name(LOG_NAME), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    run(partial(_train_and_score, score=score), [str(recipe)])


def _train_and_score(arguments: Sequence[str], score: bool) -> int:
    from trainer.checkpoints.model import MODEL_FOLDER
    from trainer.main import main
    from trainer.provenance.identity import IDENTITY_NAME

    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the server has them blocked
    code, folder = main(arguments), Path(arguments[0]).parent
    if code == ExitCode.DONE and not (folder / MODEL_FOLDER / IDENTITY_NAME).exists():
        return ExitCode.INTERRUPTED  # it was told to stop, and has saved
    if code or not score:
        return code
    from trainer.errors import USER_ERRORS, complain
    from trainer.experiments.scoring import score_run

    try:
        score_run(folder)
    except USER_ERRORS as error:
        return complain(error)
    return 0


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "nothing was logged")
