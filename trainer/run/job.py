"""What a run holds while it trains."""

from dataclasses import dataclass

from torch import nn

from shared.io.display.progress import Progress
from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.data.loader import PackLoader
from trainer.data.run_data import RunData
from trainer.distributed.straggler_monitor import StragglerMonitor
from trainer.distributed.world import World
from trainer.evaluation.validation import Validation
from trainer.lr_schedule import progress
from trainer.metrics.run_metrics import RunMetrics
from trainer.optim.distillation import Distillation
from trainer.optim.optimizer import Optimizers
from trainer.optim.step_timer import StepTimer
from trainer.settings import TrainSettings


@dataclass
class Job:
    """One rank of a run."""

    settings: TrainSettings
    data: RunData
    world: World
    model: nn.Module
    """Sharded over ranks."""
    optimizer: Optimizers
    distillation: Distillation | None
    """Where a teacher is learned from."""
    loader: PackLoader
    validation: Validation
    checkpoints: Checkpoints
    state: TrainState
    """After the last step; its cursor is that of the last save, the loader has the one after the last step."""
    line: Progress
    """Progress and notes on the terminal, of the main rank alone."""
    timer: StepTimer
    metrics: RunMetrics
    monitor: StragglerMonitor

    def done(self) -> float:
        """Share of the run behind."""
        return progress(self.settings.run, self.state.step, self.state.targets)
