"""Where figures go: JSON lines, TensorBoard and, if asked, Weights & Biases. None of them can end a run."""

import importlib.util
import json
import math
import os
import secrets
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from shared.errors import ConfigError
from shared.io.files.atomic import write_atomic
from trainer.metrics.files import flat
from trainer.provenance.run_folder import METRICS_NAME
from trainer.settings import TrainSettings

MOST_KEPT = 10_000
"""Lines that wait in memory for a file that cannot be written."""
WANDB_ID_NAME = "wandb.id"


class Logger(Protocol):
    """Something that takes figures."""

    keeps: ClassVar[bool]
    """Whether what could not be written is kept and tried again, so that a failure is no reason to give up."""

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Take the figures of a step; may raise anything."""

    def close(self) -> None:
        """Write what waits; may raise anything."""


class JsonLines:
    """A file of JSON lines that loses none while a disk is full: they wait in memory, whole, up to a bound."""

    keeps: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: deque[bytes] = deque()
        self._begun = False
        """Whether a part of the first waiting line is in the file."""
        self.lost = 0
        """Lines given up because too many waited."""

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Append a line; raises OSError when it has to wait."""
        self._waiting.append((json.dumps({"step": step} | finite(figures)) + "\n").encode())
        if len(self._waiting) > MOST_KEPT:
            del self._waiting[1 if self._begun else 0]
            self.lost += 1
        self._flush()

    def close(self) -> None:
        """Try once more; raises OSError when lines are left."""
        self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        # Opened anew each time: a file system that was away, or was replaced, is found again.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while self._waiting:
                written = os.write(descriptor, self._waiting[0])
                if written < len(self._waiting[0]):
                    self._waiting[0] = self._waiting[0][written:]
                    self._begun = True
                else:
                    self._waiting.popleft()
                    self._begun = False
        finally:
            os.close(descriptor)


class TensorBoard:
    """RUN/tensorboard; nested figures become tags a/b."""

    keeps: ClassVar[bool] = False

    def __init__(self, out: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(out / "tensorboard", purge_step=resumed_step + 1 if resumed_step else None)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        for tag, value in flat(figures):
            self._board.add_scalar(tag, value, step)

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of a wandb project; a run that goes on goes on there too. WANDB_MODE=offline keeps it in RUN/wandb."""

    keeps: ClassVar[bool] = False

    def __init__(self, out: Path, project: str, config: dict[str, Any]) -> None:
        import wandb

        remembered = out / WANDB_ID_NAME
        if not remembered.exists():
            write_atomic(remembered, secrets.token_hex(8) + "\n")
        self._run = wandb.init(
            project=project,
            id=remembered.read_text().strip(),
            resume="allow",
            name=out.name,
            dir=out,
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, figures: dict[str, Any]) -> None:
        self._run.log(dict(flat(figures)), step=step)

    def close(self) -> None:
        self._run.finish()


def check_loggers(settings: TrainSettings) -> None:
    """Raise ConfigError, on every rank alike, when a logger is asked for whose package is missing."""
    if settings.metrics.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("metrics.wandb needs the package wandb; pip install wandb, or leave the key out")


class Loggers:
    """All loggers of a run. A failure of one is logged once, and the run goes on."""

    def __init__(self, settings: TrainSettings, resumed_step: int, log: Callable[[str], None]) -> None:
        out = settings.run.out
        self._log = log
        self._open: dict[str, Logger] = {METRICS_NAME: JsonLines(out / METRICS_NAME)}
        self._failing: set[str] = set()
        makers: dict[str, Callable[[], Logger]] = {"tensorboard": lambda: TensorBoard(out, resumed_step)}
        if project := settings.metrics.wandb:
            makers["wandb"] = lambda: WeightsAndBiases(out, project, settings.resolved())
        for name, make in makers.items():
            try:
                self._open[name] = make()
            except Exception as error:
                self._log(f"{name}: {error}; the run goes on without it, its figures are in {METRICS_NAME}")

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Give the figures of a step to every logger that works."""
        for name, logger in list(self._open.items()):
            try:
                logger.write(step, figures)
            except Exception as error:
                self._failed(name, logger, error)
            else:
                if name in self._failing:
                    self._failing.discard(name)
                    self._log(f"{name} can be written again; the lines that waited are in it")

    def close(self) -> None:
        """Write what waits."""
        for name, logger in self._open.items():
            try:
                logger.close()
            except Exception as error:
                self._log(f"{name}: {error}; its last figures are lost")

    def _failed(self, name: str, logger: Logger, error: Exception) -> None:
        if not logger.keeps:
            del self._open[name]
            self._log(f"{name}: {error}; the run goes on without it, its figures are in {METRICS_NAME}")
        elif name not in self._failing:
            self._failing.add(name)
            self._log(f"{name}: {error}; lines wait in memory until it can be written again")


def finite(figures: dict[str, Any]) -> dict[str, Any]:
    """The same with None where a number is not finite, which JSON does not have."""
    return {
        key: finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in figures.items()
    }
