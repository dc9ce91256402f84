"""What is done beside the steps of a run, by us or by a user: a class for each, called by the loop.

Every rank makes one object of each class when the job is ready to train, and calls them at the same points in the same
order. So a callback may use collectives, if it does so on every rank.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from trainer.metrics.accumulator import StepRecord
from trainer.metrics.subset_score import SubsetScore
from trainer.run.job import Job


class Callback:
    """Does nothing at any point; a subclass says where it does something. ``self.job`` has everything of the run."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def on_run_start(self) -> None:
        """The first step of this start follows; ``job.state.step`` steps lie behind."""

    def on_step_end(self, step: StepRecord) -> None:
        """A step has ended. Nothing has waited for the device since its update: do not either."""

    def on_interval(self, metrics: Mapping[str, Any]) -> None:
        """``metrics.log_every`` steps have ended. ``metrics``: what metrics.jsonl gets; empty but on the main rank."""

    def on_validation(self, scores: Mapping[str, SubsetScore]) -> None:
        """The validation split was scored after this step, by subset. Its time is no part of any speed."""

    def on_phase_validation(self, phase: int, scores: Mapping[str, SubsetScore]) -> None:
        """The same with the patches of the phase that the run is in, where that is not its last one. It comes after
        `on_validation`, whose patches are those that the model will have.
        """

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint is complete. It is written while training goes on, and known to be complete when the next one
        begins or the run ends.
        """

    def on_run_end(self) -> None:
        """The run is done, its model written; or it was asked to stop, and is saved."""


def load_callback(place: str) -> type[Callback]:
    """The class at ``package.module:Class``. Raises ConfigError in one line when there is none."""
    module, _, name = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: it hides no other module
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ConfigError(f"run.callbacks: {place!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Callback)):
        raise ConfigError(f"run.callbacks: {place!r} is not a subclass of {__name__}.{Callback.__name__}")
    return found
