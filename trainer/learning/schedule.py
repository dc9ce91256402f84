"""How far a run is, and the learning rate there: pure functions, so that a resumed run cannot differ."""

import math

from trainer.settings import RunSettings, ScheduleSettings


def progress(run: RunSettings, step: int, targets: int) -> float:
    """Share of the run that lies behind after ``step`` steps and ``targets`` training targets: 1 or more means done."""
    by_steps = step / run.steps if run.steps else 0.0
    by_bytes = targets / run.bytes if run.bytes else 0.0
    return max(by_steps, by_bytes)


def rate(schedule: ScheduleSettings, done: float) -> float:
    """Share of the peak learning rate at a share ``done`` of the run: linear warm-up, then a cosine to the floor."""
    if done < schedule.warmup:
        return done / schedule.warmup
    fall = min(1.0, (done - schedule.warmup) / (1.0 - schedule.warmup))
    return schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + math.cos(math.pi * fall))
